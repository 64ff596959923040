"""LEEP of sources on a target: what they say of its images, the scores, and the record of it all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim.swa_utils import update_bn

from mstl.evaluation.leep import Leep, leep
from mstl.evaluation.leep_sources import Source
from mstl.evaluation.predictions import check_numbers
from mstl.models.classifier import Classifier
from mstl.runs import now, software
from pipelines.loader import Loader
from pipelines.recipe import Inputs, evaluation, fitted
from shards.cache import CacheOptions, local_set
from shards.errors import MstlError
from shards.progress import QUIET, Progress
from shards.remote_store import is_url, shown
from shards.schema import Manifest, load_manifest
from shards.verify import check_content

SCHEMA_VERSION = 1
BATCH = 64
DEFAULT_SIDE = 224  # the paper's image size


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """A split of a shard set with labels; folder is a local copy of a set at a URL, origin its printable place."""

    folder: Path
    origin: str
    manifest: Manifest
    split: str

    def inputs(self, image_size: int) -> Inputs:
        """The evaluation transform for these images: resize 256:224, centre crop, grey for radiographs and CT."""
        return fitted(evaluation(image_size), modality=self.manifest.modality, deep=bool(self.manifest.deep))

    def loader(self, image_size: int, device: torch.device) -> Loader:
        """One pass in order, in batches of about equal size: batch norm is calibrated on them, one like the other."""
        samples = self.manifest.samples(self.split)
        return Loader(
            self.inputs(image_size),
            self.folder,
            self.split,
            rank=0,
            world=1,
            batch=-(-samples // -(-samples // BATCH)),
            epochs=1,
            device="gpu" if device.type == "cuda" else "cpu",
            seed=0,
            shuffle=False,
            remainder="pad",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """A source with its score at an image size; score None where LEEP is not defined. classes: of the source, Z."""

    source: Source
    image_size: int
    classes: int | None
    score: Leep | None
    notes: tuple[str, ...]


def open_target(shards: str | Path, *, split: str, cache: CacheOptions, progress: Progress = QUIET) -> Target:
    """A split to be transferred to.

    Raises MstlError for an unknown split, for one of a single class, and for shards that have changed.
    """
    folder = local_set(shards, cache=cache, splits=(), tars=False)
    manifest = load_manifest(folder)
    manifest.shards(split)
    if sum(count > 0 for count in manifest.counts(split)) < 2:  # any source would score 0, the best there is
        raise MstlError(
            f"shard set {shown(shards)}, split {split!r}",
            why="its images are all of one class, and LEEP asks how classes are told apart",
            remedy="Name a split of labelled images with --split",
        )
    local_set(shards, cache=cache, splits=(split,), tars=True, progress=progress)
    check_content(folder, manifest, split, progress)
    origin = shown(shards) if is_url(shards) else str(folder.resolve())
    return Target(folder=folder, origin=origin, manifest=manifest, split=split)


def score_sources(
    sources: Sequence[Source], target: Target, *, image_size: int | None = None, progress: Progress = QUIET
) -> list[Scored]:
    """The LEEP of every source, in order, each network in memory by itself.

    image_size: of the target's images; None: what each run was trained at, and for the others what all runs named have
    in common, else 224. Raises MstlError for weights that do not fit and for a network that answers with nan.
    """
    trained = {source.image_size for source in sources if source.image_size is not None}
    common = trained.pop() if len(trained) == 1 else DEFAULT_SIDE
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    scored = []
    for source in sources:
        side = image_size or source.image_size or common
        if source.build is None:
            scored.append(Scored(source=source, image_size=side, classes=None, score=None, notes=(source.undefined,)))
            continue
        classifier = source.build().to(device)
        make = partial(target.loader, side, device)
        if source.kind == "untrained":
            calibrate(classifier, make, device, progress=progress, name=source.name)
        probabilities, labels = source_probabilities(classifier, make, device, progress=progress, name=source.name)
        scored.append(
            Scored(
                source=source,
                image_size=side,
                classes=probabilities.shape[1],
                score=leep(probabilities, labels),
                notes=_notes(source, target),
            )
        )
    return scored


def calibrate(
    classifier: Classifier,
    make_loader: Callable[[], Loader],
    device: torch.device,
    *,
    progress: Progress = QUIET,
    name: str = "",
) -> None:
    """Give the batch norms of an untrained network the statistics of the target's images, each batch alike.

    Without, its running statistics (mean 0, variance 1) have nothing to do with what flows through it, and its
    predictions would be all the same or all random by depth alone.
    """
    with closing(make_loader()) as loader:
        progress.start(len(loader), f"calibrate {name}")
        was = classifier.training
        update_bn(_views(loader, progress), classifier, device=device)
        classifier.train(was)


def source_probabilities(
    classifier: Classifier,
    make_loader: Callable[[], Loader],
    device: torch.device,
    *,
    progress: Progress = QUIET,
    name: str = "",
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """[N, Z] float64 probabilities of the source's classes for every image, and the target's labels [N]."""
    assert not classifier.training, "probabilities are those of evaluation mode"
    rows: list[Tensor] = []
    labels: list[Tensor] = []
    with closing(make_loader()) as loader, torch.inference_mode():
        progress.start(len(loader), f"predict {name}")
        for batch in loader:
            rows.append(classifier(batch.views["x"].to(device)).double().softmax(1).cpu())
            labels.append(batch.labels.cpu())
            progress.advance()
        assert sum(map(len, labels)) == loader.plan.samples, "an image is read twice or not at all"
    probabilities = torch.cat(rows).numpy()
    check_numbers(probabilities, f"source {name}")
    return probabilities, torch.cat(labels).numpy()


def as_body(scored: Sequence[Scored], target: Target) -> dict[str, Any]:
    """What leep.json holds: the target, and for each source its score in nats and bits, null where not defined."""
    first = next(one.score for one in scored if one.score is not None)
    counts = target.manifest.counts(target.split)
    return {
        "schema": SCHEMA_VERSION,
        "target": {
            "path": target.origin,
            "digest": target.manifest.digest(),
            "source": target.manifest.source,
            "split": target.split,
            "n": sum(counts),
            "classes": list(target.manifest.classes),
            "class_counts": list(counts),
            "floor_nats": first.floor_nats,
            "floor_bits": first.floor_bits,
        },
        "sources": [
            {
                "name": one.source.name,
                "kind": one.source.kind,
                "model": one.source.model,
                "chain": list(one.source.chain),
                "weights_sha256": one.source.digest,
                "seed": one.source.seed,
                "source_classes": one.classes,
                "image_size": one.image_size,
                "nats": None if one.score is None else one.score.nats,
                "bits": None if one.score is None else one.score.bits,
                "notes": list(one.notes),
            }
            for one in scored
        ],
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "date": now(),
        "software": software(),
    }


def _views(loader: Loader, progress: Progress) -> Iterator[Tensor]:
    for batch in loader:
        yield batch.views["x"]
        progress.advance()


def _notes(source: Source, target: Target) -> tuple[str, ...]:
    notes = []
    if source.kind == "untrained":
        notes.append("random weights and head, batch norm calibrated on the target's images")
    if source.shards_digest == target.manifest.digest():
        notes.append("it was trained on the target itself, with its labels")
    return tuple(notes)
