"""Small file helpers: atomic writes, digests and locks."""

import fcntl
import hashlib
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ASIDE_SUFFIX = ".tmp"  # of what is being written; after a crash it is rubbish


def aside_name(path: Path) -> Path:
    """A hidden name beside a path that no other process uses, on this host or on one that shares the folder."""
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}{ASIDE_SUFFIX}")


def write_atomic(path: Path, data: bytes) -> None:
    """Write bytes aside, flush them to disk and rename: readers see the old file or the new one, never half of it."""
    aside = aside_name(path)
    try:
        with aside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def sha256_file(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Flush a file's content, or a folder's entries, to disk: a rename is safe only behind it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock_file(path: Path, *, shared: bool = False) -> int | None:
    """An open handle that holds the lock of a file, made when missing; None when another process has it.

    shared: hold it together with others that share it. Close the handle to let go.
    """
    return _try_lock(path, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB, os.O_CREAT | os.O_RDWR)


def await_lock(path: Path, *, shared: bool = False, create: bool = True) -> int:
    """As `lock_file`, but wait until no other process has it. Without create a missing file is a FileNotFoundError."""
    flags = os.O_CREAT | os.O_RDWR
    if not create:  # for writing where that is allowed: file systems over a network want it so
        flags = os.O_RDWR if os.access(path, os.W_OK) else os.O_RDONLY
    while True:
        handle = _try_lock(path, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, flags)
        if handle is not None:
            return handle


@contextmanager
def locked(path: Path, *, create: bool = True) -> Iterator[None]:
    """Wait for the lock of a file and hold it inside."""
    handle = await_lock(path, create=create)
    try:
        yield
    finally:
        os.close(handle)


def _try_lock(path: Path, how: int, flags: int) -> int | None:
    handle = os.open(path, flags, 0o644)
    try:
        fcntl.flock(handle, how)
        # Between opening and locking, the owner may have renamed or removed it: then this locks another file.
        ours = os.path.samestat(os.fstat(handle), path.stat())
    except (BlockingIOError, FileNotFoundError):
        ours = False
    except OSError:
        os.close(handle)
        raise
    if ours:
        return handle
    os.close(handle)
    return None
