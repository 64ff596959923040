"""Decoding every image once before it is written, so that training never meets a broken one."""

from __future__ import annotations

import errno
import hashlib
import struct
import time
import warnings
import zlib
from dataclasses import dataclass
from io import BytesIO

import simplejpeg
from PIL import Image, UnidentifiedImageError

from shards.errors import MstlError
from shards.headers import plain_size
from shards.kinds import is_on_its_side, shown_alike, unsupported
from shards.sources.blob import Readable

FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "GIF", "WEBP")
PASSED_ON = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png"}  # stored as they are; MPO: JPEG with more pictures behind
LOSSLESS_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I;16B"})
RETRY_SECONDS = (0.2, 1.0, 5.0)  # between attempts to read
_FINAL = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ELOOP)  # waiting changes nothing
_PNG_END = b"IEND\xaeB`\x82"  # the name of the last chunk and its checksum
# What Pillow's readers raise on damaged files.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    IndexError,
    KeyError,
    EOFError,
    OverflowError,
    struct.error,
    zlib.error,
)
_BOMB = (Image.DecompressionBombError, Image.DecompressionBombWarning)


@dataclass(frozen=True, slots=True)
class Checked:
    """A sound image: pixels as shown (EXIF orientation applied), Pillow's mode and format, source bytes and SHA-256.

    as_is: its bytes may be stored as they came, see `shards.kinds`.
    """

    width: int
    height: int
    mode: str
    format: str
    bytes: int
    sha256: str
    as_is: bool


@dataclass(frozen=True, slots=True)
class Refused:
    """An image that cannot be used, and why."""

    reason: str


def read_and_check(blob: Readable, *, decode: bool = True) -> tuple[bytes, Checked | Refused]:
    """The bytes of an image and what checking them found; without `decode` only its header is looked at.

    Refused is what is wrong with the image. When the system fails to read it (a disk, a network, no permission, a file
    that is gone), this is tried again for a while and then raises MstlError: an image must not be lost to that.
    """
    for wait_seconds in (*RETRY_SECONDS, None):
        try:
            data = blob.read()
        except OSError as error:
            if error.errno is None:  # raised for what the archive or file holds
                return b"", Refused(f"it cannot be read: {error}")
            if wait_seconds is None or error.errno in _FINAL:
                raise MstlError(
                    f"image {blob.name}",
                    why=f"it cannot be read ({error.strerror})",
                    remedy="Mend that (or take the image out of the source) and run the same command again; finished "
                    "shards are kept",
                ) from error
            time.sleep(wait_seconds)
        else:
            return data, check_bytes(data, decode=decode)
    raise AssertionError("the last turn returns or raises")


def check_bytes(data: bytes, *, decode: bool = True) -> Checked | Refused:
    """Decode one image in full, or without `decode` believe its header.

    Refuses what is truncated, damaged, empty, too large (Pillow's bomb limit, 89 megapixels), of a format other than
    JPEG, PNG, BMP, TIFF, GIF and WebP, or of a kind that `shards.kinds` refuses.
    """
    if not data:
        return Refused("the file is empty")
    if not decode:
        plain = plain_size(data)
        if plain is not None:
            return Checked(*plain, len(data), hashlib.sha256(data).hexdigest(), as_is=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd metadata is no reason to refuse
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            return _decode(data) if decode else _glance(data)
        except UnidentifiedImageError:  # its text holds a memory address
            return Refused(f"it is none of {', '.join(FORMATS)}, or its header is damaged")
        except _BOMB:
            return Refused(f"it unpacks to more than {Image.MAX_IMAGE_PIXELS:,} pixels (a decompression bomb)")
        except _DAMAGE as error:
            return Refused(
                str(error) if isinstance(error, OSError | SyntaxError) else f"{type(error).__name__}: {error}"
            )


def _decode(data: bytes) -> Checked | Refused:
    with Image.open(BytesIO(data), formats=FORMATS) as image:
        image.verify()  # checksums of PNG; leaves the image unusable
    with Image.open(BytesIO(data), formats=FORMATS) as image:
        if image.format in ("JPEG", "MPO"):
            # Pillow passes over what libjpeg warns of (a scan that ends early, bytes it makes no sense of).
            try:
                simplejpeg.decode_jpeg(data, colorspace="GRAY", strict=True)
            except ValueError as error:
                return Refused(f"the JPEG is damaged or truncated: {error}")
        else:
            image.load()
        if image.format == "PNG" and _PNG_END not in data:  # Pillow is content when only the end is missing
            return Refused("the PNG is truncated: its end is missing")
        return _facts(image, data)


def _glance(data: bytes) -> Checked | Refused:
    with Image.open(BytesIO(data), formats=FORMATS) as image:
        found = _facts(image, data)
    # What is written anew is decoded in any case, and is not to fail there.
    return _decode(data) if isinstance(found, Checked) and not found.as_is else found


def _facts(image: Image.Image, data: bytes) -> Checked | Refused:
    kind, mode = str(image.format), image.mode
    width, height = image.size
    if is_on_its_side(data, image):
        width, height = height, width
    if not width or not height:
        return Refused(f"it has {width} × {height} pixels")
    if kind not in PASSED_ON and mode not in LOSSLESS_MODES:
        return Refused(f"PNG cannot hold the pixels of this {kind} (mode {mode}) without loss")
    reason = unsupported(data, image)
    if reason is not None:
        return Refused(reason)
    as_is = kind in PASSED_ON and shown_alike(data, image)
    return Checked(width, height, mode, kind, len(data), hashlib.sha256(data).hexdigest(), as_is)
