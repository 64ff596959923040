"""Where the bytes of one image lie before conversion: a file, a zip member, or a span of an uncompressed tar."""

from __future__ import annotations

import lzma
import os
import zipfile
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

MAX_BYTES = 2**30  # of one image (ours); a zip of a few MB can unpack to more than memory, and files can be sparse


class Readable(Protocol):
    """The place of one image: small and picklable, so that worker processes can read it."""

    @property
    def size(self) -> int:
        """Bytes to read, as listed; it goes into the digest of a listing."""

    @property
    def name(self) -> str:
        """What to call the image in messages."""

    def read(self) -> bytes:
        """The bytes of an image file; raises OSError whatever the reason they cannot be read in full."""

    def stamp(self) -> int:
        """When the file or archive that holds the image was last written, in ns since 1970.

        Changes when the file is written again; not part of any digest of a set. Raises OSError when it is gone.
        """


@dataclass(frozen=True, slots=True)
class Blob:
    """An image that lies in a file, a zip or a tar as a file of its own (a `Readable`).

    path: the file, zip or tar. size: bytes of the image. member: name inside the archive, empty for a file.
    offset: where the span starts in a tar (also of a tar inside a tar); None for a file or a zip member.
    """

    path: str
    size: int
    member: str = ""
    offset: int | None = None

    @property
    def name(self) -> str:
        """What to call the image in messages."""
        return f"{self.path}/{self.member}" if self.member else self.path

    def read(self) -> bytes:
        """The bytes of the image; raises OSError whatever the reason they cannot be read in full."""
        if self.size > MAX_BYTES:
            raise OSError(f"it has {self.size:,} bytes, no image should have more than {MAX_BYTES:,}")
        if self.offset is not None:
            data = _read_span(self.path, self.offset, self.size)
        elif self.member:
            data = _read_zip_member(self.path, self.member)
        else:
            data = _read_span(self.path, 0, self.size + 1)  # one more: to notice a file that has grown
        if len(data) != self.size:
            raise OSError(f"{len(data)} bytes could be read where {self.size} were listed")
        return data

    def stamp(self) -> int:
        """When the file or archive was last written, in ns since 1970; raises OSError when it is gone."""
        return modified_ns(self.path)


def modified_ns(path: str) -> int:
    """When a file was last written, in ns since 1970; raises OSError when it is gone."""
    return os.stat(path).st_mtime_ns  # noqa: PTH116 (one call for every image)


def _read_span(path: str, offset: int, size: int) -> bytes:
    """Up to `size` bytes from `offset`; system calls alone, which cost a third of what a file object does."""
    handle = os.open(path, os.O_RDONLY)
    try:
        data = os.pread(handle, size, offset)
        while len(data) < size and (more := os.pread(handle, size - len(data), offset + len(data))):
            data += more
        return data
    finally:
        os.close(handle)


def _read_zip_member(path: str, member: str) -> bytes:
    stat = Path(path).stat()
    try:
        return _open_zip(path, stat.st_mtime_ns, stat.st_size).read(member)
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, ValueError) as error:  # ValueError: of bz2, names
        raise OSError(f"the zip member is damaged ({error})") from error
    except (RuntimeError, NotImplementedError) as error:  # encrypted, or a compression that Python does not know
        raise OSError(f"the zip member cannot be unpacked ({error})") from error
    except KeyError as error:
        raise OSError("the zip has no such member any more") from error


@lru_cache(maxsize=8)
def _open_zip(path: str, _mtime_ns: int, _size_bytes: int) -> zipfile.ZipFile:
    """An open zip, kept per process: reading its directory for every member would cost more than the images.

    Time and size are part of the key, so a replaced zip is opened anew.
    """
    return zipfile.ZipFile(path)
