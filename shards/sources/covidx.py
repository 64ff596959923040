"""COVIDx chest X-rays (three-class versions): image folders and the lists COVID-Net's scripts write."""

from __future__ import annotations

import re
from pathlib import Path

from shards.errors import MstlError
from shards.sources.listing import Item, Listing, file_blob, first_few, make_listing, need_folder

CLASSES = ("normal", "pneumonia", "COVID-19")
LAYOUT = "train_COVIDx*.txt, test_COVIDx*.txt (lines: patient file class [source]), images in data/train and data/test"
# The label files of COVIDx V4, the version whose class sums the paper prints (573/5559/8066).
V4_LIST, V4_COUNTS = "train_COVIDx4.txt", {"train": 13_898, "test": 300}


def read(root: Path) -> Listing:
    """List COVIDx; classes are normal, pneumonia, COVID-19 in this order, the test list may be missing.

    COVIDx has no validation list, so one is carved from train. Raises MstlError for lists that are missing or
    doubled, unknown classes (with the line), and listed images that are not there.
    """
    need_folder("covidx", root, LAYOUT)
    notes = ["COVIDx has no validation list: --val-fraction of the training patients become val"]
    items: list[Item] = []
    for split in ("train", "test"):
        path = _list_file(root, split)
        if path is None:
            notes.append("there is no test_COVIDx*.txt, so the shard set gets no test split")
            continue
        found, repeated = _read_list(root, path, split)
        items += found
        if repeated:
            notes.append(f"{path.name} repeats {repeated} lines; each image was taken once")
    return make_listing(
        source="covidx",
        root=root,
        layout=LAYOUT,
        modality="cxr",
        classes=CLASSES,
        items=items,
        expected=V4_COUNTS if (root / V4_LIST).is_file() else None,
        notes=notes,
        carve_val=True,
    )


def _list_file(root: Path, split: str) -> Path | None:
    lists = sorted(root.glob(f"{split}_COVIDx*.txt"))
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


def _read_list(root: Path, path: Path, split: str) -> tuple[list[Item], int]:
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
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        patient, name, label = _parse_line(line, there, where)
        if name not in there:
            missing.append(name)
        elif name in seen:
            if seen[name] != (patient, label):
                raise MstlError(
                    where, why=f"{name} is listed before with another class or patient", remedy="Keep the right line"
                )
            repeated += 1
        else:
            seen[name] = (patient, label)
            file = folder / name
            origin = file.relative_to(root).as_posix()
            items.append(
                Item(key=file.stem, split=split, label=label, patient=patient, blob=file_blob(file), origin=origin)
            )
    if missing:
        raise MstlError(
            str(path),
            why=f"{len(missing)} listed images are not in {folder}: {first_few(missing)}",
            remedy="Add them, or take their lines out of the list",
        )
    return items, repeated


def _parse_line(line: str, there: set[str], where: str) -> tuple[str, str, int]:
    """Patient, file name and label of one line.

    Patients and file names may hold spaces ("COVID 1 COVID(1).png COVID-19 figure1"), so the line is read from the
    right, and of all ways to cut it the one whose file exists is taken. When no file exists: the shortest name.
    """
    words = list(re.finditer(r"\S+", line))
    # The class is the last word, or the last but one before the source; before it, at least patient and file.
    at_class = [i for i in (len(words) - 1, len(words) - 2) if i >= 2 and words[i].group() in CLASSES]
    if not at_class:
        raise MstlError(
            where,
            why=f"it does not read `patient file class [source]` with class {', '.join(CLASSES)}: {line.strip()!r}",
            remedy="Use a three-class version of COVIDx (two-class lists say positive and negative)",
        )
    cuts = [
        (line[words[0].start() : words[first - 1].end()], line[words[first].start() : words[i - 1].end()], i)
        for i in at_class
        for first in range(i - 1, 0, -1)
    ]
    readings = [(patient, name, CLASSES.index(words[i].group())) for patient, name, i in cuts]
    existing = [reading for reading in readings if reading[1] in there]
    if len(existing) > 1:
        raise MstlError(
            where,
            why=f"it can be read in {len(existing)} ways, as {first_few([name for _, name, _ in existing])}",
            remedy="Rename the image to a name without spaces",
        )
    return existing[0] if existing else readings[0]
