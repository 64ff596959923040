"""What is to be explained: one or more runs, and the images of a split or of files that all of them are shown."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from mstl.evaluation.explain_files import SPLIT, FileSet, find_images, write_file_set
from mstl.evaluation.predictions import positive_class
from mstl.evaluation.subject import Subject, open_subject
from mstl.runs import RunRecord, load_classifier, open_run
from shards.cache import CacheOptions
from shards.errors import MstlError
from shards.progress import Progress
from shards.read import read_records


@dataclass(frozen=True, kw_only=True, slots=True)
class About:
    """An image: its name (the key, or that of its file), its pixels (width, height), label and patient where known."""

    name: str
    size: tuple[int, int]
    label: int | None
    patient: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """Runs that are all asked about the same images.

    explained: the class whose evidence is drawn for every image, of which a split then shows that class alone; None:
    each image's own, or for files without labels the one predicted by the first run. where: the images in words.
    """

    subjects: tuple[Subject, ...]
    explained: int | None
    where: str
    files: FileSet | None

    @property
    def labelled(self) -> bool:
        """Whether the labels that a loader gives mean anything."""
        return self.files is None

    @property
    def images(self) -> int:
        """How many images there are to explain."""
        manifest, split = self.subjects[0].manifest, self.subjects[0].split
        if self.explained is None or not self.labelled:
            return manifest.samples(split)
        return manifest.counts(split)[self.explained]

    def wants(self, label: int | None) -> bool:
        """Whether an image of this label is among them."""
        return self.explained is None or label is None or label == self.explained

    def spread(self, count: int, among: Collection[str] | None) -> list[str] | None:
        """The names of `count` files, evenly spread over those in order (a folder of slices is shown from end to end).

        among: names that may be shown, None for all. None for a split, whose first images are as good as any others.
        """
        if self.files is None:
            return None
        names = [file.name for file in self.files.files if among is None or file.name in among]
        return [names[round(place * (len(names) - 1) / max(1, count - 1))] for place in range(count)]

    def read_about(self) -> dict[int, About]:
        """Sample id → what is known of each image; reads as many small files as there are images."""
        first = self.subjects[0]
        records = read_records(first.folder, first.split)
        if self.files is None:
            return {
                r.sample_id: About(name=r.key, size=(r.width, r.height), label=r.label, patient=r.patient)
                for r in records
            }
        files = {r.sample_id: self.files.files[int(r.key)] for r in records}
        return {i: About(name=f.name, size=(f.width, f.height), label=None, patient=None) for i, f in files.items()}


def open_question(
    runs: Sequence[Path],
    *,
    split: str,
    shards: str | Path | None,
    images: Sequence[Path],
    class_name: str | None,
    out: Path,
    cache: CacheOptions,
    progress: Progress,
    stack: ExitStack,
) -> Question:
    """Open the runs on a split or, where `images` names any, on these files; `stack` holds temporary ones.

    Raises MstlError as `open_subject` does, for runs of other classes or that see images otherwise than the first, and
    for a class that there is not.
    """
    first = open_run(runs[0])
    explained = _class_index(first, class_name)
    if images:
        folder = stack.enter_context(TemporaryDirectory(prefix="mstl-images-"))
        files = write_file_set(
            find_images(images), Path(folder) / "set", classes=tuple(first.classes), progress=progress
        )
        subjects = [_on_files(run, files) for run in runs]
        where = f"images of {', '.join(path.name for path in images)}"
    else:
        files = None
        # The other runs are shown the first one's images, whatever they were trained on.
        sets = [shards, *[first.shards if shards is None else shards for _ in runs[1:]]]
        subjects = [
            open_subject(run, split=split, shards=given, out=out, cache=cache, progress=progress)
            for run, given in zip(runs, sets, strict=True)
        ]
        where = f"{split} split"
    for subject in subjects[1:]:
        _refuse_other(subjects[0].record, subject.record)
    return Question(subjects=tuple(subjects), explained=explained, where=where, files=files)


def _class_index(run: RunRecord, name: str | None) -> int | None:
    if name is None:
        return positive_class(run.classes)
    if name not in run.classes:
        raise MstlError(
            f"--class {name}", why=f"run {run.path} has no such class", remedy=f"Name one of {', '.join(run.classes)}"
        )
    return run.classes.index(name)


def _on_files(run: Path, files: FileSet) -> Subject:
    record = open_run(run)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Subject(
        record=record,
        classifier=load_classifier(record).to(device),
        device=device,
        folder=files.folder,
        where=files.folder,
        manifest=files.manifest,
        same_as_run=False,
        split=SPLIT,
    )


def _refuse_other(first: RunRecord, other: RunRecord) -> None:
    if other.classes != first.classes:
        why = f"its classes are {', '.join(other.classes[:5])}, those of {first.path} {', '.join(first.classes[:5])}"
    elif other.evaluation_inputs != first.evaluation_inputs:
        why = f"it sees images otherwise than {first.path} ({other.image_size} pixels, there {first.image_size})"
    else:
        return
    raise MstlError(f"run {other.path}", why=why, remedy="Explain it by itself")
