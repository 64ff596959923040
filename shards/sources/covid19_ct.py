"""COVID19-CT (UCSD COVID-CT): zips or folders of slices, the official split lists, patients from the info tables."""

from __future__ import annotations

import csv
from pathlib import Path, PurePosixPath

from shards.errors import MstlError
from shards.progress import QUIET, Progress
from shards.schema import SPLITS
from shards.source_options import NO_OPTIONS, SourceOptions
from shards.sources.archives import zip_members
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


def read(root: Path, options: SourceOptions = NO_OPTIONS, progress: Progress = QUIET) -> Listing:
    """List COVID19-CT by its official split; the test lists and the info tables may be missing.

    Unpacked slices may be symbolic links. Raises MstlError for missing train or val lists, listed slices that are not
    there, slices in two splits, and two slices of one name.
    """
    options.refuse_others("covid19-ct")
    need_folder("covid19-ct", root, LAYOUT)
    items: list[Item] = []
    notes: list[str] = []
    no_test: list[str] = []
    unlisted = 0
    progress.start(len(CLASSES), "listing covid19-ct")
    for label, name in enumerate(CLASSES):
        there = _images(root, name)
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
        progress.advance()
    if len(no_test) == 1:
        notes.append(f"there is no {no_test[0]}, so the shard set gets a test split of one class only")
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
        absent={"test": f"there is no {' and no '.join(no_test)}"} if no_test else None,
        notes=notes,
    )


def _item(found: tuple[str, Blob], file: str, split: str, label: int, patient: str | None) -> Item:
    origin, blob = found
    return Item(key=PurePosixPath(file).stem, split=split, label=label, patient=patient, blob=blob, origin=origin)


def _images(root: Path, name: str) -> dict[str, tuple[str, Blob]]:
    """File name → (origin, blob) of one class, from the zip or else the folder."""
    archive, folder = root / "Images-processed" / f"CT_{name}.zip", root / "Images-processed" / f"CT_{name}"
    if archive.is_file():
        place = archive.relative_to(root).as_posix()
        found = [  # without the second tree of hidden files that macOS packs, which end like the images
            (f"{place}/{member.filename}", Blob(str(archive), member.file_size, member.filename))
            for member in zip_members(archive)
            if named_like_image(PurePosixPath(member.filename).name)
        ]
    elif folder.is_dir():
        found = [(file.relative_to(root).as_posix(), file_blob(file)) for file in image_files(folder)]
    else:
        raise MstlError(
            f"{name} slices in {root}",
            why=f"there is neither {archive.relative_to(root)} nor a folder of that name",
            remedy=f"Expected there: {LAYOUT}",
        )
    images = {PurePosixPath(origin).name: (origin, blob) for origin, blob in found}
    if len(images) < len(found):
        again = next(origin for origin, blob in found if images[PurePosixPath(origin).name][0] != origin)
        raise MstlError(
            f"{name} slices in {root}",
            why=f"two have the name {PurePosixPath(again).name}, and the split lists give names alone",
            remedy="Use the archive as published, or keep the right one",
        )
    return images


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
