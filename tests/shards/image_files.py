"""Image files of every kind with the pixels they show: what Pillow cannot write is put together byte by byte."""

import io
import struct
import zlib
from dataclasses import dataclass

import numpy as np

WIDTH, HEIGHT = 32, 24
TURNS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: np.swapaxes(a, 0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.swapaxes(a[::-1, ::-1], 0, 1),
    8: lambda a: np.rot90(a, 1),
}


@dataclass(frozen=True)
class Kind:
    """A file, what becomes of it ("jpg" or "png" as it came, "anew", or why it is refused), and the pixels shown.

    shown: HWC RGB uint8. deep: the 16-bit greys that are stored.
    """

    data: bytes
    fate: str
    shown: np.ndarray | None = None
    tolerance: int = 0
    deep: np.ndarray | None = None


def saved(image, kind, **options):
    """The file Pillow writes."""
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def chunk(name, data):
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(rows, depth, colour, *, size=(WIDTH, HEIGHT), before=b"", interlaced=False):
    """A PNG of packed rows; before: chunks ahead of the pixels."""
    header = struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, interlaced)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + before + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def after_header(data, *chunks):
    """A PNG with more chunks behind its header."""
    return data[:33] + b"".join(chunks) + data[33:]


def with_segments(data, *segments):
    """A JPEG with more APP1 segments at its beginning."""
    return data[:2] + b"".join(b"\xff\xe1" + struct.pack(">H", len(s) + 2) + s for s in segments) + data[2:]


def without_adobe(data):
    """A JPEG without its Adobe segment."""
    at = data.index(b"\xff\xee")
    return data[:at] + data[at + 2 + struct.unpack(">H", data[at + 2 : at + 4])[0] :]


def exif(value, *, order="<", kind=3):
    """An EXIF block that holds an orientation; kind: the type of the field, rightly 3 (short)."""
    head = b"II*\0" if order == "<" else b"MM\0*"
    number = {1: "B3x", 3: "H2x", 4: "I"}[kind]
    return head + struct.pack(f"{order}IHHHI{number}I", 8, 1, 0x0112, kind, 1, value, 0)


def tiff(pixels, photometric, *, sample_format=1, extra=None):
    """An uncompressed little-endian TIFF of one page."""
    height, width, *more = pixels.shape
    channels, bits = (more or [1])[0], pixels.dtype.itemsize * 8
    tags = [(256, [width]), (257, [height]), (258, [bits] * channels), (259, [1]), (262, [photometric]), (273, None),
            (277, [channels]), (278, [height]), (279, [pixels.nbytes]), (339, [sample_format] * channels)]  # fmt: skip
    tags += [] if extra is None else [(338, [extra])]
    tags.sort()
    at = 8 + 2 + 12 * len(tags) + 4
    values = {tag: struct.pack(f"<{len(v)}H", *v) for tag, v in tags if v is not None and 2 * len(v) > 4}
    values[273] = struct.pack("<I", at + sum(map(len, values.values())))
    fields, tail = b"", b""
    for tag, numbers in tags:
        if numbers is None:
            fields += struct.pack("<HHI", tag, 4, 1) + values[tag]
        elif tag in values:
            fields += struct.pack("<HHII", tag, 3, len(numbers), at + len(tail))
            tail += values[tag]
        else:
            fields += struct.pack("<HHI", tag, 3, len(numbers)) + struct.pack(f"<{len(numbers)}H", *numbers).ljust(
                4, b"\0"
            )
    return struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + fields + bytes(4) + tail + pixels.tobytes()


def adam7(pixels):
    """The rows of the seven passes of an interlaced PNG."""
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    return [row.tobytes() for x, y, dx, dy in passes for row in pixels[y::dy, x::dx] if row.size]


def packed(grey, bits):
    """The rows of a grey image of fewer than 8 bits."""
    levels = (grey >> (8 - bits)).reshape(HEIGHT, -1, 8 // bits).astype(np.uint8)
    shifts = np.arange(8 - bits, -1, -bits, dtype=np.uint8)
    return [row.tobytes() for row in np.bitwise_or.reduce(levels << shifts, axis=-1)]
