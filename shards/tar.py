"""Writing a tar of samples and its index in one go, the same bytes for the same samples."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import BinaryIO

from shards.errors import MstlError
from shards.index import Component, IndexedSample

BLOCK_BYTES = 512
_WORTH_A_COPY = 16_384  # bytes; what is smaller is gathered and written at once
_MAX_NAME, _MAX_BYTES = 100, 8**11  # what a USTAR header can hold
_BEFORE_SIZE = b"0000644\0" + b"0000000\0" * 2  # mode, owner, group
_AFTER_SIZE = b"00000000000\0"  # time: 1970
# A plain file, no link; the checksum, which comes before it, counts as eight spaces while it is summed.
_AFTER_CHECKSUM = b"0".ljust(101, b"\0") + b"ustar\x0000".ljust(255, b"\0")
_CONSTANT_SUM = sum(_BEFORE_SIZE) + sum(_AFTER_SIZE) + 8 * ord(" ") + sum(_AFTER_CHECKSUM)


class SampleTar:
    """Samples written to an open file as USTAR: fixed owner, mode and time, so nothing but the samples decides.

    After `close`: `size_bytes` and `sha256` of what was written, and `index`, one entry a sample.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.index: list[IndexedSample] = []
        self.size_bytes = 0
        self._file = file
        self._digest = hashlib.sha256()

    def add(self, key: str, components: Mapping[str, bytes]) -> None:
        """Write one sample: extension → bytes, in this order."""
        indexed = []
        small = bytearray()
        at = self.size_bytes
        for ext, data in components.items():
            name, size = f"{key}.{ext}", len(data)
            indexed.append(Component(ext, at + BLOCK_BYTES, size, name))
            small += ustar_header(name, size)
            if size < _WORTH_A_COPY:
                small += data
            else:
                self._write(bytes(small))
                self._write(data)
                small = bytearray()
            padding = -size % BLOCK_BYTES
            small += bytes(padding)
            at += BLOCK_BYTES + size + padding
        self._write(bytes(small))
        self.index.append(tuple(indexed))

    def close(self) -> None:
        """Write the two empty blocks that end a tar; the file stays open."""
        self._write(bytes(2 * BLOCK_BYTES))

    @property
    def sha256(self) -> str:
        """SHA-256 of everything written so far."""
        return self._digest.hexdigest()

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self.size_bytes += len(data)


def ustar_header(name: str, size_bytes: int) -> bytes:
    """The 512-byte USTAR header of a plain file; raises MstlError for what the format cannot hold."""
    path = name.encode("ascii")
    if len(path) > _MAX_NAME or size_bytes >= _MAX_BYTES:
        raise MstlError(
            f"sample {name}",
            why=f"its name has {len(path)} bytes and its data {size_bytes}; a tar holds {_MAX_NAME} and {_MAX_BYTES}",
            remedy="Leave this file out",
        )
    size = b"%011o\0" % size_bytes
    checksum = b"%06o\0 " % (_CONSTANT_SUM + sum(path) + sum(size))
    return b"".join((path.ljust(100, b"\0"), _BEFORE_SIZE, size, _AFTER_SIZE, checksum, _AFTER_CHECKSUM))
