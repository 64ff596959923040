"""The size of a plain JPEG or PNG from its first bytes, without opening it as an image: for input that is trusted."""

from __future__ import annotations

import struct

from PIL import Image

from shards.kinds import PNG_ORIENTED

_JPEG_MODES = {1: "L", 3: "RGB"}
_PNG_MODES = {0: "L", 2: "RGB"}
_FRAMES = frozenset({0xC0, 0xC1, 0xC2})  # baseline, extended, progressive: what decoders know
# Tables, restart interval, JFIF, colour profile (which no reader here applies), Photoshop's, comment.
_PLAIN_SEGMENTS = frozenset({0xDB, 0xC4, 0xDD, 0xE0, 0xE2, 0xED, 0xFE})
_ADOBE, _TRANSFORM_AT, _YCBCR = 0xEE, 15, 1


def plain_size(data: bytes) -> tuple[int, int, str, str] | None:
    """Width and height in pixels, Pillow's mode and format; None for whatever is not plain, which Pillow must judge.

    Plain is a JPEG of 8 bits, grey or YCbCr, without Exif or XMP; and a PNG of 8 bits, grey or RGB,
    whose pixels follow its header at once, so that nothing can turn it or make it transparent. Neither is plain when
    Pillow would take it for a decompression bomb.
    """
    found = None
    try:
        if data[:3] == b"\xff\xd8\xff":
            found = _jpeg(data)
        elif data[:16] == b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR":
            found = _png(data)
    except (struct.error, IndexError):  # it ends within its header
        return None
    most = Image.MAX_IMAGE_PIXELS
    return None if found is None or (most is not None and found[0] * found[1] > most) else found


def _jpeg(data: bytes) -> tuple[int, int, str, str] | None:
    at = 2
    while data[at] == 0xFF:
        kind = data[at + 1]
        if kind in _FRAMES:
            bits, height, width, channels = struct.unpack_from(">BHHB", data, at + 4)
            plain = bits == 8 and channels in _JPEG_MODES and width and height
            return (width, height, _JPEG_MODES[channels], "JPEG") if plain else None
        if kind not in _PLAIN_SEGMENTS and not (kind == _ADOBE and data[at + _TRANSFORM_AT] == _YCBCR):
            return None
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None


def _png(data: bytes) -> tuple[int, int, str, str] | None:
    width, height, bits, colour = struct.unpack_from(">IIBB", data, 16)
    plain = bits == 8 and colour in _PNG_MODES and width and height and data[37:41] == b"IDAT"
    if not plain or any(mark in data for mark in PNG_ORIENTED):  # it may stand behind the pixels
        return None
    return width, height, _PNG_MODES[colour], "PNG"
