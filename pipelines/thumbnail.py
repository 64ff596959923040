"""What can be done with one small grey image or mask: window sums, extents, levels.

Written once, for two kinds of values: nodes of a DALI graph (thumbnail_nodes.py), of which every one has a GPU kernel;
and numpy arrays of a batch (thumbnail_arrays.py), for the CPU's graph, at a fraction of what nodes cost there.
Images and masks (0 and 1) are uint8. Sums of such small images are exact in float32, whatever their order.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from nvidia.dali import fn, types
from nvidia.dali.data_node import DataNode

from pipelines import thumbnail_arrays, thumbnail_nodes

LEVEL_ROUNDS = 2
_TINY = 1e-6  # keeps a mean over nothing finite

Axis = Literal[0, 1]
Values: TypeAlias = Any
"""A DataNode of one image, or an array of a batch; image, line, box or scalar."""


def _of(values: Values) -> ModuleType:
    return thumbnail_arrays if isinstance(values, np.ndarray) else thumbnail_nodes


def resized(image: DataNode, side: int) -> DataNode:
    """An HWC uint8 image as a square of `side` pixels, bilinear with antialiasing; a node."""
    return fn.resize(image, size=[side, side], interp_type=types.INTERP_LINEAR, antialias=True)


def as_plane(grey: DataNode) -> DataNode:
    """HWC uint8 of one channel as an image of this module; a node."""
    return fn.squeeze(grey, axes=[2])


def constant(values: NDArray[Any], like: Values) -> Values:
    """The same values, of the same type, for every image; `like` tells nodes from arrays."""
    return _of(like).constant(values, like)


def as_mask(condition: Values) -> Values:
    """1 where it holds, else 0; of pixels or of one scalar."""
    return _of(condition).as_mask(condition)


def over(x: Values, level: Values) -> Values:
    """Whether a pixel is greater than the scalar."""
    return _of(x).over(x, level)


def below(x: Values, level: Values) -> Values:
    """Whether a pixel is less than the scalar."""
    return _of(x).below(x, level)


def at_least(x: Values, level: Values) -> Values:
    """Whether a pixel is the scalar or greater."""
    return _of(x).at_least(x, level)


def window_sum(mask: Values, rows: int, columns: int) -> Values:
    """[H, W] uint8 sums over a window of at most 255 pixels about each; beyond the border there are zeros."""
    return _of(mask).window_sum(mask, rows, columns)


def eroded(mask: Values) -> Values:
    """Pixels whose 3×3 window is full."""
    return as_mask(window_sum(mask, 3, 3) > 8)


def dilated(mask: Values, side: int = 3) -> Values:
    """Pixels whose window, three pixels wide if not said otherwise, holds any."""
    return as_mask(window_sum(mask, side, side) > 0)


def opened(mask: Values) -> Values:
    """Drops what is thinner than three pixels."""
    return dilated(eroded(mask))


def varies(q: Values) -> Values:
    """Whether the 3×3 window about a pixel holds more than one value; q: small whole numbers, clamped at the border."""
    return _of(q).varies(q)


def total(x: Values) -> Values:
    """Sum of all pixels: a float scalar."""
    return _of(x).total(x)


def mean_within(x: Values, mask: Values) -> Values:
    """Mean over the pixels of a mask: a scalar, 0 for an empty one."""
    return total(x * mask) / (total(mask) + _TINY)


def two_class_level(x: Values, mask: Values | None = None, *, side: int) -> Values:
    """Level between a dark and a bright class, over a mask: iterated means (Ridler and Calvard 1978), fixed rounds."""
    counted = x if mask is None else x * mask
    count: Values = float(side * side) if mask is None else total(mask)
    whole = total(counted)
    level = whole / (count + _TINY)
    for _ in range(LEVEL_ROUNDS):
        above = as_mask(over(x, level))
        number = total(above if mask is None else above * mask)
        bright = total(above * counted)
        level = 0.5 * (bright / (number + _TINY) + (whole - bright) / (count - number + _TINY))
    return level


def first_and_end(mask: Values, side: int, axis: Axis) -> tuple[Values, Values]:
    """Along an axis, the place of the first 1 and the place behind the last; (side, 0) where there is none.

    Axis 1 gives one of each for every row, [H, 1]; axis 0 for every column, [1, W].
    """
    to_start = np.arange(1, side + 1, dtype=np.uint8)
    to_end, end = (
        _of(mask).line_max(constant(_along(ramp, axis), mask) * mask, axis) for ramp in (to_start[::-1], to_start)
    )
    return float(side) - to_end, end


def within(first: Values, last: Values, side: int, axis: Axis) -> Values:
    """Whether a place along an axis is from the first up to the last, both in and whole numbers: a boolean edge."""
    return _of(first).within(first, last, _along(np.arange(side, dtype=np.uint8), axis))


def enclosed(tissue: Values, side: int) -> Values:
    """Mask of what is between the first and the last tissue of both its row and its column."""
    (x0, x1), (y0, y1) = (first_and_end(tissue, side, axis) for axis in (1, 0))
    return as_mask(within(x0, x1 - 1.0, side, 1) & within(y0, y1 - 1.0, side, 0))


def extent(mask: Values, side: int, least_held: int) -> Values:
    """x0, y0, x1, y1 (pixels, a box) of the columns and rows that hold at least so many; of none, no positive size."""
    ramp = np.arange(side, dtype=np.float32)
    far = _of(mask).furthest(mask, np.stack([side - ramp, ramp + 1]), least_held)
    signs = constant(np.array([-1, -1, 1, 1], np.float32), mask)
    return constant(np.array([side, side, 0, 0], np.float32), mask) + far * signs


def fewer_in_corners(mask: Values, side: int, size: int) -> tuple[Values, Values]:
    """Pixels of a mask in squares of `size` in the corners: in that one of the top, and of the bottom, with fewer."""
    fewer: tuple[Values, Values] = _of(mask).fewer_in_corners(mask, side, size)
    return fewer


def part(x: Values, rows: slice, columns: slice) -> Values:
    """Some rows and columns of an image."""
    return _of(x).part(x, rows, columns)


def corner(box: Values, which: Literal[0, 1]) -> Values:
    """The first (x0, y0) or the last (x1, y1) corner of a box; [2] as a node, [N, 1, 2] as an array."""
    return _of(box).part(box, None, slice(2 * which, 2 * which + 2))


def place(values: Values, at: int) -> Values:
    """One number of a box or a corner: a scalar."""
    return _of(values).place(values, at)


def joined(a: Values, b: Values) -> Values:
    """Two corners as a box."""
    return _of(a).joined(a, b)


def greatest(x: Values) -> Values:
    """The greatest value: a scalar."""
    return _of(x).greatest(x)


def least(x: Values) -> Values:
    """The least value: a scalar."""
    return _of(x).least(x)


def inverted_where(x: Values, flag: Values) -> Values:
    """255 - x where the scalar is 1, x where it is 0."""
    return x ^ _of(x).as_bytes(flag * 255.0)


def chosen(flag: Values, yes: Values | float, no: Values | float) -> Values:
    """`yes` where the scalar is 1, `no` where it is 0; both finite."""
    return no + flag * (yes - no)


def larger(a: Values, b: Values | float) -> Values:
    """The larger of two, pixel by pixel."""
    return _of(a).larger(a, b)


def smaller(a: Values, b: Values | float) -> Values:
    """The smaller of two, pixel by pixel."""
    return _of(a).smaller(a, b)


def distance(x: Values, level: Values) -> Values:
    """How far every pixel is from the scalar, float."""
    return _of(x).magnitude(x - level)


def _along(ramp: NDArray[Any], axis: Axis) -> NDArray[Any]:
    return ramp[:, None] if axis == 0 else ramp[None, :]
