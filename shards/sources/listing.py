"""What a source reader returns: every image with its place, split, label and patient, before anything is decoded."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from shards.errors import MstlError
from shards.progress import Progress
from shards.sample import MARK_NAME
from shards.schema import SPLITS
from shards.sources.blob import Blob, Readable

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".gif", ".webp"})
# Control characters, ends of lines and halves of characters; spaces of any kind are well.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One labelled image of a source. `origin` is its path relative to the root, archives counted as folders.

    patient is None where the source does not know it.
    """

    key: str
    split: str
    label: int
    patient: str | None
    blob: Readable
    origin: str


Unpack = Callable[[Path, int, Progress], "tuple[Item, ...]"]


@dataclass(frozen=True, kw_only=True)  # without slots: the digest of a million items is worth keeping
class Listing:
    """All images of a source.

    modality: "natural", "cxr" or "ct". expected: the known number of images per split, where there is one.
    notes: what the user should hear about. carve_val: the source has no validation split, and one may be carved.
    titles: what classes are called by people, where their names are codes. mismatches: counts that are not the
    published ones, in words. unpack: for images that cannot be read one by one (slices of a compressed volume): puts
    them into a folder with so many worker processes, and returns the same items in the same order with their blobs
    there; called again after an interruption, it goes on. rendering: how pixels are made where the reader makes them
    (the window and depth of slices), for the same files then give other images.
    """

    source: str
    modality: str
    classes: tuple[str, ...]
    items: tuple[Item, ...]
    expected: Mapping[str, int] | None
    notes: tuple[str, ...]
    carve_val: bool = False
    titles: Mapping[str, str] = field(default_factory=dict)
    mismatches: tuple[str, ...] = ()
    unpack: Unpack | None = None
    rendering: str = ""

    @cached_property
    def digest(self) -> str:
        """SHA-256 over everything listed, in an order that does not depend on the file system."""
        digest = hashlib.sha256(
            json.dumps([self.source, self.modality, self.classes, self.carve_val, self.rendering]).encode()
        )
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
    absent: Mapping[str, str] | None = None,
    notes: Iterable[str] = (),
    carve_val: bool = False,
    titles: Mapping[str, str] | None = None,
    unpack: Unpack | None = None,
    rendering: str = "",
) -> Listing:
    """Put a listing together: refuses one without training images, with an image twice, or with unprintable names.

    Tells unexpected counts (`mismatches`), and notes patients that stand in more than one split. absent: why a split
    may have no image, in words; a split that is absent is told once: as a mismatch where it was expected, else noted.

    Generated data is named so ("covid19-ct (sample)") in all that is made of it, and no published counts apply to it.
    """
    if (root / MARK_NAME).is_file():
        source, expected = f"{source} (sample)", None
    classes, items, notes = tuple(classes), tuple(items), list(notes)
    counts = Counter(item.split for item in items)
    for name in classes:
        refuse_unprintable(f"source {source} in {root}", "class", name)
    for item in items:
        # Of paths, a name that is not UTF-8 is fine: it stays the bytes it is (`os.fsencode`).
        refuse_unprintable(f"image of {source} in {root}", "path", item.origin.encode("utf-8", "ignore").decode())
        refuse_unprintable(f"image {item.origin} of {source} in {root}", "patient", item.patient or "")
    if not counts["train"]:
        why = "; ".join(("it has no training images", *notes))
        raise MstlError(f"source {source} in {root}", why=why, remedy=f"Expected: {layout}")
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
    published, absent = expected or {}, absent or {}
    notes += [_missing(split, why) for split, why in absent.items() if not counts[split] and split not in published]
    mismatches = [
        f"{split} has {counts[split]:,} images, the published split has {known:,}"
        if counts[split] or split not in absent
        else f"{_missing(split, absent[split])}; the published one has {known:,} images"
        for split, known in published.items()
        if counts[split] != known
    ]
    return Listing(
        source=source, modality=modality, classes=classes, items=items, expected=expected, notes=tuple(notes),
        carve_val=carve_val, titles=titles or {}, mismatches=tuple(mismatches), unpack=unpack,
        rendering=rendering,
    )  # fmt: skip


def _missing(split: str, why: str) -> str:
    return f"{why}, so the shard set gets no {split} split"


def _straddling(items: Iterable[Item]) -> dict[str, list[str]]:
    """Patient → splits of the patients that stand in more than one, by patient."""
    seen: dict[str, set[str]] = defaultdict(set)
    for item in items:
        if item.patient is not None:
            seen[item.patient].add(item.split)
    return {patient: sorted(seen[patient], key=SPLITS.index) for patient in sorted(seen) if len(seen[patient]) > 1}


def refuse_unprintable(where: str, what: str, text: str) -> None:
    """Raise MstlError for a text with control characters or half a character: tables, logs and files choke on them."""
    if not text.isprintable() and (wrong := _UNPRINTABLE.search(text)):
        raise MstlError(
            where,
            why=f"its {what} {text!a} holds {wrong[0]!a}, which is no printable character",
            remedy=f"Correct the {what}",
        )


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
    """The visible folders in a folder, by name, or links to folders; raises MstlError for a link that leads nowhere."""
    paths = [path for path in folder.iterdir() if not path.name.startswith(".")]
    for path in paths:
        if path.is_symlink() and not path.exists():
            raise MstlError(
                str(path),
                why=f"it is a link to {path.readlink()}, which is not there",
                remedy="Mend or remove the link",
            )
    return sorted(path for path in paths if path.is_dir())


def image_files(folder: Path) -> list[Path]:
    """The visible files in a folder that are named like images, by name, or links to files.

    A link that leads nowhere is among them, so that it is told when it is read, not left out unseen.
    """
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if named_like_image(entry.name) and _is_file_or_link(entry)]
    return [folder / name for name in sorted(names)]


def _is_file_or_link(entry: os.DirEntry[str]) -> bool:
    return entry.is_file() or entry.is_symlink()


def named_like_image(name: str) -> bool:
    """Whether a file name is visible and ends like an image; what the file really holds is found out by decoding."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122 (7x faster)


def file_blob(path: Path) -> Blob:
    """The blob of a whole file."""
    return Blob(str(path), path.stat().st_size)


def first_few(names: Iterable[str], count: int = 3) -> str:
    """The first few names, for a message."""
    names = list(names)
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")
