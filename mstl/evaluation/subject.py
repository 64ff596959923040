"""What is evaluated or explained: a finished run's classifier and the split it is shown, both checked first."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from mstl.models.classifier import Classifier
from mstl.runs import RunRecord, load_classifier, open_run
from mstl.study.checks import check_output
from pipelines.loader import Loader
from shards.cache import CacheOptions, local_set
from shards.errors import MstlError
from shards.progress import Progress
from shards.remote_store import is_url, shown
from shards.schema import Manifest, load_manifest
from shards.verify import check_content


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """A classifier on its device in evaluation mode, and one split of the shard set in `folder`.

    where: the set as it was named; `folder` is a local copy where that is a URL.
    same_as_run: whether the shard set is the one that the run was trained with.
    """

    record: RunRecord
    classifier: Classifier
    device: torch.device
    folder: Path
    where: str | Path
    manifest: Manifest
    same_as_run: bool
    split: str

    @property
    def origin(self) -> str:
        """The set's URL or absolute path, as it may be printed and recorded."""
        return shown(self.where) if is_url(self.where) else str(self.folder.resolve())

    def loader(self, batch: int) -> Loader:
        """One pass over the split in order: resize, centre crop, normalise; on the GPU where there is one."""
        inputs = self.record.evaluation_inputs
        return Loader(
            replace(inputs, bits=16 if inputs.is_grey and self.manifest.deep else 8),
            self.folder,
            self.split,
            rank=0,
            world=1,
            batch=batch,
            epochs=1,
            device="gpu" if self.device.type == "cuda" else "cpu",
            seed=0,
            shuffle=False,
            remainder="pad",
        )


def open_subject(
    run: Path, *, split: str, shards: str | Path | None, out: Path, cache: CacheOptions, progress: Progress
) -> Subject:
    """A run and the split it is shown, read and compared with what their records say.

    Without `shards` the run's own shard set is taken, and only if it is still the one of the record. Of a set at a URL
    the split is brought into the cache. Raises MstlError
    for an unfinished run, for one without a classifier, for another shard set or other classes than the run's, for an
    unknown split, for shards whose bytes are not those of their manifest, and when `out`, the file to be written from
    it, cannot be.
    """
    record = open_run(run)
    check_output(out)
    if not record.weights.is_file() and record.status != "finished":
        raise MstlError(
            f"run {record.path}",
            why=f"it is not finished (status: {record.status})",
            remedy=f"Continue it: mstl train --stage {record.stage} --out {record.path} with its own options",
        )
    where = record.shards if shards is None else shards
    folder, manifest, same = matching_shards(record, shards, cache)
    _bring(where, folder, manifest, split, cache, progress)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    classifier = load_classifier(record).to(device)
    return Subject(
        record=record,
        classifier=classifier,
        device=device,
        folder=folder,
        where=where,
        manifest=manifest,
        same_as_run=same,
        split=split,
    )


def own_split(subject: Subject, split: str, cache: CacheOptions) -> Subject:
    """The same classifier and a split of the set that its run was trained with, still to be brought by `bring`.

    Raises MstlError when that set is gone or has changed, or has no such split.
    """
    found = subject
    if not subject.same_as_run:
        folder, manifest, same = matching_shards(subject.record, None, cache)
        found = replace(subject, folder=folder, manifest=manifest, where=subject.record.shards, same_as_run=same)
    found.manifest.shards(split)  # raises, naming the splits there are
    return replace(found, split=split)


def bring(subject: Subject, cache: CacheOptions, progress: Progress) -> None:
    """Fetch the subject's split where it is at a URL and check it byte for byte; raises MstlError for damage."""
    _bring(subject.where, subject.folder, subject.manifest, subject.split, cache, progress)


def matching_shards(record: RunRecord, shards: str | Path | None, cache: CacheOptions) -> tuple[Path, Manifest, bool]:
    """The folder of the shard set to evaluate on, its manifest and whether it is the one the run was trained with.

    Of a set at a URL no more than the manifest is brought here. Raises MstlError when the classes differ, or when the
    run's own shard set has changed since.
    """
    where = record.shards if shards is None else shards
    folder, name = local_set(where, cache=cache, splits=(), tars=False), shown(where)
    manifest = load_manifest(folder)
    if list(manifest.classes) != list(record.classes):
        raise MstlError(
            f"shard set {name}",
            why=f"its classes are {_listed(manifest.classes)}, those of run {record.path} {_listed(record.classes)}",
            remedy="Name a shard set with the same classes in the same order with --shards",
        )
    same = manifest.digest() == record.shards_digest
    if not same and shards is None:
        raise MstlError(
            f"shard set {name}",
            why=f"it has changed since run {record.path} was trained on it",
            remedy=f"Evaluate on it knowingly with --shards {name}",
        )
    return folder, manifest, same


def _bring(
    where: str | Path, folder: Path, manifest: Manifest, split: str, cache: CacheOptions, progress: Progress
) -> None:
    local_set(where, cache=cache, splits=(split,), tars=True, progress=progress)
    check_content(folder, manifest, split, progress)


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
