"""Holding a shard set against its manifest: quickly before it is used, and byte by byte when it is asked."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from shards.errors import MstlError
from shards.files import sha256_file
from shards.index import IndexedSample, read_index
from shards.job import CHECKSUM_NAME, with_checksum
from shards.parallel import ordered_map
from shards.progress import QUIET, Progress
from shards.read import IMAGE_EXTENSIONS
from shards.schema import QUARANTINE_NAME, SPLITS, Manifest, Shard
from shards.tar import BLOCK_BYTES, ustar_header

_OTHER_CONTENT = "its content is not what the manifest describes"
REMEDY = "Copy the set again from where it is whole, or convert the data again with mstl shard --force"


@dataclass(frozen=True, kw_only=True, slots=True)
class Damage:
    """A file of a shard set that is not as it was written.

    path: relative to the set. why: what is wrong. samples: keys of the samples found damaged in a tar, which may be
    none: the end of a tar belongs to no sample, and without a whole index samples cannot be told.
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


def find_damage(folder: Path, manifest: Manifest, progress: Progress = QUIET, *, workers: int = 1) -> list[Damage]:
    """Read the whole set and return what is not as it was written, naming the samples of a damaged tar."""
    shards = _shards(manifest, None)
    jobs = [(str(folder), shard) for shard in shards]
    progress.start(len(jobs), "checking shards")
    damages: list[Damage] = []
    with closing(ordered_map(_of_shard, jobs, workers=workers)) as found:
        for (_, shard), some in zip(jobs, found, strict=True):
            damages += some
            progress.advance(size_bytes=shard.bytes)
    why = _difference(folder / QUARANTINE_NAME, manifest.quarantine_sha256, None)
    return [*damages, *([Damage(path=QUARANTINE_NAME, why=why)] if why else []), *_strays(folder, shards)]


def _strays(folder: Path, shards: Iterable[Shard]) -> Iterator[Damage]:
    """Files in the folders of the splits that belong to no shard: other readers would take them for samples."""
    named = {path for shard in shards for path in (shard.path, shard.index)}
    for split in SPLITS:
        for path in sorted((folder / split).iterdir()) if (folder / split).is_dir() else ():
            name = path.relative_to(folder).as_posix()
            if name not in named:
                yield Damage(path=name, why="it is no part of the set")


def _of_shard(job: tuple[str, Shard]) -> list[Damage]:
    return damage_of_shard(Path(job[0]), job[1])


def damage_of_shard(folder: Path, shard: Shard) -> list[Damage]:
    """What is not as it was written of one tar and its index."""
    of_index = _of_index(folder, shard)
    why = _difference(folder / shard.path, shard.sha256, shard.bytes)
    if not why:
        return of_index
    known = not of_index and (folder / shard.path).is_file()
    samples = tuple(_damaged_samples(folder, shard)) if known else ()
    return [Damage(path=shard.path, why=why, samples=samples), *of_index]


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


def _damaged_samples(folder: Path, shard: Shard) -> Iterator[str]:
    """The keys of the samples in a tar that are not as they were written; the index is known to be whole."""
    try:
        with (folder / shard.path).open("rb") as file:
            for sample_id, sample in enumerate(read_index(folder / shard.index), start=shard.first_id):
                if not _is_whole(file, sample, sample_id):
                    yield sample[0].name.rpartition(".")[0]
    except OSError:  # the disk refuses: which samples it hits cannot be told
        return


def _is_whole(file: BinaryIO, sample: IndexedSample, sample_id: int) -> bool:
    """Whether every byte of a sample is as it was written: headers, padding, and the parts, which know each other."""
    parts: dict[str, bytes] = {}
    for component in sample:
        file.seek(component.offset - BLOCK_BYTES)
        if file.read(BLOCK_BYTES) != ustar_header(component.name, component.size):
            return False
        parts[component.ext] = file.read(component.size)
        if file.read(-component.size % BLOCK_BYTES).strip(b"\0"):
            return False
    try:
        about = json.loads(parts["json"])
        stored = {name: value for name, value in about.items() if name != CHECKSUM_NAME}
        [image] = [parts[ext] for ext in IMAGE_EXTENSIONS if ext in parts]
        return (
            parts["json"] == with_checksum(stored)
            and parts["cls"] == str(about["label"]).encode()
            and parts["i64"] == struct.pack("<2q", sample_id, about["label"])
            and hashlib.sha256(image).hexdigest() == about["stored_sha256"]
        )
    except (ValueError, TypeError, KeyError, AttributeError, struct.error):
        return False


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
