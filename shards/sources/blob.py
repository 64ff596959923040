"""Where the bytes of one image lie before conversion: a file, a zip member, or a span of an uncompressed tar."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Blob:
    """The place of one image; small and picklable, so that worker processes can read it.

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
        if self.offset is not None:
            with Path(self.path).open("rb") as file:
                file.seek(self.offset)
                data = file.read(self.size)
        elif self.member:
            data = _read_zip_member(self.path, self.member)
        else:
            data = Path(self.path).read_bytes()
        if len(data) != self.size:
            raise OSError(f"{len(data)} bytes could be read where {self.size} were listed")
        return data


def _read_zip_member(path: str, member: str) -> bytes:
    stat = Path(path).stat()
    try:
        return _open_zip(path, stat.st_mtime_ns, stat.st_size).read(member)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
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
