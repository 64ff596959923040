"""What a source reader returns: every image with its place, split, label and patient, before anything is decoded."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from shards.errors import MstlError
from shards.sample import MARK_NAME
from shards.schema import SPLITS
from shards.sources.blob import Blob

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".gif", ".webp"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One labelled image of a source. `origin` is its path relative to the root, archives counted as folders.

    patient is None where the source does not know it.
    """

    key: str
    split: str
    label: int
    patient: str | None
    blob: Blob
    origin: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Listing:
    """All images of a source.

    modality: "natural", "cxr" or "ct". expected: the known number of images per split, where there is one.
    notes: what the user should hear about. carve_val: the source has no validation split, and one may be carved.
    """

    source: str
    modality: str
    classes: tuple[str, ...]
    items: tuple[Item, ...]
    expected: Mapping[str, int] | None
    notes: tuple[str, ...]
    carve_val: bool = False

    def digest(self) -> str:
        """SHA-256 over everything listed, in an order that does not depend on the file system."""
        digest = hashlib.sha256(json.dumps([self.source, self.modality, self.classes, self.carve_val]).encode())
        for item in sorted(self.items, key=lambda item: item.origin):
            line = [item.origin, item.key, item.split, item.label, item.patient, item.blob.size]
            digest.update(json.dumps(line).encode())
        return digest.hexdigest()


def make_listing(
    *,
    source: str,
    root: Path,
    layout: str,
    modality: str,
    classes: Iterable[str],
    items: Iterable[Item],
    expected: Mapping[str, int] | None = None,
    notes: Iterable[str] = (),
    carve_val: bool = False,
) -> Listing:
    """Put a listing together: refuses one without training images or with an image twice.

    Notes unexpected counts, and patients that stand in more than one split.

    Generated data is named so ("covid19-ct (sample)") in all that is made of it, and no published counts apply to it.
    """
    if (root / MARK_NAME).is_file():
        source, expected = f"{source} (sample)", None
    classes, items, notes = tuple(classes), tuple(items), list(notes)
    counts = Counter(item.split for item in items)
    if not counts["train"]:
        raise MstlError(f"source {source} in {root}", why="it has no training images", remedy=f"Expected: {layout}")
    twice = [origin for origin, count in Counter(item.origin for item in items).items() if count > 1]
    if twice:
        raise MstlError(
            f"source {source} in {root}",
            why=f"{len(twice)} images are listed twice, first {twice[0]}",
            remedy="Leave each image in one split and one class",
        )
    in_train = {item.label for item in items if item.split == "train"}
    empty = [name for label, name in enumerate(classes) if label not in in_train]
    if empty:
        notes.append(f"{len(empty)} of {len(classes)} classes have no training image: {first_few(empty)}")
    straddling = _straddling(items)
    if straddling:
        patient, splits = next(iter(straddling.items()))
        notes.append(
            f"{len(straddling)} patients stand in more than one split (first: {patient} in {' and '.join(splits)}), "
            "so figures measured on this data will look better than they are on new patients"
        )
    for split in SPLITS:
        known = (expected or {}).get(split, counts[split])
        if counts[split] and counts[split] != known:
            notes.append(f"{split} has {counts[split]} images, the published split has {known}")
    return Listing(
        source=source, modality=modality, classes=classes, items=items,
        expected=expected, notes=tuple(notes), carve_val=carve_val,
    )  # fmt: skip


def _straddling(items: Iterable[Item]) -> dict[str, list[str]]:
    """Patient → splits of the patients that stand in more than one, by patient."""
    seen: dict[str, set[str]] = defaultdict(set)
    for item in items:
        if item.patient is not None:
            seen[item.patient].add(item.split)
    return {patient: sorted(seen[patient], key=SPLITS.index) for patient in sorted(seen) if len(seen[patient]) > 1}


def need_folder(source: str, root: Path, layout: str) -> None:
    """Raise MstlError unless the root of a source is a folder with something in it."""
    if not root.is_dir():
        why = "it is not a folder" if root.exists() else "there is no such folder"
    elif not any(root.iterdir()):
        why = "the folder is empty"
    else:
        return
    raise MstlError(f"source {source} in {root}", why=why, remedy=f"Give --root; expected there: {layout}")


def class_folders(folder: Path) -> list[Path]:
    """The visible folders in a folder, by name."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def image_files(folder: Path) -> list[Path]:
    """The visible files in a folder that are named like images, by name."""
    return sorted(path for path in folder.iterdir() if named_like_image(path.name) and path.is_file())


def named_like_image(name: str) -> bool:
    """Whether a file name is visible and ends like an image; what the file really holds is found out by decoding."""
    return not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES


def file_blob(path: Path) -> Blob:
    """The blob of a whole file."""
    return Blob(str(path), path.stat().st_size)


def first_few(names: Iterable[str], count: int = 3) -> str:
    """The first few names, for a message."""
    names = list(names)
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")
