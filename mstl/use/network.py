"""A finished run as others use it: its network, how it sees images, and where its probability becomes a yes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from mstl.evaluation.operating import EVEN, Operating, read_operating
from mstl.evaluation.predictions import positive_class
from mstl.evaluation.subject import matching_shards
from mstl.models.classifier import Classifier
from mstl.runs import RunRecord, load_classifier, open_run
from pipelines.recipe import Inputs
from shards.cache import CacheOptions
from shards.errors import MstlError
from shards.files import sha256_file
from shards.schema import Manifest

NOT_A_DEVICE = "Research software, not a medical device: no decision about a patient may rest on it."


@dataclass(frozen=True, kw_only=True, slots=True)
class Network:
    """A run's classifier in evaluation mode on its device, and what belongs to it.

    inputs: as the run was evaluated, with nothing random. operating: what `mstl evaluate` chose, None before that.
    positive: index of the positive of two classes, else None. trained: the manifest of the run's own shard set, None
    where that is gone or has changed, because of `why`.
    """

    record: RunRecord
    classifier: Classifier
    device: torch.device
    weights_sha256: str
    inputs: Inputs
    operating: Operating | None
    positive: int | None
    trained: Manifest | None
    folder: Path | None
    why: str

    @property
    def threshold(self) -> float | None:
        """From which probability of the positive class on an image is positive; None unless there are two classes."""
        if self.positive is None:
            return None
        chosen = None if self.operating is None else self.operating.threshold
        return EVEN if chosen is None else chosen

    @property
    def operating_text(self) -> str:
        """The operating point in a sentence."""
        return operating_text(self.operating, classes=len(self.record.classes), run=str(self.record.path))

    @property
    def temperature(self) -> float | None:
        """What calibrates the probabilities, where it was fitted."""
        return None if self.operating is None else self.operating.temperature

    @property
    def modality(self) -> str | None:
        """Of the images it was trained on: "ct", "cxr" or "natural"; None where that is not known."""
        return None if self.trained is None else self.trained.modality


def open_network(run: Path, *, device: torch.device, cache: CacheOptions | None = None) -> Network:
    """Open a run to use it.

    Raises MstlError for an unfinished run, for one without a classifier, and for an operating point that was chosen for
    other weights than the run has now.
    """
    record = open_run(run)
    if not record.weights.is_file():
        raise MstlError(
            f"run {record.path}",
            why=f"it has no weights (status: {record.status})",
            remedy=f"Finish it: mstl train --stage {record.stage} --out {record.path} with its own options",
        )
    classifier = load_classifier(record).to(device)
    operating = read_operating(run)
    trained, folder, why = None, None, ""
    try:
        folder, trained, _ = matching_shards(record, None, cache or CacheOptions())
    except MstlError as error:
        why = f"{error.what}: {error.why}"
    name = None if operating is None else operating.positive
    return Network(
        record=record,
        classifier=classifier,
        device=device,
        weights_sha256=sha256_file(record.weights),
        inputs=_still(record.evaluation_inputs),
        operating=operating,
        positive=positive_class(record.classes, name),
        trained=trained,
        folder=folder,
        why=why,
    )


def operating_text(chosen: Operating | None, *, classes: int, run: str) -> str:
    """Where a probability becomes a yes for a run of so many classes, and where that comes from; run: its name."""
    if classes != 2:
        return f"{classes} classes: the most probable one is named"
    if chosen is None or chosen.threshold is None:
        return f"No operating point was chosen, so {EVEN} is taken; mstl evaluate {run} chooses one, and calibrates"
    if chosen.origin == "given":
        return f"Operating point {chosen.threshold:.3f}: as given to mstl evaluate"
    if chosen.origin == "default":
        return f"Operating point {chosen.threshold:g}, since none could be chosen: {chosen.why}"
    rates = [
        f"{name} {value:.3f}"
        for name, value in (("sensitivity", chosen.sensitivity), ("specificity", chosen.specificity))
        if value is not None
    ]
    there = f" (there, and so optimistic: {', '.join(rates)})" if rates else ""
    return f"Operating point {chosen.threshold:.3f}: {chosen.rule} on {chosen.n} {chosen.split} images{there}"


def _still(inputs: Inputs) -> Inputs:
    """The same without what evaluation "as printed" draws at random."""
    return replace(inputs, flip=0.0, jitter=0.0, grayscale=0.0, blur=0.0, geometry=0.0)
