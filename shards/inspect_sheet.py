"""A contact sheet of random samples of a shard set, as many of each class as of any other."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from itertools import chain, zip_longest
from pathlib import Path

from PIL import Image, ImageOps

from shards.errors import MstlError
from shards.files import write_atomic
from shards.progress import QUIET, Progress
from shards.read import Record, iter_records, read_image
from shards.schema import Manifest, load_manifest
from shards.sheet import Cell, contact_sheet

_COLUMNS = 8


def check_sheet_path(path: Path) -> None:
    """Raise MstlError when a sheet cannot be written there; cheap, so ask before the work."""
    if path.suffix.lower() != ".png":
        raise MstlError(f"sheet {path}", why="a sheet is a PNG", remedy="Give it a name that ends in .png")
    if path.is_dir() or not path.parent.is_dir():
        why = "it is a folder" if path.is_dir() else f"there is no folder {path.parent}"
        raise MstlError(f"sheet {path}", why=why, remedy="Name a file in a folder that is there")


def write_sheet(
    folder: Path, path: Path, split: str | None = None, *, count: int = 48, seed: int = 0, progress: Progress = QUIET
) -> int:
    """Draw up to `count` samples, chosen by the seed, sorted by class; returns how many are shown.

    split: where from, by default anywhere. Raises MstlError when the set cannot be read or the sheet not be written.
    """
    check_sheet_path(path)
    manifest = load_manifest(folder)
    records = choose(folder, manifest, split, count=count, seed=seed, progress=progress)
    image = io.BytesIO()
    contact_sheet([_cell(folder, manifest, record) for record in records], columns=_COLUMNS).save(image, "PNG")
    try:
        write_atomic(path, image.getvalue())
    except OSError as error:
        raise MstlError(
            f"sheet {path}", why=f"it cannot be written ({error.strerror})", remedy="Name a place you may write to"
        ) from error
    return len(records)


def choose(
    folder: Path, manifest: Manifest, split: str | None, *, count: int, seed: int, progress: Progress = QUIET
) -> list[Record]:
    """Up to `count` random samples, sorted by class and key, of each class as many as of any other that has as many.

    Where there are more classes than that, of a random choice of them one each. Reads each record once and keeps
    hardly more than are chosen.
    """
    splits = list(manifest.splits) if split is None else [split]
    there = [at for at in range(len(manifest.classes)) if any(manifest.class_counts[name][at] for name in splits)]
    there = sorted(there, key=lambda label: _rank(seed, f"class {label}"))[:count]
    best: dict[int, list[tuple[bytes, Record]]] = {label: [] for label in there}
    progress.start(sum(manifest.samples(name) for name in splits), "choosing samples")
    for record in chain.from_iterable(iter_records(folder, name) for name in splits):
        progress.advance()
        if record.label in best:
            kept = best[record.label]
            kept.append((_rank(seed, f"{record.split}/{record.key}"), record))
            if len(kept) >= 2 * count:  # not after every one: sorting costs
                _cut(kept, count)
    for kept in best.values():
        _cut(kept, count)
    return sorted(_in_turn(best, count), key=lambda record: (record.label, record.key, record.split))


def _in_turn(best: dict[int, list[tuple[bytes, Record]]], count: int) -> Iterator[Record]:
    """One of each class, then a second of each, as far as they go."""
    rounds = zip_longest(*best.values())
    taken = [entry for entries in rounds for entry in entries if entry is not None]
    return (record for _, record in taken[:count])


def _cut(kept: list[tuple[bytes, Record]], count: int) -> None:
    kept.sort(key=lambda entry: entry[0])
    del kept[count:]


def _rank(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}/sheet/{name}".encode()).digest()


def _cell(folder: Path, manifest: Manifest, record: Record) -> Cell:
    about = (manifest.titles.get(record.class_name, record.class_name), record.key,
             f"{record.split}, {record.width} × {record.height}, {record.mode}")  # fmt: skip
    try:
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(read_image(folder, record.sample_id))))
    except (OSError, SyntaxError, ValueError):  # a set may have been built by headers alone
        return Cell(None, (*about, "cannot be decoded"))
    return Cell(image, about)
