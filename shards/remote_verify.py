"""Verifying a shard set at a URL: one shard at a time through a temporary folder, nothing kept."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event

from shards.cache import read_manifest
from shards.progress import QUIET, Progress
from shards.remote_store import Gone, Store, in_threads, open_store
from shards.schema import Manifest, Shard
from shards.verify import Damage, damage_of_shard


def find_remote_damage(url: str, progress: Progress = QUIET) -> tuple[Manifest, list[Damage]]:
    """The manifest of a set at a URL, and what of the set is not as it was written, in the order of the manifest.

    Every tar and index is fetched anew, past the cache, and forgotten: the folder for temporary files holds up to
    THREADS shards at a time. Raises MstlError where the store fails; a file that is not there is damage.
    """
    store = open_store(url)
    _, manifest = read_manifest(store)
    parts = [shard for shards in manifest.splits.values() for shard in shards]
    progress.start(len(parts), "checking shards")
    found: dict[str, list[Damage]] = {}

    def check(shard: Shard, stop: Event) -> tuple[str, list[Damage]]:
        return shard.path, _damage_of(store, shard, stop)

    for path, damages in in_threads(check, parts):
        found[path] = damages
        progress.advance()
    return manifest, [damage for shard in parts for damage in found[shard.path]]


def _damage_of(store: Store, shard: Shard, stop: Event) -> list[Damage]:
    with TemporaryDirectory(prefix="mstl-verify-") as folder:
        for name in (shard.index, shard.path):
            path = Path(folder) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            _copy(store.pieces(name), path, stop)
        return damage_of_shard(Path(folder), shard)


def _copy(pieces: Iterator[bytes], path: Path, stop: Event) -> None:
    """Write what comes; a file that the store does not have leaves none here."""
    try:
        with path.open("wb") as file:
            for piece in pieces:
                if stop.is_set():
                    return
                file.write(piece)
    except Gone:
        path.unlink()
