"""What a graph can do with one small grey image or mask: window sums, extents, levels. Every node has a GPU kernel.

Images and masks (0 and 1) are [H, W] uint8: on the CPU a node costs what it moves through memory, and 3 µs for being
there, hence vectors of four instead of scalars. Sums of such small images are exact in float32, whatever their order.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from nvidia.dali import fn, math, types
from nvidia.dali.data_node import DataNode

LEVEL_ROUNDS = 2
_TINY = 1e-6  # keeps a mean over nothing finite

Axis = Literal[0, 1]


def constant(values: NDArray[Any], device: str) -> DataNode:
    """The same values, of the same type, for every image."""
    layout = {"layout": "HW"} if values.ndim == 2 else {}
    return types.Constant(np.ascontiguousarray(values), device=device, **layout)


def places(side: int, axis: Axis, device: str) -> DataNode:
    """0 … side-1 along an axis: [side, 1] for the rows (axis 0), [1, side] for the columns (axis 1), float."""
    return constant(_along(np.arange(side, dtype=np.float32), axis), device)


def _along(ramp: NDArray[Any], axis: Axis) -> NDArray[Any]:
    return ramp[:, None] if axis == 0 else ramp[None, :]


def as_mask(condition: DataNode) -> DataNode:
    """1 where it holds, else 0; of pixels or of one scalar."""
    return fn.reinterpret(condition, dtype=types.UINT8)


def resized(image: DataNode, side: int) -> DataNode:
    """An HWC uint8 image as a square of `side` pixels, bilinear with antialiasing."""
    return fn.resize(image, size=[side, side], interp_type=types.INTERP_LINEAR, antialias=True)


def as_plane(grey: DataNode) -> DataNode:
    """HWC uint8 of one channel as an image of this module."""
    return fn.squeeze(grey, axes=[2])


def window_sum(mask: DataNode, rows: int, columns: int) -> DataNode:
    """[H, W] uint8 sums over a window of at most 255 pixels about each; beyond the border there are zeros."""
    ones = types.Constant(np.ones((rows, columns), np.float32), device="cpu")
    return fn.filter(mask, ones, np.uint8(0), border="constant")


def eroded(mask: DataNode) -> DataNode:
    """Pixels whose 3×3 window is full."""
    return as_mask(window_sum(mask, 3, 3) > 8.5)


def dilated(mask: DataNode, side: int = 3) -> DataNode:
    """Pixels whose window, three pixels wide if not said otherwise, holds any."""
    return as_mask(window_sum(mask, side, side) > 0.5)


def opened(mask: DataNode) -> DataNode:
    """Drops what is thinner than three pixels."""
    return dilated(eroded(mask))


def total(x: DataNode) -> DataNode:
    """Sum of all pixels: a float scalar."""
    return fn.reductions.sum(x, dtype=types.FLOAT)


def mean_within(x: DataNode, mask: DataNode) -> DataNode:
    """Mean over the pixels of a mask: a scalar, 0 for an empty one."""
    return total(x * mask) / (total(mask) + _TINY)


def two_class_level(x: DataNode, mask: DataNode | None = None, *, side: int) -> DataNode:
    """Level between a dark and a bright class, over a mask: iterated means (Ridler and Calvard 1978), fixed rounds."""
    counted = x if mask is None else x * mask
    count: DataNode | float = float(side * side) if mask is None else total(mask)
    whole = total(counted)
    level = whole / (count + _TINY)
    for _ in range(LEVEL_ROUNDS):
        above = as_mask(x > level)
        number = total(above if mask is None else above * mask)
        bright = total(above * counted)
        level = 0.5 * (bright / (number + _TINY) + (whole - bright) / (count - number + _TINY))
    return level


def first_and_end(mask: DataNode, side: int, axis: Axis, device: str) -> tuple[DataNode, DataNode]:
    """Along an axis, the place of the first 1 and the place behind the last; (side, 0) where there is none.

    Axis 1 gives one of each for every row, [H, 1]; axis 0 for every column, [1, W].
    """
    to_start = np.arange(1, side + 1, dtype=np.uint8)
    to_end, end = (
        fn.reductions.max(constant(_along(ramp, axis), device) * mask, axes=[axis], keep_dims=True)
        for ramp in (to_start[::-1], to_start)
    )
    return float(side) - to_end, end


def extent(mask: DataNode, side: int, least: int, device: str) -> DataNode:
    """x0, y0, x1, y1 (pixels, [4]) of the columns and rows that hold at least so many; of none, no positive size."""
    lines = fn.stack(*(fn.reductions.sum(mask, axes=[axis], dtype=types.FLOAT) for axis in (0, 1)))  # [2, side]
    ramp = np.arange(side, dtype=np.float32)
    from_ends = constant(np.stack([side - ramp, ramp + 1])[:, None, :], device)  # [2, 1, side]
    far = fn.reshape(fn.reductions.max((lines > least - 0.5) * from_ends, axes=[2]), shape=[4])
    signs = constant(np.array([-1, -1, 1, 1], np.float32), device)
    return constant(np.array([side, side, 0, 0], np.float32), device) + far * signs


def within(first: DataNode, last: DataNode, side: int, axis: Axis, device: str) -> DataNode:
    """Whether a place along an axis is from the first up to the last, both in: a boolean edge."""
    ramp = places(side, axis, device)
    return (ramp >= first) & (ramp <= last)


def enclosed(tissue: DataNode, side: int, device: str) -> DataNode:
    """Mask of what is between the first and the last tissue of both its row and its column."""
    (x0, x1), (y0, y1) = (first_and_end(tissue, side, axis, device) for axis in (1, 0))
    return as_mask(within(x0, x1 - 1.0, side, 1, device) & within(y0, y1 - 1.0, side, 0, device))


def inverted_where(x: DataNode, flag: DataNode) -> DataNode:
    """255 - x where the scalar is 1, x where it is 0."""
    return x ^ fn.cast(flag * 255.0, dtype=types.UINT8)


def chosen(flag: DataNode, yes: DataNode | float, no: DataNode | float) -> DataNode:
    """`yes` where the scalar is 1, `no` where it is 0; both finite."""
    return no + flag * (yes - no)


def larger(a: DataNode, b: DataNode | float) -> DataNode:
    """The larger of two, pixel by pixel."""
    return math.max(a, b)


def smaller(a: DataNode, b: DataNode | float) -> DataNode:
    """The smaller of two, pixel by pixel."""
    return math.min(a, b)
