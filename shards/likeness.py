"""Whether two images are the same picture: a perceptual hash to find candidates, a correlation to confirm them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from itertools import product

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from shards.progress import QUIET, Progress
from shards.sheet import eight_bit

HASH_SIDE = 16  # 256 bits: at the usual 64 chest X-rays of different people come as near as re-saved copies
WORDS = HASH_SIDE**2 // 64
# Both ours, chosen on 543 COVID19-CT slices and 900 chest X-rays: copies re-saved, halved, brightened and cropped by a
# pixel differ in 0 to 38 bits and correlate with 0.92 or more; X-rays of different people differ in 52 bits or more and
# correlate with 0.79 or less. CT slices that pass are the same, or close neighbours of one patient.
MOST_BITS = 40
LEAST_CORRELATION = 0.9
METHOD = f"phash {HASH_SIDE}x{HASH_SIDE}, at most {MOST_BITS} bits, correlation at least {LEAST_CORRELATION}"

_KEPT = 128  # side in pixels of the small image that is kept of a candidate
_SIDE, _REACH = 48, 3  # pixels of what is correlated, and of the local mean that is taken away from it
_TRIM = 0.01  # of the side: one of two copies may lack so much at any border
_TRIMMED = tuple(
    (_KEPT * left, _KEPT * top, _KEPT * (1 - right), _KEPT * (1 - bottom))
    for left, top, right, bottom in product((0, _TRIM), repeat=4)
)
_LEAST_CONTRAST = 1.0  # grey levels; an image with less has nothing to compare
_ROWS, _COLUMNS = 64, 4096  # of a block of distances, so that it stays in the processor's cache
_MOST_PARTNERS = 4  # candidates kept for an image: the nearest one is nearly always confirmed

Bits = NDArray[np.uint64]
Thumbnail = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Candidates:
    """Pairs within MOST_BITS, by image of b, nearest first.

    a, b: int64 [N], places in the two lists. bits: int64 [N], how many bits differ. cut: int64 [C], places in the list
    of b of the images that have more partners than are kept.
    """

    a: NDArray[np.int64]
    b: NDArray[np.int64]
    bits: NDArray[np.int64]
    cut: NDArray[np.int64]


def hash_image(data: bytes) -> Bits | None:
    """The perceptual hash of an image file, uint64 [WORDS]; None for one without any structure (blank).

    It does not depend on brightness and contrast. Raises what Pillow raises for bytes that are no image.
    """
    import imagehash

    image = _grey(data)
    if np.asarray(image.resize((_KEPT, _KEPT), Image.Resampling.BOX)).std() < _LEAST_CONTRAST:
        return None
    bits = imagehash.phash(image, hash_size=HASH_SIDE).hash
    return np.packbits(bits.ravel()).view(np.uint64)


def thumbnail(data: bytes) -> Thumbnail:
    """An image file as small grey square, uint8 [128, 128], for `correlation`."""
    return np.asarray(_grey(data).resize((_KEPT, _KEPT), Image.Resampling.LANCZOS))


def correlation(a: Thumbnail, b: Thumbnail) -> float:
    """How alike two images are in what is fine in them, up to 1, when either may lack a hundredth at any border.

    What is coarse is taken away first: it is much alike in all images of a kind.
    """
    one, other = _fine(a), _fine(b)
    return float(max((one @ other[0]).max(), (other @ one[0]).max()))


def _fine(thumbnail: Thumbnail) -> NDArray[np.float64]:
    """A thumbnail without its local mean: whole, then trimmed at its borders in every way, unit vectors [16, 48²]."""
    image = Image.fromarray(thumbnail)
    sides = (_SIDE, _SIDE)
    small = np.stack([np.asarray(image.resize(sides, Image.Resampling.LANCZOS, box=box)) for box in _TRIMMED])
    width = 2 * _REACH + 1
    around = np.pad(small.astype(np.float64), ((0, 0), (_REACH, _REACH), (_REACH, _REACH)), mode="edge")
    sums = np.pad(around.cumsum(1).cumsum(2), ((0, 0), (1, 0), (1, 0)))
    below, above = sums[:, width:], sums[:, :-width]
    means = (below[..., width:] - above[..., width:] - below[..., :-width] + above[..., :-width]) / width**2
    fine = (small - means).reshape(len(_TRIMMED), -1)
    fine -= fine.mean(axis=1, keepdims=True)
    unit: NDArray[np.float64] = fine / np.maximum(np.linalg.norm(fine, axis=1, keepdims=True), 1e-9)
    return unit


def find_candidates(a: Bits, b: Bits, progress: Progress = QUIET) -> Candidates:
    """All pairs of hashes [N, WORDS] and [M, WORDS] that differ in at most MOST_BITS; of each of b the nearest few.

    Compares every pair, in blocks: exact, and in memory that does not grow with N × M. progress: advances by one for
    each of b; the caller has started it.
    """
    found: list[NDArray[np.int64]] = []
    cut: set[int] = set()
    columns = np.ascontiguousarray(a.T)
    for row in range(0, len(b), _ROWS):
        block = b[row : row + _ROWS]
        nearest = np.empty((0, 3), dtype=np.int64)
        for near in _near(columns, block):
            near = _by_nearness(np.concatenate([nearest, near]))
            kept = _rank(near) < _MOST_PARTNERS
            nearest = near[kept]
            cut.update((near[~kept, 1] + row).tolist())
        found.append(nearest + np.array([0, row, 0]))
        progress.advance(len(block))
    table = np.concatenate([np.empty((0, 3), dtype=np.int64), *found])
    return Candidates(a=table[:, 0], b=table[:, 1], bits=table[:, 2], cut=np.array(sorted(cut), dtype=np.int64))


def _near(columns: Bits, block: Bits) -> Iterator[NDArray[np.int64]]:
    """(place in a, row in the block, bits) of the near pairs, a stretch of a at a time."""
    for start in range(0, columns.shape[1], _COLUMNS):
        part = columns[:, start : start + _COLUMNS]
        bits = np.zeros((len(block), part.shape[1]), dtype=np.uint16)
        for word in range(WORDS):
            bits += np.bitwise_count(block[:, word, None] ^ part[word])
        rows, places = np.nonzero(bits <= MOST_BITS)
        if len(rows):
            yield np.stack([places + start, rows, bits[rows, places]], axis=1).astype(np.int64)


def _by_nearness(pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """The pairs by row, distance and place."""
    return pairs[np.lexsort((pairs[:, 0], pairs[:, 2], pairs[:, 1]))]


def _rank(pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many pairs of the same row stand before each; the pairs are sorted by row."""
    return np.arange(len(pairs)) - np.searchsorted(pairs[:, 1], pairs[:, 1])


def _grey(data: bytes) -> Image.Image:
    """The image as training sees it, in grey: turned as EXIF says, alpha dropped, more than 8 bits stretched to 8."""
    with Image.open(BytesIO(data)) as image:
        plain = eight_bit(ImageOps.exif_transpose(image))
        return (plain.convert("RGBA") if plain.has_transparency_data else plain).convert("L")
