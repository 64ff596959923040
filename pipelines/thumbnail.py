"""What a graph can do with one small grey image or mask: window sums, extents, levels. Every node has a GPU kernel.

All edges are [H, W] float; masks hold 0 and 1. Sums of such small images are exact in float32, whatever their order.
Nodes cost by their number here, not by their pixels (3 µs of CPU each): hence vectors of four instead of scalars.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from nvidia.dali import fn, math, types
from nvidia.dali.data_node import DataNode

LEVEL_ROUNDS = 2
_TINY = 1e-6  # keeps a mean over nothing finite

Axis = Literal[0, 1]


def constant(values: NDArray[np.float32], device: str) -> DataNode:
    """The same values for every image."""
    layout = {"layout": "HW"} if values.ndim == 2 else {}
    return types.Constant(np.ascontiguousarray(values, np.float32), device=device, **layout)


def places(side: int, axis: Axis, device: str, *, start: int = 0, step: int = 1) -> DataNode:
    """0 … side-1 along an axis, or others: [side, 1] for the rows (axis 0), [1, side] for the columns (axis 1)."""
    ramp = start + step * np.arange(side, dtype=np.float32)
    return constant(ramp[:, None] if axis == 0 else ramp[None, :], device)


def as_mask(condition: DataNode) -> DataNode:
    """1 where it holds, else 0."""
    return condition * 1.0  # a third of what a cast costs


def resized(image: DataNode, side: int) -> DataNode:
    """An HWC uint8 image as a square of `side` pixels, bilinear with antialiasing."""
    return fn.resize(image, size=[side, side], interp_type=types.INTERP_LINEAR, antialias=True)


def as_plane(grey: DataNode) -> DataNode:
    """HWC uint8 of one channel as an edge of this module."""
    return fn.squeeze(fn.cast(grey, dtype=types.FLOAT), axes=[2])


def window_sum(x: DataNode, rows: int, columns: int, *, border: str = "constant") -> DataNode:
    """Sums over a window about each pixel; beyond the border there are zeros, or repeated values ("clamp")."""
    ones = types.Constant(np.ones((rows, columns), np.float32), device="cpu")
    if border == "constant":
        return fn.filter(x, ones, np.float32(0), border="constant", dtype=types.FLOAT)
    return fn.filter(x, ones, border=border, dtype=types.FLOAT)


def eroded(mask: DataNode) -> DataNode:
    """Pixels whose 3×3 window is full."""
    return as_mask(window_sum(mask, 3, 3) > 8.5)


def dilated(mask: DataNode) -> DataNode:
    """Pixels whose 3×3 window holds any."""
    return as_mask(window_sum(mask, 3, 3) > 0.5)


def opened(mask: DataNode) -> DataNode:
    """Drops what is thinner than three pixels."""
    return dilated(eroded(mask))


def total(x: DataNode) -> DataNode:
    """Sum of all pixels: a scalar."""
    return fn.reductions.sum(x)


def mean_within(x: DataNode, mask: DataNode) -> DataNode:
    """Mean over the pixels of a mask: a scalar, 0 for an empty one."""
    return total(x * mask) / (total(mask) + _TINY)


def two_class_level(x: DataNode, mask: DataNode | None = None, *, side: int) -> DataNode:
    """Level between a dark and a bright class, over a mask: iterated means (Ridler and Calvard 1978), fixed rounds."""
    half = 0.5 * (x if mask is None else x * mask)  # so that the two means only need to be added
    count: DataNode | float = float(side * side) if mask is None else total(mask)
    whole = total(half)
    level = whole / (0.5 * count + _TINY)
    for _ in range(LEVEL_ROUNDS):
        above = x > level
        number = total(as_mask(above) if mask is None else above * mask)
        bright = total(above * half)
        level = bright / (number + _TINY) + (whole - bright) / (count - number + _TINY)
    return level


def first_and_end(mask: DataNode, side: int, axis: Axis, device: str) -> tuple[DataNode, DataNode]:
    """Along an axis, the place of the first 1 and the place behind the last; (side, 0) where there is none.

    Axis 1 gives one of each for every row, [H, 1]; axis 0 for every column, [1, W].
    """
    to_end, to_start = places(side, axis, device, start=side, step=-1), places(side, axis, device, start=1)
    first = float(side) - fn.reductions.max(to_end * mask, axes=[axis], keep_dims=True)
    return first, fn.reductions.max(to_start * mask, axes=[axis], keep_dims=True)


def extent(mask: DataNode, side: int, least: int, device: str) -> DataNode:
    """x0, y0, x1, y1 (pixels, [4]) of the columns and rows that hold at least so many; of none, no positive size."""
    lines = fn.stack(*(fn.reductions.sum(mask, axes=[axis]) for axis in (0, 1)))  # [2, side]
    ramp = np.arange(side, dtype=np.float32)
    from_ends = constant(np.stack([side - ramp, ramp + 1])[:, None, :], device)  # [2, 1, side]
    far = fn.reshape(fn.reductions.max((lines > least - 0.5) * from_ends, axes=[2]), shape=[4])
    return constant(np.array([side, side, 0, 0], np.float32), device) + far * _signs(device)


def _signs(device: str) -> DataNode:
    return constant(np.array([-1, -1, 1, 1], np.float32), device)


def within(first: DataNode, last: DataNode, side: int, axis: Axis, device: str) -> DataNode:
    """Whether a place along an axis is from the first up to the last, both in: a boolean edge."""
    ramp = places(side, axis, device)
    return math.clamp(ramp, first, last) == ramp


def enclosed(tissue: DataNode, side: int, device: str) -> DataNode:
    """Whether between the first and the last tissue of both row and column ("in sight of tissue on four sides")."""
    (x0, x1), (y0, y1) = (first_and_end(tissue, side, axis, device) for axis in (1, 0))
    return within(x0, x1 - 1.0, side, 1, device) & within(y0, y1 - 1.0, side, 0, device)


def inverted_where(x: DataNode, flag: DataNode) -> DataNode:
    """255 - x where the scalar is 1, x where it is 0."""
    return math.abs(flag * 255.0 - x)


def chosen(flag: DataNode, yes: DataNode | float, no: DataNode | float) -> DataNode:
    """`yes` where the scalar is 1, `no` where it is 0; both finite."""
    return no + flag * (yes - no)


def larger(a: DataNode, b: DataNode | float) -> DataNode:
    """The larger of two, pixel by pixel."""
    return math.max(a, b)


def smaller(a: DataNode, b: DataNode | float) -> DataNode:
    """The smaller of two, pixel by pixel."""
    return math.min(a, b)
