"""Holding a shard set against its manifest: quickly before it is used, and byte by byte when it is asked."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from shards.check import Refused, check_bytes
from shards.errors import MstlError
from shards.files import sha256_file
from shards.index import Component, IndexedSample, read_index
from shards.progress import QUIET, Progress
from shards.read import IMAGE_EXTENSIONS
from shards.schema import Manifest, Shard
from shards.tar import BLOCK_BYTES, ustar_header

_OTHER_CONTENT = "its content is not what the manifest describes"
REMEDY = "Copy the set again from where it is whole, or convert the data again with mstl shard --force"


@dataclass(frozen=True, kw_only=True, slots=True)
class Damage:
    """A file of a shard set that is not as it was written.

    path: relative to the set. why: what is wrong. samples: keys of the samples found damaged in a tar, which may be
    none: padding and the end of a tar belong to no sample.
    """

    path: str
    why: str
    samples: tuple[str, ...] = ()


def check_files(folder: Path, manifest: Manifest, splits: Iterable[str] | None = None) -> None:
    """Check that every tar is there with its size and every index with its content; cheap, the tars are not read.

    splits: those to look at, by default all. Raises MstlError naming the first file that is not as written.
    """
    damages = []
    for shard in _shards(manifest, splits):
        damages += _of_index(folder, shard)
        why = _wrong_size(folder / shard.path, shard.bytes)
        damages += [Damage(path=shard.path, why=why)] if why else []
    if damages:
        raise damaged_set(folder, damages)


def check_content(folder: Path, manifest: Manifest, split: str, progress: Progress = QUIET) -> None:
    """Check the SHA-256 of every tar and index of a split; raises MstlError naming the first that differs."""
    shards = manifest.shards(split)
    progress.start(len(shards), f"checking {split} shards")
    for shard in shards:
        for path, sha256, size_bytes in (
            (shard.path, shard.sha256, shard.bytes),
            (shard.index, shard.index_sha256, None),
        ):
            why = _difference(folder / path, sha256, size_bytes)
            if why:
                raise MstlError(f"shard {folder / path}", why=why, remedy=REMEDY)
        progress.advance()


def find_damage(folder: Path, manifest: Manifest, progress: Progress = QUIET) -> list[Damage]:
    """Read the whole set and return what is not as it was written, naming the samples of a damaged tar."""
    shards = _shards(manifest, None)
    progress.start(len(shards), "checking shards")
    damages: list[Damage] = []
    for shard in shards:
        of_index = _of_index(folder, shard)
        why = _difference(folder / shard.path, shard.sha256, shard.bytes)
        if why:
            known = not of_index and (folder / shard.path).is_file()
            samples = tuple(_damaged_samples(folder, shard, manifest.options.get("resize"))) if known else ()
            damages.append(Damage(path=shard.path, why=why, samples=samples))
        damages += of_index
        progress.advance()
    return damages


def _shards(manifest: Manifest, splits: Iterable[str] | None) -> list[Shard]:
    if splits is None:
        return [shard for shards in manifest.splits.values() for shard in shards]
    return [shard for split in splits for shard in manifest.shards(split)]


def _of_index(folder: Path, shard: Shard) -> list[Damage]:
    why = _difference(folder / shard.index, shard.index_sha256, None)
    return [Damage(path=shard.index, why=why)] if why else []


def _difference(path: Path, sha256: str, size_bytes: int | None) -> str | None:
    """What is wrong with a file, None when it is as the manifest says; its size where the manifest knows it."""
    wrong_size = _wrong_size(path, size_bytes)
    if wrong_size:
        return wrong_size
    try:
        return None if sha256_file(path) == sha256 else _OTHER_CONTENT
    except OSError as error:
        return f"it cannot be read ({error})"


def _wrong_size(path: Path, size_bytes: int | None) -> str | None:
    if not path.is_file():
        return "it is missing"
    found = path.stat().st_size
    return None if size_bytes in (None, found) else f"it has {found} bytes and was written with {size_bytes}"


def _damaged_samples(folder: Path, shard: Shard, resize: int | None) -> Iterator[str]:
    """The keys of the samples in a tar that are not as they were written; the index is known to be whole."""
    try:
        with (folder / shard.path).open("rb") as file:
            for sample_id, sample in enumerate(read_index(folder / shard.index), start=shard.first_id):
                if not _is_whole(file, sample, sample_id, resize):
                    yield sample[0].name.rpartition(".")[0]
    except OSError:  # the disk refuses: which samples it hits cannot be told
        return


def _is_whole(file: BinaryIO, sample: IndexedSample, sample_id: int, resize: int | None) -> bool:
    parts: dict[str, bytes] = {}
    for component in sample:
        if not _header_stands(file, component):
            return False
        parts[component.ext] = file.read(component.size)
    try:
        about = json.loads(parts["json"])
        numbers = (int(parts["cls"]), *struct.unpack("<2q", parts["i64"]))
        if numbers != (about["label"], sample_id, about["label"]):
            return False
        return all(_image_stands(ext, parts[ext], about, resize) for ext in IMAGE_EXTENSIONS if ext in parts)
    except (ValueError, TypeError, KeyError, struct.error):
        return False


def _header_stands(file: BinaryIO, component: Component) -> bool:
    """Whether the header before a component is the one we write; leaves the file at the component."""
    file.seek(component.offset - BLOCK_BYTES)
    return file.read(BLOCK_BYTES) == ustar_header(component.name, component.size)


def _image_stands(ext: str, data: bytes, about: dict[str, Any], resize: int | None) -> bool:
    if hashlib.sha256(data).hexdigest() == about["sha256"]:
        return True
    # A JPEG that was not brought down to `resize` is stored as it came, so its digest must be that of the source. What
    # was written anew cannot be compared with the source; there decoding tells, and a PNG has checksums of its own.
    as_it_came = ext == "jpg" and (resize is None or min(about["width"], about["height"]) <= resize)
    return not as_it_came and not isinstance(check_bytes(data), Refused)


def damaged_set(folder: Path, damages: Sequence[Damage]) -> MstlError:
    """The error that sums up the damages of a set (at least one)."""
    return MstlError(
        f"shard set {folder}",
        why=f"{len(damages)} of its files are not as they were written, first {damages[0].path}: {damages[0].why}",
        remedy=REMEDY,
    )


def describe_samples(damage: Damage, most: int) -> str:
    """The damaged samples of a tar in words: "2 samples: a, b"; at most so many are named."""
    count, more = len(damage.samples), ", ..." if len(damage.samples) > most else ""
    return f"{count} sample{'s' if count != 1 else ''}: {', '.join(damage.samples[:most])}{more}"
