"""Shard sets read from a URL: a local folder with the manifest, the indexes and, where wanted, the tars."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event
from typing import BinaryIO

from shards.cache_room import PART, Wanted, hold_and_make_room
from shards.errors import MstlError
from shards.files import await_lock, sha256_file, write_atomic
from shards.progress import QUIET, Progress
from shards.remote_store import Gone, Store, in_threads, is_url, open_store, scheme, shown
from shards.schema import MANIFEST_NAME, Manifest, Shard, load_manifest
from shards.verdicts import LEAKAGE_NAME, merge_verdicts

FOLDER_VARIABLE = "MSTL_CACHE"


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheOptions:
    """Where copies of remote shard sets lie and how many bytes they may take together; None: default, no limit."""

    folder: Path | None = None
    limit_bytes: int | None = None

    @property
    def place(self) -> Path:
        """The folder: the one named, else $MSTL_CACHE, else ~/.cache/mstl."""
        return self.folder or Path(os.environ.get(FOLDER_VARIABLE) or Path.home() / ".cache" / "mstl")


def direct_tars(where: str | Path, cache: CacheOptions) -> str | None:
    """The URL under which DALI reads the tars of a set itself, or None where they are read from disk.

    DALI reads s3:// (with the AWS variables and profiles); naming a cache or a limit asks for copies instead.
    """
    if not is_url(where) or cache != CacheOptions():
        return None
    url = str(where).rstrip("/")
    return url if scheme(url) == "s3" and shown(url) == url else None


def local_set(
    where: str | Path,
    *,
    cache: CacheOptions,
    splits: Sequence[str] | None = None,
    tars: bool,
    progress: Progress = QUIET,
) -> Path:
    """The folder to read a shard set from: itself, or for a URL a copy with what is wanted of it.

    splits: those whose indexes, and with `tars` whose tars, are brought; by default all. The manifest always is, and
    the copy is that of the very manifest the store has now: a changed set is another copy. Verdicts on leakage that
    the store has join those beside the copy. Files are checked against the manifest while they come and appear whole;
    a file that another process brings is waited for. What this process has asked for is never evicted while it lives.
    Raises MstlError for whatever the store, the set or the disk refuses.
    """
    if not is_url(where):
        return Path(where)
    store = open_store(str(where))
    text, manifest = read_manifest(store)
    entry = cache.place / manifest.digest()
    shards = _shards(manifest, splits)
    indexes = [Wanted(entry / shard.index, shard.index, shard.index_sha256, None) for shard in shards]
    wanted = [Wanted(entry / shard.path, shard.path, shard.sha256, shard.bytes) for shard in shards] if tars else []
    try:
        entry.mkdir(parents=True, exist_ok=True)
        hold_and_make_room(entry, [*indexes, *wanted], cache.limit_bytes)
        if not (entry / MANIFEST_NAME).is_file():
            write_atomic(entry / MANIFEST_NAME, text)
        with suppress(Gone):
            merge_verdicts(entry, manifest.digest(), store.read(LEAKAGE_NAME), store.named(LEAKAGE_NAME))
        _bring(store, indexes, progress, "fetching indexes")
        _bring(store, wanted, progress, "fetching tars")
    except OSError as error:
        raise MstlError(
            f"cache {cache.place}",
            why=f"it cannot be used ({error.strerror or error})",
            remedy=f"Make room or name another folder with --cache or {FOLDER_VARIABLE}; what has come whole is kept",
        ) from error
    return entry


def bytes_to_fetch(folder: Path, manifest: Manifest, splits: Sequence[str] | None = None) -> int:
    """The size in bytes of the tars of these splits, by default all, that a copy in the cache does not have yet."""
    shards = _shards(manifest, splits)
    wanted = [Wanted(folder / shard.path, shard.path, shard.sha256, shard.bytes) for shard in shards]
    return sum(shard.bytes for shard, tar in zip(shards, wanted, strict=True) if not _is_here(tar))


def check_remote_tars(where: str, manifest: Manifest, splits: Sequence[str]) -> None:
    """Check that every tar of the splits is in the store with its size; raises MstlError naming the first that is not.

    It lists the store and reads no tar.
    """
    store = open_store(where)
    for split in splits:
        shards = manifest.shards(split)
        there: dict[str, int] = {}
        for folder in sorted({shard.path.rpartition("/")[0] for shard in shards}):
            there |= store.sizes(folder)
        for shard in shards:
            _check_size(store, shard.path, there.get(shard.path), shard.bytes)


def read_manifest(store: Store) -> tuple[bytes, Manifest]:
    """The manifest that a store has now, as text and read; raises MstlError as `load_manifest` does."""
    try:
        text = store.read(MANIFEST_NAME)
    except Gone as error:
        raise MstlError(
            f"shard set {store.named('')}",
            why=f"it has no {MANIFEST_NAME}, so it is missing or its upload has not finished: {error.why}",
            remedy="Check the URL, or put the set there with mstl shard --remote",
        ) from error
    with TemporaryDirectory(prefix="mstl-manifest-") as aside:
        (Path(aside) / MANIFEST_NAME).write_bytes(text)
        try:
            return text, load_manifest(Path(aside))
        except MstlError as error:
            raise MstlError(store.named(MANIFEST_NAME), why=error.why, remedy=error.remedy) from error


def _shards(manifest: Manifest, splits: Sequence[str] | None) -> list[Shard]:
    parts = [name for name, shards in manifest.splits.items() if shards] if splits is None else splits
    return [shard for split in parts for shard in manifest.shards(split)]


def _bring(store: Store, wanted: Sequence[Wanted], progress: Progress, what: str) -> None:
    """Fetch the files that are not here yet; mark all of them as used now."""
    missing = [file for file in wanted if not _is_here(file)]
    if missing:
        progress.start(len(missing), what)
    for size in in_threads(lambda file, stop: _fetch(store, file, stop), missing):
        progress.advance(size_bytes=size)
    for file in wanted:
        with suppress(PermissionError):  # of somebody else's in a shared cache
            os.utime(file.path)


def _is_here(file: Wanted) -> bool:
    """Tars are held against their digest when they come and by size from then on, small indexes by digest always."""
    if not file.path.is_file():
        return False
    if file.size_bytes is None:
        return sha256_file(file.path) == file.sha256
    return file.path.stat().st_size == file.size_bytes


def _fetch(store: Store, wanted: Wanted, stop: Event) -> int:
    """Bring one file, alone among all processes of this machine; returns its size in bytes."""
    part = wanted.path.with_name(wanted.path.name + PART)
    part.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(await_lock(part), "wb") as file:
        if _is_here(wanted):
            part.unlink()
            return wanted.path.stat().st_size
        file.truncate(0)  # what a killed process has left
        try:
            _download(store, wanted, file, stop)
            part.replace(wanted.path)
        except BaseException:
            part.unlink()
            raise
    return wanted.path.stat().st_size


def _download(store: Store, wanted: Wanted, file: BinaryIO, stop: Event) -> None:
    digest, size = hashlib.sha256(), 0
    try:
        for piece in store.pieces(wanted.name):
            if stop.is_set():
                raise CancelledError
            digest.update(piece)
            size += len(piece)
            file.write(piece)
    except Gone as error:
        raise _changed(store, wanted.name, "it is missing") from error
    file.flush()
    os.fsync(file.fileno())
    if wanted.size_bytes is not None:
        _check_size(store, wanted.name, size, wanted.size_bytes)
    if digest.hexdigest() != wanted.sha256:
        raise _changed(store, wanted.name, "its content is not what the manifest describes")


def _check_size(store: Store, name: str, found: int | None, expected: int) -> None:
    if found is None:
        raise _changed(store, name, "it is missing")
    if found != expected:
        raise _changed(store, name, f"it has {found} bytes, the manifest says {expected}")


def _changed(store: Store, name: str, why: str) -> MstlError:
    return MstlError(
        f"shard {store.named(name)}",
        why=why,
        remedy=f"Repeat the command; if it stays, check with mstl verify {store.named('')} and upload the set again",
    )
