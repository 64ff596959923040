"""The workspace of a build: a folder beside the target, owned by one process, renamed over the target when whole."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from shards.errors import MstlError
from shards.files import sync, write_atomic
from shards.job import RECORDS_NAME
from shards.schema import MANIFEST_NAME

CHECKS_NAME = ".checked.jsonl"
_BUILD_NAME = ".build.json"  # what is being built; marks the folder as ours
_LOCK_NAME = ".lock"
_TORN_MARK = re.compile(rf"\.{re.escape(_BUILD_NAME)}\.\d+\.tmp")  # as write_atomic names it


def occupied(out: Path) -> bool:
    """Whether a shard set stands at `out`; raises MstlError when something else does, which is never touched."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    if not (out / MANIFEST_NAME).is_file():
        raise MstlError(
            str(out), why="it is there and is not a shard set, so it is left alone", remedy="Choose another --out"
        )
    return True


@contextmanager
def workspace(out: Path, asked: Mapping[str, Any], *, fresh: bool = False) -> Iterator[Path]:
    """The folder `<out>.building`, locked against a second process, with what an interrupted build of the same left.

    What a different build left is removed, with `fresh` also what the same left. Raises MstlError when another process
    builds there, when the folder is not ours or its mark is damaged, and when `out` holds something that is no shard
    set.
    """
    occupied(out)  # refuses what `publish` could not replace, before any work
    folder = out.with_name(f"{out.name}.building")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = _lock(folder / _LOCK_NAME)
    except OSError as error:
        raise MstlError(str(folder), why=f"it cannot be made ({error})", remedy="Choose another --out") from error
    if lock is None:
        raise MstlError(
            str(folder), why="another mstl shard is building it", remedy="Wait for it, or choose another --out"
        )
    try:
        _claim(folder, asked, fresh=fresh)
        yield folder
    finally:
        os.close(lock)


def _lock(path: Path) -> int | None:
    """An open handle that holds the lock of a file; None when another process has it."""
    handle = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Between opening and locking, the owner may have published: then this locks a file that is elsewhere or gone.
        ours = path.exists() and os.path.samestat(os.fstat(handle), path.stat())
    except BlockingIOError:
        ours = False
    except OSError:
        os.close(handle)
        raise
    if ours:
        return handle
    os.close(handle)
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
    if mark.exists() and (fresh or _read_mark(mark) != dict(asked)):
        for path in sorted(found, key=lambda path: path == mark):  # the mark goes last: a crash leaves it ours
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    write_atomic(mark, json.dumps(dict(asked)).encode())


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
        for name in (CHECKS_NAME, RECORDS_NAME):
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        for torn in folder.rglob("*.tmp"):  # from a build that was killed while it wrote them
            torn.unlink()
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


def tidy(out: Path) -> None:
    """Remove what a publication left that was interrupted after its last rename, unless it is still under way."""
    if not any(path.exists() for path in (out / _BUILD_NAME, out / _LOCK_NAME, _replaced(out))):
        return
    with suppress(OSError):  # a set that may only be read is a good set all the same
        lock = _lock(out / _LOCK_NAME)
        if lock is not None:
            try:
                _sweep(out)
            finally:
                os.close(lock)


def _sweep(out: Path) -> None:
    if _replaced(out).exists():
        shutil.rmtree(_replaced(out))
    for name in (_BUILD_NAME, _LOCK_NAME):  # the lock goes last: as long as anything is left, it can be held
        (out / name).unlink(missing_ok=True)


def _replaced(out: Path) -> Path:
    return out.with_name(f".{out.name}.replaced")
