"""The workspace of a build: a folder beside the target, owned by one build, renamed over the target when whole."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from shards.errors import MstlError
from shards.files import ASIDE_SUFFIX, lock_file, sync, write_atomic
from shards.job import RECORDS_NAME
from shards.schema import MANIFEST_NAME, SPLITS

UNPACKED_NAME = ".unpacked"  # slices of volumes, see Listing.unpack
PART_WAIT_SECONDS = 30.0  # for another part of the same build to lay claim to the workspace
_BUILD_NAME = ".build.json"  # what is being built; marks the folder as ours
_LOCK_NAME = ".lock"
_TORN_MARK = re.compile(rf"\.{re.escape(_BUILD_NAME)}\..+{re.escape(ASIDE_SUFFIX)}")  # as write_atomic names it


def occupied(out: Path) -> bool:
    """Whether a shard set stands at `out`; raises MstlError when something else does, which is never touched."""
    if out.is_mount():
        raise MstlError(
            str(out),
            why="a file system is mounted there, and a finished set is renamed into its place",
            remedy=f"Name a folder in it, such as --out {out / 'set'}",
        )
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    if not (out / MANIFEST_NAME).is_file():
        raise MstlError(
            str(out), why="it is there and is not a shard set, so it is left alone", remedy="Choose another --out"
        )
    return True


@contextmanager
def workspace(out: Path, asked: Mapping[str, Any], *, fresh: bool = False, part: bool = False) -> Iterator[Path]:
    """The folder `<out>.building`, with what an interrupted build of the same left, locked against other builds.

    Finished shards of a different build are never removed but with `fresh`, which also removes what the same left. As
    a `part` it is shared with other parts of the same build. Raises MstlError for them, when another process builds
    there, when the folder is not ours or its mark is damaged, and when `out` holds something that is no shard set.
    """
    occupied(out)  # refuses what `publish` could not replace, before any work
    folder = out.with_name(f"{out.name}.building")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = _lock_part(folder, asked) if part else lock_file(folder / _LOCK_NAME)
    except OSError as error:
        raise MstlError(str(folder), why=f"it cannot be made ({error})", remedy="Choose another --out") from error
    if lock is None:
        raise MstlError(
            str(folder), why="another mstl shard is building it", remedy="Wait for it, or choose another --out"
        )
    try:
        if not part:
            _claim(folder, asked, fresh=fresh)
        yield folder
    finally:
        os.close(lock)


def begun(out: Path) -> bool:
    """Whether a build of `out` has been begun and not been published."""
    return (out.with_name(f"{out.name}.building") / _BUILD_NAME).is_file()


def _lock_part(folder: Path, asked: Mapping[str, Any]) -> int | None:
    """A shared lock on a claimed workspace: the first part that comes claims it alone, the others wait for that."""
    until = time.monotonic() + PART_WAIT_SECONDS
    while time.monotonic() < until:
        lock = lock_file(folder / _LOCK_NAME)
        if lock is not None:
            try:
                _claim(folder, asked, fresh=False)
                fcntl.flock(lock, fcntl.LOCK_SH)
            except BaseException:
                os.close(lock)
                raise
        else:
            lock = lock_file(folder / _LOCK_NAME, shared=True)
        if lock is not None:
            # Turning the lock into a shared one lets go of it for a moment, in which another build may have come.
            if (folder / _BUILD_NAME).exists():
                try:
                    _check_mark(folder, asked)
                except BaseException:
                    os.close(lock)
                    raise
                return lock
            os.close(lock)
        time.sleep(0.1)
    return None


def _claim(folder: Path, asked: Mapping[str, Any], *, fresh: bool) -> None:
    mark = folder / _BUILD_NAME
    found = [path for path in folder.iterdir() if path.name != _LOCK_NAME]
    # A half-written mark alone is what a build leaves that is killed before it set its mark.
    if not mark.exists() and not all(_TORN_MARK.fullmatch(path.name) for path in found):
        raise MstlError(
            str(folder),
            why="it is there and was not made by mstl shard",
            remedy="Move it away, or choose another --out",
        )
    if mark.exists() and not fresh and any((folder / RECORDS_NAME).glob("*.json")):
        _check_mark(folder, asked)
    if mark.exists() and (fresh or _read_mark(mark) != dict(asked)):
        for path in sorted(found, key=lambda path: path == mark):  # the mark goes last: a crash leaves it ours
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    write_atomic(mark, json.dumps(dict(asked)).encode())


def _check_mark(folder: Path, asked: Mapping[str, Any]) -> None:
    """Raise MstlError naming what differs when the shards in a workspace are of another build."""
    there = _read_mark(folder / _BUILD_NAME)
    if there != dict(asked):
        names = [name for name in asked if there.get(name) != asked[name]]
        differing = ", ".join(f"{name} {there.get(name)!r}, not {asked[name]!r}" for name in names)
        raise MstlError(
            str(folder),
            why=f"an unfinished build lies there with {differing}",
            remedy="Give the same options to go on with it, --force (without --part and --merge) to discard it, or "
            "another --out",
        )


def _read_mark(mark: Path) -> Any:
    try:
        return json.loads(mark.read_bytes())
    except (OSError, ValueError) as error:
        raise MstlError(
            str(mark),
            why=f"it cannot be read ({error}), so it is not known what was being built",
            remedy=f"Remove {mark.parent}, or start anew with --force",
        ) from error


def publish(folder: Path, out: Path) -> None:
    """Rename a finished workspace to `out`; a set that stood there is removed only afterwards."""
    replaced = _replaced(out)
    try:
        for inner in (*(path for path in folder.iterdir() if path.is_dir()), folder):
            sync(inner)
        if occupied(out):
            if replaced.exists():  # from a replacement that was interrupted after its last rename
                shutil.rmtree(replaced)
            out.rename(replaced)
        folder.rename(out)
        sync(out.parent)
        _sweep(out)
    except OSError as error:
        raise MstlError(
            f"shard set {out}",
            why=f"the finished build in {folder} cannot be moved there ({error})",
            remedy="Make that possible and run the same command again; nothing is lost",
        ) from error


def remove_strays(folder: Path, keep: set[str]) -> None:
    """Remove what killed processes and an earlier listing of the source left in the folders of the splits."""
    for split in (folder / name for name in SPLITS):
        for path in split.iterdir() if split.is_dir() else ():
            if path.relative_to(folder).as_posix() not in keep:
                path.unlink()
        with suppress(OSError):  # not empty
            split.rmdir()
    for torn in folder.glob(f".*{ASIDE_SUFFIX}"):
        torn.unlink()


def tidy(out: Path) -> None:
    """Remove what a publication left that was interrupted after its last rename, unless it is still under way."""
    if not any(path.exists() for path in (out / _BUILD_NAME, out / _LOCK_NAME, _replaced(out))):
        return
    with suppress(OSError):  # a set that may only be read is a good set all the same
        lock = lock_file(out / _LOCK_NAME)
        if lock is not None:
            try:
                _sweep(out)
            finally:
                os.close(lock)


def _sweep(out: Path) -> None:
    for place in (_replaced(out), out / RECORDS_NAME, out / UNPACKED_NAME):
        if place.exists():
            shutil.rmtree(place)
    for name in (_BUILD_NAME, _LOCK_NAME):  # the lock goes last: as long as anything is left, it can be held
        (out / name).unlink(missing_ok=True)


def _replaced(out: Path) -> Path:
    return out.with_name(f".{out.name}.replaced")
