"""Checks of a path that shards or runs are to lie in: room, rights, locks and speed."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from mstl.doctor.findings import Finding, fail, ok, warn
from shards.files import lock_file

GB = 1e9
TRIAL_BYTES = 64 * 2**20
SLOW, FAST = 100e6, 500e6  # bytes a second: under SLOW a GPU waits for ImageNet's originals (110 kB at 1,000 a second)


def check_path(path: Path) -> Iterator[Finding]:
    """Every check of this module; writes a trial file of 64 MiB beside what is there and removes it again."""
    if not path.is_dir():
        what = "a file" if path.exists() else "not there"
        yield fail(f"room {path}", what, "Make the folder, or name another")
        return
    yield check_room(path)
    if not os.access(path, os.W_OK | os.X_OK):
        yield warn(f"writing {path}", "not allowed", "Well for shards; runs need a folder that can be written")
        return
    try:
        with tempfile.TemporaryDirectory(prefix=".mstl-doctor-", dir=path) as folder:
            yield check_locks(f"locks {path}", Path(folder))
            yield check_speed(f"speed {path}", Path(folder))
    except OSError as error:
        yield fail(
            f"writing {path}", f"a trial file failed: {error.strerror}", "Look at the file system's room and state"
        )


def check_room(path: Path) -> Finding:
    size = os.statvfs(path)
    free = size.f_frsize * size.f_bavail
    found = f"{free / GB:,.1f} GB free, {filesystem(path)}"
    if size.f_files and not size.f_favail:
        return fail(f"room {path}", f"{found}, no inode left", "Remove files that are not needed")
    if free < GB:
        return fail(f"room {path}", found, "Make room: a checkpoint of resnet50 takes 0.3 GB, ImageNet's shards 150 GB")
    if free < 10 * GB:
        return warn(f"room {path}", found, "Little for shards: ImageNet's take 150 GB")
    return ok(f"room {path}", found)


def filesystem(path: Path, mounts: Path = Path("/proc/self/mounts")) -> str:
    """The kind of file system that a path lies on, of the longest mount point above it."""
    best, kind = "", "unknown"
    resolved = f"{path.resolve()}/"
    with suppress(OSError):
        for line in mounts.read_text().splitlines():
            point, this = line.split()[1:3]
            if resolved.startswith(point.rstrip("/") + "/") and len(point) >= len(best):
                best, kind = point, this
    return kind


def check_locks(name: str, folder: Path) -> Finding:
    """Training locks its run folder, so that no second job writes into it; some network file systems cannot."""
    remedy = "Mount it with locks (NFS: local_lock=none and a running lockd), or keep runs elsewhere"
    try:
        lock, second = lock_file(folder / "lock"), lock_file(folder / "lock")
    except OSError as error:
        return fail(name, f"files cannot be locked ({error.strerror})", remedy)
    if lock is None or second is not None:
        return fail(name, "a file can be locked twice", remedy)
    os.close(lock)
    return ok(name, "files can be locked")


def check_speed(name: str, folder: Path) -> Finding:
    """Write a trial file to the disk and read it back, past the page cache as far as the system allows."""
    file, block = folder / "trial", os.urandom(2**20)
    began = time.perf_counter()
    with file.open("wb") as out:
        for _ in range(TRIAL_BYTES // len(block)):
            out.write(block)
        out.flush()
        os.fsync(out.fileno())
    written = TRIAL_BYTES / (time.perf_counter() - began)
    with file.open("rb", buffering=0) as back:
        os.posix_fadvise(back.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        began = time.perf_counter()
        while back.read(2**20):
            pass
        read = TRIAL_BYTES / (time.perf_counter() - began)
    return judge_speed(name, written, read)


def judge_speed(name: str, written: float, read: float) -> Finding:
    """The speed class of bytes a second written and read in order."""
    found = f"{{}} (writes {written / 1e6:,.0f} MB/s, reads {read / 1e6:,.0f} MB/s in order)"
    if min(written, read) < SLOW:
        return warn(name, found.format("slow"), "Copy the shards to a local disk, or re-encode them (--resize 256)")
    return ok(name, found.format("fast" if min(written, read) >= FAST else "medium"))
