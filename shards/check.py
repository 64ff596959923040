"""Decoding every image once before it is written, so that training never meets a broken one."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import warnings
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from io import BytesIO
from itertools import islice
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from shards.errors import MstlError
from shards.parallel import ordered_map
from shards.progress import QUIET, Progress
from shards.sources.blob import Blob

FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "GIF", "WEBP")
PASSED_ON = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png"}  # stored as they are; MPO: JPEG with more pictures behind
LOSSLESS_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I;16B"})
MIN_REFUSALS = 3  # a budget of 1 % would allow none in a small source
_CHUNK = 32  # images a job
_PNG_END = b"IEND\xaeB`\x82"  # the name of the last chunk and its checksum
_ROTATED = (5, 6, 7, 8)  # EXIF orientations that swap width and height
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
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


@dataclass(frozen=True, slots=True)
class Checked:
    """A sound image: pixels as shown (EXIF orientation applied), Pillow's mode and format, source bytes and SHA-256."""

    width: int
    height: int
    mode: str
    format: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Refused:
    """An image that cannot be used, and why."""

    reason: str


def check_blob(blob: Blob) -> Checked | Refused:
    """Read and decode one image in full."""
    try:
        data = blob.read()
    except OSError as error:
        return Refused(f"it cannot be read: {error}")
    return check_bytes(data)


def check_bytes(data: bytes) -> Checked | Refused:
    """Decode one image in full.

    Refuses what is truncated, damaged, empty, too large (Pillow's bomb limit, 89 megapixels), of a format other than
    JPEG, PNG, BMP, TIFF, GIF and WebP, or has pixels that PNG cannot hold.
    """
    if not data:
        return Refused("the file is empty")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd metadata is no reason to refuse
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            return _decode(data)
        except UnidentifiedImageError:  # its text holds a memory address
            return Refused(f"it is none of {', '.join(FORMATS)}, or its header is damaged")
        except _DAMAGE as error:
            return Refused(
                str(error) if isinstance(error, OSError | SyntaxError) else f"{type(error).__name__}: {error}"
            )


def _decode(data: bytes) -> Checked | Refused:
    with Image.open(BytesIO(data), formats=FORMATS) as image:
        image.verify()  # checksums of PNG; leaves the image unusable
    with Image.open(BytesIO(data), formats=FORMATS) as image:
        kind = str(image.format)
        image.load()
        width, height = image.size
        if image.getexif().get(0x0112) in _ROTATED:
            width, height = height, width
        mode = image.mode
    if not width or not height:
        return Refused(f"it has {width} × {height} pixels")
    if kind == "PNG" and _PNG_END not in data:  # Pillow is content when only the end is missing, others are not
        return Refused("the PNG is truncated: its end is missing")
    if kind not in PASSED_ON and mode not in LOSSLESS_MODES:
        return Refused(f"PNG cannot hold the pixels of this {kind} (mode {mode}) without loss")
    return Checked(width, height, mode, kind, len(data), hashlib.sha256(data).hexdigest())


def check_all(
    blobs: Sequence[Blob], *, log: Path, max_bad: float, workers: int = 1, progress: Progress = QUIET
) -> list[Checked | Refused]:
    """Check every image, in order, remembering the results in a log so that an interrupted check goes on.

    Of the log only sound images are believed: one that was refused may have been mended since, and is checked again.
    max_bad: the fraction that may be refused (a fraction above 0 allows three at least). Raises MstlError with the
    count and the first reasons as soon as more are.
    """
    results = _read_log(log)[: len(blobs)]
    again = [place for place, result in enumerate(results) if isinstance(result, Refused)]
    allowed = max(MIN_REFUSALS, int(max_bad * len(blobs))) if max_bad > 0 else 0
    progress.start(len(blobs), "checking images")
    progress.advance(len(results) - len(again))
    with closing(ordered_map(_check_chunk, _chunks([blobs[place] for place in again]), workers=workers)) as found:
        for place, result in zip(again, _flat(found, progress), strict=True):
            results[place] = result
    refused = sum(isinstance(result, Refused) for result in results)
    jobs = _chunks(blobs[len(results) :])
    with log.open("a") as file, closing(ordered_map(_check_chunk, jobs, workers=workers)) as rest:
        for chunk in rest:
            for result in chunk:
                results.append(result)
                file.write(json.dumps(asdict(result)) + "\n")
                refused += isinstance(result, Refused)
            file.flush()
            if refused > allowed:
                raise _too_many(blobs, results, refused, allowed)
            progress.advance(len(chunk))
        os.fsync(file.fileno())  # what is written from here on follows from these results
    if refused > allowed:  # all of them refused before, and again
        raise _too_many(blobs, results, refused, allowed)
    return results


def _flat(chunks: Iterable[list[Checked | Refused]], progress: Progress) -> Iterator[Checked | Refused]:
    for chunk in chunks:
        yield from chunk
        progress.advance(len(chunk))


def _chunks(blobs: Sequence[Blob]) -> Iterator[list[Blob]]:
    rest = iter(blobs)
    while chunk := list(islice(rest, _CHUNK)):
        yield chunk


def _check_chunk(blobs: list[Blob]) -> list[Checked | Refused]:
    return [check_blob(blob) for blob in blobs]


def _read_log(log: Path) -> list[Checked | Refused]:
    """The results in a log; what an interruption left torn at its end is cut off."""
    if not log.exists():
        return []
    results: list[Checked | Refused] = []
    good_bytes = 0
    with log.open("rb") as file:
        for line in file:
            try:
                found = json.loads(line)
                result = Refused(**found) if "reason" in found else Checked(**found)
            except (ValueError, TypeError):  # no JSON, or not one of ours
                break
            if not line.endswith(b"\n"):
                break
            results.append(result)
            good_bytes += len(line)
    os.truncate(log, good_bytes)
    return results


def _too_many(blobs: Sequence[Blob], results: list[Checked | Refused], refused: int, allowed: int) -> MstlError:
    reasons = [
        f"{blob.name}: {result.reason}"
        for blob, result in zip(blobs, results, strict=False)
        if isinstance(result, Refused)
    ]
    return MstlError(
        "too many images cannot be used",
        why=f"{refused} of the first {len(results)} (of {len(blobs)}) were refused, {allowed} are allowed; "
        + "; ".join(reasons[:3]),
        remedy="Mend or remove them, or allow more with --max-bad",
    )
