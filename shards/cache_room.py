"""The size limit of the cache of remote shard sets: who holds what, and which copies give way."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG
from typing import BinaryIO

from shards.errors import MstlError
from shards.files import await_lock, lock_file, locked
from shards.verdicts import LEAKAGE_NAME

PART = ".part"  # ending of a file that is on its way
LOCK_NAME = ".lock"
_COPY_NAME = re.compile("[0-9a-f]{64}")  # the digest of its manifest

_held: dict[Path, BinaryIO] = {}
"""The locks of the copies this process uses: shared, kept until it ends, since DALI opens tars until then."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A file to have in the cache: where, its name in the set, SHA-256 and, where the manifest tells it, size."""

    path: Path
    name: str
    sha256: str
    size_bytes: int | None


@dataclass(frozen=True, slots=True)
class _Held:
    """A file in the cache: where, in which copy, its size and when it was last asked for."""

    path: Path
    copy: Path
    size_bytes: int
    used_ns: int


def hold_and_make_room(entry: Path, wanted: Sequence[Wanted], limit_bytes: int | None) -> None:
    """Keep a copy from being evicted while this process lives, and evict others so that the wanted files fit.

    Least recently used files go first, of copies that no process holds. Jobs that start together each see only what
    has come already, so that they may pass the limit together. Raises MstlError with the numbers for what cannot fit.
    """
    with locked(entry.parent / LOCK_NAME):  # all locks of copies are taken under it: letting one go leaves no gap
        mine = _held.pop(entry, None)
        if mine is not None:
            mine.close()
        alone = _is_free(entry)
        _held[entry] = os.fdopen(await_lock(entry / LOCK_NAME, shared=True), "rb")
        if limit_bytes is not None and wanted:
            _make_room(entry, wanted, limit_bytes, alone=alone)
        _check_disk(entry, wanted)


def _make_room(entry: Path, wanted: Sequence[Wanted], limit_bytes: int, *, alone: bool) -> None:
    needed = sum(file.size_bytes or 0 for file in wanted)
    if needed > limit_bytes:
        raise _too_small(entry, f"the splits take {_gb(needed)}, the limit is {_gb(limit_bytes)}")
    kept = {path for file in wanted for path in (file.path, file.path.with_name(file.path.name + PART))}
    others = [file for copy in _copies(entry.parent) for file in _files(copy) if file.path not in kept]
    excess = needed + sum(file.size_bytes for file in others) - limit_bytes
    free = {copy: alone if copy == entry else _is_free(copy) for copy in {file.copy for file in others}}
    # Manifests, beside which nothing else may be left, go last.
    for file in sorted(others, key=lambda file: (file.path.parent == file.copy, file.used_ns, file.path)):
        if excess > 0 and free[file.copy]:
            file.path.unlink(missing_ok=True)
            excess -= file.size_bytes
    if excess > 0:
        numbers = f"the splits take {_gb(needed)}, the limit is {_gb(limit_bytes)}"
        raise _too_small(entry, f"{numbers}, and running jobs hold {_gb(excess + limit_bytes - needed)} of other data")


def _copies(place: Path) -> list[Path]:
    """The copies in the cache; whatever else lies in that folder is none of ours to remove."""
    return [path.parent for path in place.glob(f"*/{LOCK_NAME}") if _COPY_NAME.fullmatch(path.parent.name)]


def _files(copy: Path) -> Iterator[_Held]:
    for path in copy.rglob("*"):
        with suppress(FileNotFoundError):  # a download of this very set may end meanwhile
            about = path.stat()
            # Verdicts are no copy where the store takes none: nothing would bring them back.
            if path.name not in (LOCK_NAME, LEAKAGE_NAME) and S_ISREG(about.st_mode):
                yield _Held(path, copy, about.st_size, about.st_mtime_ns)


def _is_free(copy: Path) -> bool:
    if copy in _held:
        return False
    lock = lock_file(copy / LOCK_NAME)
    if lock is None:
        return False
    os.close(lock)
    return True


def _check_disk(entry: Path, wanted: Sequence[Wanted]) -> None:
    missing = 0
    for file in wanted:
        if file.size_bytes is not None and not file.path.is_file():
            part = file.path.with_name(file.path.name + PART)
            missing += file.size_bytes - (part.stat().st_size if part.is_file() else 0)
    free = shutil.disk_usage(entry).free
    if missing > free:
        raise MstlError(
            f"cache {entry.parent}",
            why=f"{_gb(missing)} are still to come, and its disk has {_gb(free)} free",
            remedy="Make room, name a folder on another disk with --cache, or read s3:// directly (without --cache)",
        )


def _too_small(entry: Path, why: str) -> MstlError:
    return MstlError(
        f"cache {entry.parent}",
        why=why,
        remedy="Raise --cache-limit, name another folder with --cache, or read s3:// directly (without either)",
    )


def _gb(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:,.3f} GB ({size_bytes:,} bytes)"
