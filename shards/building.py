"""The workspace of a build: a folder beside the target, owned by one process, renamed over the target when whole."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shards.errors import MstlError
from shards.files import write_atomic
from shards.job import RECORDS_NAME
from shards.schema import MANIFEST_NAME

CHECKS_NAME = ".checked.jsonl"
_BUILD_NAME = ".build.json"  # what is being built; marks the folder as ours
_LOCK_NAME = ".lock"


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
def workspace(out: Path, asked: Mapping[str, Any]) -> Iterator[Path]:
    """The folder `<out>.building`, locked against a second process, with what an interrupted build of the same left.

    What a different build left is removed. Raises MstlError when another process builds there, when the folder is not
    ours, and when `out` holds something that is no shard set.
    """
    occupied(out)  # refuses what `publish` could not replace, before any work
    folder = out.with_name(f"{out.name}.building")
    mark = folder / _BUILD_NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / _LOCK_NAME, os.O_CREAT | os.O_RDWR)
    except OSError as error:
        raise MstlError(str(folder), why=f"it cannot be made ({error})", remedy="Choose another --out") from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise MstlError(
                str(folder), why="another mstl shard is building it", remedy="Wait for it, or choose another --out"
            ) from error
        _claim(folder, mark, asked)
        yield folder
    finally:
        os.close(lock)


def _claim(folder: Path, mark: Path, asked: Mapping[str, Any]) -> None:
    found = [path for path in folder.iterdir() if path.name != _LOCK_NAME]
    # Hidden files alone are what a build leaves that is killed before it set its mark.
    if not mark.exists() and any(not path.name.startswith(".") for path in found):
        raise MstlError(
            str(folder),
            why="it is there and was not made by mstl shard",
            remedy="Move it away, or choose another --out",
        )
    if mark.exists() and json.loads(mark.read_bytes()) != dict(asked):
        for path in sorted(found, key=lambda path: path == mark):  # the mark goes last: a crash leaves it ours
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    write_atomic(mark, json.dumps(dict(asked)).encode())


def publish(folder: Path, out: Path) -> None:
    """Rename a finished workspace to `out`; a set that stood there is removed only afterwards."""
    replaced = out.with_name(f".{out.name}.replaced")
    try:
        for name in (CHECKS_NAME, RECORDS_NAME):
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        for torn in folder.rglob("*.tmp"):  # from a build that was killed while it wrote them
            torn.unlink()
        for inner in (*(path for path in folder.iterdir() if path.is_dir()), folder):
            _sync(inner)
        if occupied(out):
            if replaced.exists():  # from a replacement that was interrupted after its last rename
                shutil.rmtree(replaced)
            out.rename(replaced)
        folder.rename(out)
        _sync(out.parent)
        for name in (_BUILD_NAME, _LOCK_NAME):
            (out / name).unlink(missing_ok=True)
        if replaced.exists():
            shutil.rmtree(replaced)
    except OSError as error:
        raise MstlError(
            f"shard set {out}",
            why=f"the finished build in {folder} cannot be moved there ({error})",
            remedy="Make that possible and run the same command again; nothing is lost",
        ) from error


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
