"""What thumbnail.py is built of, as nodes of a DALI graph: one image each. Every node has a GPU kernel.

Images are [H, W], lines [H, 1] and [1, W], boxes [4], scalars have no axes. On the CPU a node costs 2.5 µs an image for
being there, which is why thumbnail_arrays.py does all of it there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from nvidia.dali import fn, math, types
from nvidia.dali.data_node import DataNode


def constant(values: NDArray[Any], like: DataNode) -> DataNode:
    layout = {"layout": "HW"} if values.ndim == 2 else {}
    return types.Constant(np.ascontiguousarray(values), device=like.device, **layout)


def as_mask(condition: DataNode) -> DataNode:
    return fn.reinterpret(condition, dtype=types.UINT8)


def over(x: DataNode, level: DataNode) -> DataNode:
    return x > level


def below(x: DataNode, level: DataNode) -> DataNode:
    return x < level


def at_least(x: DataNode, level: DataNode) -> DataNode:
    return x >= level


def within(first: DataNode, last: DataNode, ramp: NDArray[Any]) -> DataNode:
    places = constant(ramp.astype(np.float32), first)
    return (places >= first) & (places <= last)


def window_sum(mask: DataNode, rows: int, columns: int) -> DataNode:
    ones = types.Constant(np.ones((rows, columns), np.float32), device="cpu")
    return fn.filter(mask, ones, np.uint8(0), border="constant")


def varies(q: DataNode) -> DataNode:
    """By the variance of the window, which is 0 only for equal values: 9 Σq² - (Σq)² ≥ 8 otherwise."""
    ones = types.Constant(np.ones((3, 3), np.float32), device="cpu")
    q = fn.cast(q, dtype=types.FLOAT)
    sums, squares = (fn.filter(values, ones, border="clamp") for values in (q, q * q))
    return 9.0 * squares - sums * sums > 0.5


def total(x: DataNode) -> DataNode:
    return fn.reductions.sum(x, dtype=types.FLOAT)


def line_max(x: DataNode, axis: int) -> DataNode:
    return fn.reductions.max(x, axes=[axis], keep_dims=True)


def greatest(x: DataNode) -> DataNode:
    return fn.reductions.max(x)


def least(x: DataNode) -> DataNode:
    return fn.reductions.min(x)


def furthest(mask: DataNode, from_ends: NDArray[np.float32], least_held: int) -> DataNode:
    lines = fn.stack(*(fn.reductions.sum(mask, axes=[axis], dtype=types.FLOAT) for axis in (0, 1)))  # [2, side]
    held = (lines > least_held - 0.5) * constant(from_ends[:, None, :], mask)  # [2, 2, side]
    return fn.reshape(fn.reductions.max(held, axes=[2]), shape=[4])


def fewer_in_corners(mask: DataNode, side: int, size: int) -> tuple[DataNode, DataNode]:
    blocks = side // size
    parts = fn.reshape(mask, shape=[blocks, size] * 2, layout="")
    held = fn.reductions.sum(parts, axes=[1, 3], dtype=types.FLOAT)
    inner_columns = np.full((1, blocks), size * size, np.float32)
    inner_columns[0, [0, -1]] = 0
    fewer = fn.reductions.min(held + constant(inner_columns, mask), axes=[1])
    return fewer[0], fewer[-1]


def part(x: DataNode, rows: slice | None, columns: slice) -> DataNode:
    return x[columns] if rows is None else x[rows, columns]


def place(box: DataNode, at: int) -> DataNode:
    return box[at]


def joined(a: DataNode, b: DataNode) -> DataNode:
    return fn.cat(a, b)


def as_bytes(x: DataNode) -> DataNode:
    return fn.cast(x, dtype=types.UINT8)


def larger(a: DataNode, b: DataNode | float) -> DataNode:
    return math.max(a, b)


def smaller(a: DataNode, b: DataNode | float) -> DataNode:
    return math.min(a, b)


def magnitude(x: DataNode) -> DataNode:
    return math.abs(x)
