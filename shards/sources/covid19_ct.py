"""COVID19-CT (UCSD COVID-CT): zips or folders of slices, the official split lists, patients from the info tables."""

from __future__ import annotations

import csv
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from shards.errors import MstlError
from shards.schema import SPLITS
from shards.sources.blob import Blob
from shards.sources.listing import (
    Item,
    Listing,
    file_blob,
    first_few,
    image_files,
    make_listing,
    named_like_image,
    need_folder,
)

CLASSES = ("NonCOVID", "COVID")  # COVID is 1, the positive class
LAYOUT = (
    "Images-processed/CT_COVID.zip and CT_NonCOVID.zip (or unpacked folders), "
    "Data-split/{COVID,NonCOVID}/{train,val,test}CT_*.txt, Info/*-CT-MetaInfo.csv"
)
EXPECTED = {"train": 425, "val": 118, "test": 203}  # paper §6.1; the official split files hold the same


def read(root: Path) -> Listing:
    """List COVID19-CT by its official split; the test lists and the info tables may be missing.

    Raises MstlError for missing train or val lists, listed slices that are not there, and slices in two splits.
    """
    need_folder("covid19-ct", root, LAYOUT)
    items: list[Item] = []
    notes: list[str] = []
    no_test: list[str] = []
    unlisted = 0
    for label, name in enumerate(CLASSES):
        there = dict(_images(root, name))
        patients = _patients(root, name)
        listed: set[str] = set()
        for split in SPLITS:
            path = root / "Data-split" / name / f"{split}CT_{name}.txt"
            if split == "test" and not path.is_file():
                no_test.append(path.name)
                continue
            names = _read_list(path, there, listed)
            listed.update(names)
            items += [_item(there[file], file, split, label, patients.get(file)) for file in names]
        unlisted += len(there.keys() - listed)
    if no_test:
        effect = "no test split" if len(no_test) == len(CLASSES) else "a test split of one class only"
        notes.append(f"there is no {' and no '.join(no_test)}, so the shard set gets {effect}")
    if unlisted:
        notes.append(f"{unlisted} slices stand in no split list and were left out")
    unknown = sum(item.patient is None for item in items)
    if unknown:
        notes.append(f"the info tables name the patient of {len(items) - unknown} of {len(items)} slices only")
    return make_listing(
        source="covid19-ct",
        root=root,
        layout=LAYOUT,
        modality="ct",
        classes=CLASSES,
        items=items,
        expected=EXPECTED,
        notes=notes,
    )


def _item(found: tuple[str, Blob], file: str, split: str, label: int, patient: str | None) -> Item:
    origin, blob = found
    return Item(key=PurePosixPath(file).stem, split=split, label=label, patient=patient, blob=blob, origin=origin)


def _images(root: Path, name: str) -> Iterator[tuple[str, tuple[str, Blob]]]:
    """File name → (origin, blob) of one class, from the zip or else the folder."""
    archive, folder = root / "Images-processed" / f"CT_{name}.zip", root / "Images-processed" / f"CT_{name}"
    if archive.is_file():
        try:
            with zipfile.ZipFile(archive) as opened:
                members = opened.infolist()
        except zipfile.BadZipFile as error:
            raise MstlError(str(archive), why=f"it is not a whole zip ({error})", remedy="Download it again") from error
        for member in members:
            path = PurePosixPath(member.filename)
            # macOS packs a second tree of hidden files that end like the images.
            if not member.is_dir() and named_like_image(path.name):
                origin = f"{archive.relative_to(root).as_posix()}/{member.filename}"
                yield path.name, (origin, Blob(str(archive), member.file_size, member.filename))
    elif folder.is_dir():
        for file in image_files(folder):
            yield file.name, (file.relative_to(root).as_posix(), file_blob(file))
    else:
        raise MstlError(
            f"{name} slices in {root}",
            why=f"there is neither {archive.relative_to(root)} nor a folder of that name",
            remedy=f"Expected there: {LAYOUT}",
        )


def _read_list(path: Path, there: dict[str, tuple[str, Blob]], taken: set[str]) -> list[str]:
    """The file names of a split list, checked against the images and against the lists read before."""
    if not path.is_file():
        raise MstlError(f"split list {path}", why="there is no such file", remedy=f"Expected: {LAYOUT}")
    names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    missing = [name for name in names if name not in there]
    if missing:
        raise MstlError(
            str(path),
            why=f"{len(missing)} of {len(names)} listed slices are not among the images: {first_few(missing)}",
            remedy="Add them, or take their lines out of the list",
        )
    again = [name for name in names if name in taken]
    if again or len(set(names)) < len(names):
        raise MstlError(
            str(path),
            why=f"slices are listed twice or stand in another split too: {first_few(again) or 'within this list'}",
            remedy="Leave each slice in one split",
        )
    return names


def _patients(root: Path, name: str) -> dict[str, str]:
    """File name → patient id of one class from its info table; empty without the table.

    The two tables name their columns differently ("File name", "Patient ID"; "image name", "patient id").
    """
    path = root / "Info" / f"{name}-CT-MetaInfo.csv"
    if not path.is_file():
        return {}
    try:
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            rows = list(csv.reader(file))
    except csv.Error as error:
        raise MstlError(
            str(path),
            why=f"it cannot be read as a table ({error})",
            remedy="Use the table as published, or remove it to convert without patients",
        ) from error
    header = [cell.strip().lower() for cell in rows[0]] if rows else []
    name_at = next((header.index(title) for title in ("file name", "image name") if title in header), None)
    if name_at is None or "patient id" not in header:
        raise MstlError(
            str(path),
            why="it has no columns for the file name and the patient id",
            remedy="Use the table as published, or remove it to convert without patients",
        )
    patient_at = header.index("patient id")
    last = max(name_at, patient_at)
    cells = [(row[name_at].strip(), row[patient_at].strip()) for row in rows[1:] if len(row) > last]
    return {file_name: patient for file_name, patient in cells if file_name and patient}
