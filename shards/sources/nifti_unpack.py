"""Unpacking compressed NIfTI volumes: their slices as PNG files, volume by volume, before they are read one by one."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import time
import zlib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from shards.errors import MstlError
from shards.files import lock_file, sync
from shards.parallel import ordered_map
from shards.progress import Progress
from shards.sources.blob import Blob, Readable, modified_ns
from shards.sources.listing import Item
from shards.sources.nifti_slice import NiftiSlice, is_packed, unpacked_bytes

_PIECE_BYTES = 2**20
_MOST_BEHIND_BYTES = 2**20  # of what a file may hold behind its data (ours; the format has nothing there)
_LOOK_SECONDS = 0.2
_REFUSED_NAME = "refused.json"


@dataclass(frozen=True, slots=True)
class Refused:
    """A slice that could not be unpacked; reading it tells why (a `Readable`). path: of its volume."""

    path: str
    name: str
    size: int
    reason: str

    def read(self) -> bytes:
        """Raises OSError with the reason."""
        raise OSError(self.reason)

    def stamp(self) -> int:
        """When the volume was last written, in ns since 1970; raises OSError when it is gone."""
        return modified_ns(self.path)


@dataclass(frozen=True, slots=True)
class _Job:
    folder: str
    slices: tuple[NiftiSlice, ...]


def unpack(items: tuple[Item, ...], folder: Path, workers: int, progress: Progress) -> tuple[Item, ...]:
    """The same items in the same order, those of compressed volumes with PNG files in the folder as blobs.

    Volumes unpacked by an earlier call are kept, and several calls may share a folder; a volume that cannot be unpacked
    gives items whose reading tells why. A volume needs its size on disk once more while it is unpacked.
    Raises MstlError when the folder cannot be written.
    """
    jobs = list(_jobs(items, folder))
    progress.start(len(jobs), "unpacking volumes")
    unpacked: dict[str, Readable] = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with closing(ordered_map(_unpack_volume, jobs, workers=workers)) as results:
            for job, blobs in zip(jobs, results, strict=True):
                unpacked.update(zip((place.name for place in job.slices), blobs, strict=True))
                progress.advance()
    except OSError as error:
        raise MstlError(
            f"unpacking volumes into {folder}",
            why=f"it cannot be written ({error})",
            remedy="Make room and run the same command again; finished volumes are kept",
        ) from error
    return tuple(replace(item, blob=unpacked.get(item.blob.name, item.blob)) for item in items)


def _jobs(items: tuple[Item, ...], folder: Path) -> Iterator[_Job]:
    slices = [item.blob for item in items if isinstance(item.blob, NiftiSlice)]
    for path, group in groupby(slices, key=lambda place: place.path):
        if is_packed(Path(path)):
            yield _Job(str(folder), tuple(group))


def _unpack_volume(job: _Job) -> list[Readable]:
    try:
        target = Path(job.folder) / _digest(job)
    except OSError as error:
        return _all_refused(job, str(error))
    while not target.is_dir():
        lock = lock_file(target.with_name(f".{target.name}.lock"))
        if lock is None:  # another part of the build is unpacking this volume
            time.sleep(_LOOK_SECONDS)
            continue
        try:
            why = "" if target.is_dir() else _write_folder(job, target)
        finally:
            os.close(lock)
        if why:
            return _all_refused(job, why)
    refused = json.loads((target / _REFUSED_NAME).read_text())
    return [
        Refused(place.path, place.name, place.size, refused[str(place.number)])
        if str(place.number) in refused
        else Blob(str(path := target / _png_name(place)), path.stat().st_size)
        for place in job.slices
    ]


def _all_refused(job: _Job, why: str) -> list[Readable]:
    why = f"the volume cannot be unpacked ({why})"
    return [Refused(place.path, place.name, place.size, why) for place in job.slices]


def _digest(job: _Job) -> str:
    """Everything that decides the PNGs, so that a changed volume, window or depth is unpacked anew."""
    first = job.slices[0]
    stat = Path(first.path).stat()
    content = [
        str(Path(first.path).resolve()), stat.st_size, stat.st_mtime_ns, len(job.slices), first.bits,
        first.window.center, first.window.width, first.window.function,
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


def _write_folder(job: _Job, target: Path) -> str:
    """Write the folder of a volume, whole or not at all; why it cannot be unpacked, or nothing."""
    aside = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(aside, ignore_errors=True)  # of an earlier call that was killed
    aside.mkdir()
    why = _write_slices(job, aside)
    if why:
        shutil.rmtree(aside)
        return why
    sync(aside)
    aside.rename(target)
    sync(target.parent)
    return ""


def _write_slices(job: _Job, aside: Path) -> str:
    """Write the slices of a volume into a folder; why it cannot be unpacked, or nothing."""
    written_ns = job.slices[0].stamp()
    raw = aside / "volume.nii"  # a plain volume can be read slice by slice, in whatever order it lies
    with raw.open("wb") as file:
        for piece in _pieces(Path(job.slices[0].path)):
            if isinstance(piece, str):
                return piece
            file.write(piece)
    refused = {}
    for place in job.slices:
        try:
            png = replace(place, path=str(raw)).read()
        except OSError as error:
            refused[place.number] = str(error)
            continue
        path = aside / _png_name(place)
        path.write_bytes(png)
        os.utime(path, ns=(written_ns, written_ns))  # what `stamp` tells: the volume's time, whenever it is unpacked
        sync(path)
    (aside / _REFUSED_NAME).write_text(json.dumps(refused))
    sync(aside / _REFUSED_NAME)
    raw.unlink()
    return ""


def _pieces(path: Path) -> Iterator[bytes | str]:
    """The unpacked bytes of a file, and why they end early where they do.

    Reading stops where the file goes on behind what its header declares: a few MB can unpack to more than any disk has.
    """
    try:
        left = unpacked_bytes(path) + _MOST_BEHIND_BYTES
        with gzip.open(path) as file:
            while piece := file.read(_PIECE_BYTES):
                left -= len(piece)
                if left < 0:
                    yield "it unpacks to more than its header declares"
                    return
                yield piece
    except (OSError, EOFError, zlib.error) as error:
        yield str(error) or type(error).__name__


def _png_name(place: NiftiSlice) -> str:
    return f"{place.number:05d}.png"
