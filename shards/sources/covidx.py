"""COVIDx chest X-rays, all versions: image folders, and the lists that COVID-Net's scripts write."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from shards.errors import MstlError
from shards.progress import QUIET, Progress
from shards.schema import SPLITS
from shards.source_options import NO_OPTIONS, SourceOptions
from shards.sources.listing import Item, Listing, file_blob, first_few, make_listing, need_folder

THREE_CLASSES = ("normal", "pneumonia", "COVID-19")  # V1 to V6, the A lists of later versions
TWO_CLASSES = ("negative", "positive")  # the B lists of later versions; positive is 1
LAYOUT = (
    "train_COVIDx*.txt, test_COVIDx*.txt, or train.txt, test.txt, val.txt (lines: patient file class [source]), "
    "images in data/train and data/test, or train and test"
)
# The label files of COVIDx V4, the version whose class sums the paper prints (573/5559/8066).
V4_LIST, V4_COUNTS = "train_COVIDx4.txt", {"train": 13_898, "test": 300}


class _Line(NamedTuple):
    where: str  # file and line number
    text: str


def read(root: Path, options: SourceOptions = NO_OPTIONS, progress: Progress = QUIET) -> Listing:
    """List COVIDx by its lists; classes are normal, pneumonia, COVID-19, or negative, positive, as the lists say.

    The test list may be missing. Most versions have no validation list, then one is carved from train. Images may be
    symbolic links. Raises MstlError for lists that are missing, doubled or of two versions, lines that cannot be read
    (with their number), and listed images that are not there.
    """
    options.refuse_others("covidx")
    need_folder("covidx", root, LAYOUT)
    notes: list[str] = []
    lists = {split: path for split in SPLITS if (path := _list_file(root, split))}
    lines = {split: list(_lines(path)) for split, path in lists.items()}
    classes = _classes(line for part in lines.values() for line in part)
    items: list[Item] = []
    for split, path in lists.items():
        found, repeated = _items(root, path, lines[split], split, classes, progress)
        items += found
        if repeated:
            notes.append(f"{path.name} repeats {repeated:,} lines; each image was taken once")
    if "val" not in lists:
        notes.append("COVIDx has no validation list: --val-fraction of the training patients become val")
    return make_listing(
        source="covidx",
        root=root,
        layout=LAYOUT,
        modality="cxr",
        classes=classes,
        items=items,
        expected=V4_COUNTS if (root / V4_LIST).is_file() else None,
        absent={"test": "there is no test_COVIDx*.txt"},
        notes=notes,
        carve_val="val" not in lists,
    )


def _list_file(root: Path, split: str) -> Path | None:
    lists = sorted([*root.glob(f"{split}_COVIDx*.txt"), *root.glob(f"{split}.txt")])
    if len(lists) > 1:
        raise MstlError(
            f"source covidx in {root}",
            why=f"there are {len(lists)} {split} lists: {first_few([path.name for path in lists])}",
            remedy="Keep the lists of one version of COVIDx",
        )
    if not lists and split == "train":
        raise MstlError(
            f"source covidx in {root}", why="there is no train_COVIDx*.txt", remedy=f"Expected there: {LAYOUT}"
        )
    return lists[0] if lists else None


def _lines(path: Path) -> Iterator[_Line]:
    for number, text in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        if text.strip():
            yield _Line(f"{path}, line {number}", text)


def _classes(lines: Iterator[_Line]) -> tuple[str, ...]:
    """The class names that all lines use: those of the first line that tells."""
    classes: tuple[str, ...] | None = None
    for line in lines:
        words = list(re.finditer(r"\S+", line.text))
        fitting = [names for names in (THREE_CLASSES, TWO_CLASSES) if _class_words(words, names)]
        if not fitting:
            raise MstlError(
                line.where,
                why="it does not read `patient file class [source]` with class "
                f"{', '.join(THREE_CLASSES)}, negative or positive: {line.text.strip()!r}",
                remedy="Use a list of COVIDx as COVID-Net publishes it",
            )
        if classes is None and len(fitting) == 1:
            classes = fitting[0]
        if classes is not None and classes not in fitting:
            raise MstlError(
                line.where,
                why=f"the lines before it have the classes {', '.join(classes)}, not so {line.text.strip()!r}",
                remedy="Keep the lists of one version of COVIDx; those of two and of three classes do not mix",
            )
    return classes or THREE_CLASSES


def _items(
    root: Path, path: Path, lines: list[_Line], split: str, classes: tuple[str, ...], progress: Progress
) -> tuple[list[Item], int]:
    """The items of one list, and how many lines only repeat an earlier one."""
    folder = next((place for place in (root / "data" / split, root / split) if place.is_dir()), None)
    if folder is None:
        raise MstlError(
            f"{split} images in {root}", why=f"there is neither data/{split} nor {split}", remedy=f"Expected: {LAYOUT}"
        )
    there = {file.name for file in folder.iterdir() if file.is_file()}
    seen: dict[str, tuple[str, int]] = {}
    items: list[Item] = []
    missing: list[str] = []
    repeated = 0
    progress.start(len(lines), f"listing {path.name}")
    for line in lines:
        patient, name, label = _parse(line, there, classes)
        if name not in there:
            missing.append(name)
        elif name in seen:
            if seen[name] != (patient, label):
                raise MstlError(
                    line.where,
                    why=f"{name} is listed before with another class or patient",
                    remedy="Keep the right line",
                )
            repeated += 1
        else:
            seen[name] = (patient, label)
            file = folder / name
            origin = file.relative_to(root).as_posix()
            items.append(
                Item(key=file.stem, split=split, label=label, patient=patient, blob=file_blob(file), origin=origin)
            )
        progress.advance()
    if missing:
        raise MstlError(
            str(path),
            why=f"{len(missing)} listed images are not in {folder}: {first_few(missing)}",
            remedy="Add them, or take their lines out of the list",
        )
    return items, repeated


def _class_words(words: list[re.Match[str]], classes: tuple[str, ...]) -> list[int]:
    """Where the class may stand: the last word, or the last but one before the source; before it, patient and file."""
    return [i for i in (len(words) - 1, len(words) - 2) if i >= 2 and words[i].group() in classes]


def _parse(line: _Line, there: set[str], classes: tuple[str, ...]) -> tuple[str, str, int]:
    """Patient, file name and label of one line.

    Patients and file names may hold spaces ("COVID 1 COVID(1).png COVID-19 figure1"), so the line is read from the
    right, and of all ways to cut it the one whose file exists is taken. When no file exists: the shortest name.
    """
    text, words = line.text, list(re.finditer(r"\S+", line.text))
    cuts = [
        (text[words[0].start() : words[first - 1].end()], text[words[first].start() : words[i - 1].end()], i)
        for i in _class_words(words, classes)
        for first in range(i - 1, 0, -1)
    ]
    readings = [(patient, name, classes.index(words[i].group())) for patient, name, i in cuts]
    existing = [reading for reading in readings if reading[1] in there]
    if len(existing) > 1:
        raise MstlError(
            line.where,
            why=f"it can be read in {len(existing)} ways, as {first_few([name for _, name, _ in existing])}",
            remedy="Rename the image to a name without spaces",
        )
    return existing[0] if existing else readings[0]
