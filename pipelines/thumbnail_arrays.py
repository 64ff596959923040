"""What thumbnail.py is built of, as numpy arrays of a batch: for the CPU, on which DALI's nodes cost far more.

Images are [N, H, W], lines [N, H, 1] and [N, 1, W], boxes [N, 1, 4], scalars [N, 1, 1], so that all of them broadcast.
Bytes stay bytes wherever it can be: numpy works on these fastest, and converts slowly.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def constant(values: Array, like: Array) -> Array:  # noqa: ARG001  # as its namesake for nodes
    return values


def as_mask(condition: Array) -> Array:
    return condition.view(np.uint8)


def over(x: Array, level: Array) -> Array:
    if x.dtype != np.uint8:
        return x > level
    whole = np.floor(level)
    found = x > whole.clip(0, 255).astype(np.uint8)
    return found if (whole >= 0).all() else found | (whole < 0)


def below(x: Array, level: Array) -> Array:
    if x.dtype != np.uint8:
        return x < level
    whole = np.ceil(level)
    found = x < whole.clip(0, 255).astype(np.uint8)
    return found if (whole <= 255).all() else found | (whole > 255)


def at_least(x: Array, level: Array) -> Array:
    return ~below(x, level)


def within(first: Array, last: Array, ramp: Array) -> Array:
    """Places are whole numbers; as bytes, since these are compared fastest."""
    start, end = (edge.clip(0, 255).astype(np.uint8) for edge in (first, last + 1))
    return (ramp >= start) & (ramp < end)


def window_sum(mask: Array, rows: int, columns: int) -> Array:
    """Along rows, then along columns, over all images as one line; sums that run over the end of a row are not used."""
    count, high, wide = mask.shape
    padded = np.zeros((count, high + rows - 1, wide + columns - 1), np.uint8)
    padded[:, rows // 2 : rows // 2 + high, columns // 2 : columns // 2 + wide] = mask
    flat = _running_sum(_running_sum(padded.reshape(-1), columns, 1), rows, padded.shape[2])
    return np.lib.stride_tricks.as_strided(flat, mask.shape, padded.strides)


def _running_sum(flat: Array, length: int, step: int) -> Array:
    """Sums of so many values, a step apart, from each on; shorter than `flat` by what the last would reach beyond it.

    By sums of 1, 2, 4, … values.
    """
    done: Array | None = None
    held, doubled, size = 0, flat, 1
    while True:
        if length & size:
            begun = doubled[held * step :]
            done = begun if done is None else done[: len(begun)] + begun[: len(done)]
            held += size
        if held == length:
            assert done is not None
            return done
        doubled, size = doubled[: len(doubled) - size * step] + doubled[size * step :], 2 * size


def varies(q: Array) -> Array:
    high, wide = q.shape[1:]
    padded = np.pad(q, ((0, 0), (1, 1), (1, 1)), mode="edge")
    windows = [padded[:, y : y + high, x : x + wide] for y in range(3) for x in range(3)]
    found: Array = np.maximum.reduce(windows) != np.minimum.reduce(windows)
    return found


def total(x: Array) -> Array:
    done: Array = np.add.reduce(x.astype(np.float32).reshape(len(x), -1), axis=1).reshape(-1, 1, 1)
    return done


def line_max(x: Array, axis: int) -> Array:
    done: Array = x.max(axis=axis + 1, keepdims=True).astype(np.float32)
    return done


def greatest(x: Array) -> Array:
    done: Array = x.max(axis=(1, 2), keepdims=True)
    return done


def least(x: Array) -> Array:
    done: Array = x.min(axis=(1, 2), keepdims=True)
    return done


def furthest(mask: Array, from_ends: NDArray[np.float32], least_held: int) -> Array:
    lines = np.stack([np.add.reduce(mask, axis=axis, dtype=np.uint8) for axis in (1, 2)], axis=1)  # [N, 2, side]
    held = (lines >= least_held)[:, None] * from_ends[:, None, :]
    done: Array = held.max(axis=3).reshape(-1, 1, 4)
    return done


def fewer_in_corners(mask: Array, side: int, size: int) -> tuple[Array, Array]:
    rim = slice(size), slice(side - size, side)
    top, bottom = (np.minimum(*(total(mask[:, rows, columns]) for columns in rim)) for rows in rim)
    return top, bottom


def part(x: Array, rows: slice | None, columns: slice) -> Array:
    return x[:, :, columns] if rows is None else x[:, rows, columns]


def place(box: Array, at: int) -> Array:
    return box[:, :, at : at + 1]


def joined(a: Array, b: Array) -> Array:
    return np.concatenate([a, b], axis=2)


def as_bytes(x: Array) -> Array:
    return x.astype(np.uint8)


def larger(a: Array, b: Array | float) -> Array:
    return np.maximum(a, b)


def smaller(a: Array, b: Array | float) -> Array:
    return np.minimum(a, b)


def magnitude(x: Array) -> Array:
    return np.abs(x)
