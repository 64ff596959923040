"""Putting a finished shard set into a store, so that readers see all of it or nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from threading import Event

from shards.cache import read_manifest
from shards.errors import MstlError
from shards.progress import QUIET, Progress
from shards.remote_store import Gone, Store, in_threads, open_store, scheme
from shards.schema import MANIFEST_NAME, load_manifest
from shards.verdicts import LEAKAGE_NAME, Verdict, format_verdicts, parse_verdicts, read_verdicts, worse_last
from shards.verify import check_files

MARK_NAME = ".upload.json"
"""Put first: it says whose place this is before the manifest, which comes last, can say it."""


def upload(folder: Path, url: str, progress: Progress = QUIET, *, force: bool = False) -> None:
    """Put the shard set of a folder at a URL: tars and indexes first, the manifest last.

    Repeated after an interruption, it leaves out the tars and indexes of the same build that are there with their size.
    force: put every file anew, and replace another build that lies there; readers find no set until the new one is
    whole, and files that only the old one had stay. Verdicts on leakage join those that lie there. Raises MstlError for
    another build without force, other files where no set lies, a set that is not whole and what the store refuses.
    """
    manifest = load_manifest(folder)
    check_files(folder, manifest)
    text = (folder / MANIFEST_NAME).read_bytes()
    digest = hashlib.sha256(text).hexdigest()
    store = open_store(url)
    if scheme(url) in ("file", "local") and Path(store.root).resolve() == folder.resolve():
        raise MstlError(store.named(""), why="it is the folder of the set itself", remedy="Name another place")
    there = store.sizes()
    owner = _owner(store, there)
    if owner not in (None, digest) and not force:
        raise MstlError(
            store.named(""),
            why=f"another build of a shard set lies there or is on its way there (digest {owner}, this one {digest})",
            remedy="Name another URL, or replace what is there with --force",
        )
    names = [name for shards in manifest.splits.values() for shard in shards for name in (shard.path, shard.index)]
    sizes = {name: (folder / name).stat().st_size for name in names}
    if owner is None and there:
        raise MstlError(
            store.named(""),
            why=f"{len(there):,} files lie there that are no shard set, first {min(there)}",
            remedy="Name an empty place, or one that is not there yet",
        )
    if owner != digest or force:
        # What lies under our names is another's, also after an interruption, when the mark will be ours.
        for name in (MANIFEST_NAME, MARK_NAME):
            if name in there:
                store.remove(name)
        old = [name for name in names if name in there]
        progress.start(len(old), "removing the old build")
        for _ in in_threads(lambda name, _: store.remove(name), old):
            progress.advance()
        there = {}
    if MARK_NAME not in there:
        store.write(MARK_NAME, json.dumps({"manifest": digest}).encode())
    # The files beside the manifest are small and may have changed since: a leakage verdict belongs to no build.
    beside = [path.name for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith(".")]
    todo = [name for name in beside if name not in (MANIFEST_NAME, LEAKAGE_NAME)]
    todo += [name for name, size in sizes.items() if there.get(name) != size]

    def put(name: str, stop: Event) -> int:  # noqa: ARG001 - a file once begun is put whole: stores have no half ones
        store.put(name, folder / name)
        return (folder / name).stat().st_size

    progress.start(len(todo), "uploading files")
    for size in in_threads(put, todo):
        progress.advance(size_bytes=size)
    _check_sizes(store, sizes)
    verdicts = read_verdicts(folder, manifest.digest())
    if verdicts:
        merged = worse_last([*_verdicts_there(store, manifest.digest()), *verdicts])
        store.write(LEAKAGE_NAME, format_verdicts(manifest.digest(), merged))
    store.write(MANIFEST_NAME, text)


def publish_verdicts(folder: Path, url: str, verdicts: Iterable[Verdict]) -> None:
    """Put what is known of leakage beside a set at a URL, of which the folder holds a copy with its verdicts.

    Verdicts that lie there stay but for those that these, made just now, replace. A store has no locks: of two that
    publish at the same moment one may be lost there, not in the copies. Raises MstlError for a set that has changed
    meanwhile and where the store refuses.
    """
    store = open_store(url)
    digest = load_manifest(folder).digest()
    if read_manifest(store)[1].digest() != digest:
        raise MstlError(store.named(LEAKAGE_NAME), why="the set there has changed meanwhile", remedy="Check it again")
    known = worse_last([*_verdicts_there(store, digest), *read_verdicts(folder, digest)])
    store.write(LEAKAGE_NAME, format_verdicts(digest, [*known, *verdicts]))


def _verdicts_there(store: Store, digest: str) -> list[Verdict]:
    try:
        return parse_verdicts(store.read(LEAKAGE_NAME), digest, store.named(LEAKAGE_NAME), store.named(""))
    except Gone:
        return []


def _owner(store: Store, there: dict[str, int]) -> str | None:
    """Digest of the manifest that the place belongs to, by what readers find there; None where it is free."""
    if MANIFEST_NAME in there:
        return hashlib.sha256(store.read(MANIFEST_NAME)).hexdigest()
    if MARK_NAME not in there:
        return None
    try:
        return str(json.loads(store.read(MARK_NAME))["manifest"])
    except (ValueError, KeyError, TypeError):
        return "unknown"


def _check_sizes(store: Store, sizes: dict[str, int]) -> None:
    there = store.sizes()
    for name, size in sizes.items():
        if there.get(name) != size:
            raise MstlError(
                store.named(name),
                why=f"the store holds {there.get(name, 0)} bytes of it after the upload, it has {size}",
                remedy="Repeat the command; see that nobody else writes there",
            )
