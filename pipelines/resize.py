"""Resizing, bilinear with antialiasing; and the one place where the CPU's graph has another node than the GPU's.

DALI resizes on the CPU without vector instructions, which took half the time of a recipe. Images that are already on
the CPU are therefore resized by torch, which has them for 8 bits: within a graph, in as many threads as the pipeline
has, and to a value of 1 the same pixels. Nothing is drawn or kept in that node, so checkpoints need not know of it.
Images of 16 bits stay with DALI.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from nvidia.dali import fn, types
from nvidia.dali.data_node import DataNode
from nvidia.dali.pipeline import Pipeline
from torch import Tensor
from torch.utils.dlpack import from_dlpack

_CHANNELS = 4  # of an image, which torch resizes at once


def square(image: DataNode, side: int, *, bits: int) -> DataNode:
    """The whole HWC image as a square of `side` pixels: uint8 of 8 bits, or float of 16."""
    if image.device == "cpu" and bits == 8:
        return _by_torch([image], side, side)
    return fn.resize(image, size=[side, side], interp_type=types.INTERP_LINEAR, antialias=True)


def part_of_square(
    image: DataNode, whole: int, side: int, *, bits: int, x: DataNode | float, y: DataNode | float
) -> DataNode:
    """A `side` pixel crop of the image as a square of `whole` pixels, at these fractions of the room there is for it.

    DALI makes the crop alone: to a value of 1 the same pixels.
    """
    corner = (1 - side / whole) * fn.stack(y, x)
    if image.device == "cpu" and bits == 8:
        return _by_torch([image, corner], whole, side)
    return window(image, corner, corner + side / whole, side)


def part_of_window(
    image: DataNode, start: DataNode, end: DataNode, whole: int, side: int, *, x: DataNode | float, y: DataNode | float
) -> DataNode:
    """The same of `window`: the crop alone is made, to a value of 1 the same pixels."""
    share, size = side / whole, end - start
    corner = start + (1 - share) * fn.stack(y, x) * size
    return window(image, corner, corner + share * size, side)


def window(image: DataNode, start: DataNode, end: DataNode, side: int) -> DataNode:
    """The part of an image between two corners, [2] (y, x) on the CPU as fractions of it, as a square of `side` pixels.

    DALI's on the CPU too: torch has no windows but of whole pixels.
    """
    return fn.resize(
        image,
        size=[side, side],
        roi_start=start,
        roi_end=end,
        roi_relative=True,
        interp_type=types.INTERP_LINEAR,
        antialias=True,
    )


def _by_torch(inputs: list[DataNode], whole: int, side: int) -> DataNode:
    """Images, and the corners of their crops unless these are the whole."""
    return fn.dl_tensor_python_function(
        *inputs,
        function=_batch_function(whole, side, threads=Pipeline.current().num_threads),
        batch_processing=True,
        output_layouts="HWC",
    )


def _batch_function(whole: int, side: int, threads: int) -> Callable[..., list[Any]]:
    """What DALI calls with the images of a batch; the threads are of this graph alone and end with it."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="resize")

    def every(first: int, *columns: Sequence[Any]) -> list[Any]:
        rows = zip(*(column[first::threads] for column in columns), strict=True)
        return [resized_crop(whole, side, *map(from_dlpack, row)).__dlpack__() for row in rows]

    def batch(*columns: Sequence[Any]) -> list[Any]:
        done: list[Any] = [None] * len(columns[0])
        for first, part in enumerate(pool.map(lambda first: every(first, *columns), range(threads))):
            done[first::threads] = part
        return done

    return batch


def resized_crop(whole: int, side: int, image: Tensor, corner: Tensor | None = None) -> Tensor:
    """An HWC uint8 image of one or three channels as a square of `whole` pixels, or a crop of that.

    corner: of the `side` pixel crop, (y, x) as fractions of the square. All copies are numpy's: torch would share
    those among threads of its own, a team for every thread that calls it.
    """
    if image.shape[2] == 1:
        done = _grey(image[:, :, 0].numpy(), whole)[:, :, None]
    else:
        done = _interpolated(image.permute(2, 0, 1), whole, whole).permute(1, 2, 0).numpy()
    top, left = (0, 0) if corner is None else (round(whole * place) for place in corner.tolist())
    return torch.from_numpy(np.ascontiguousarray(done[top : top + side, left : left + side]))


def _grey(plane: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """An [H, W] plane as a square. Torch always works on four channels: so four parts of the plane are passed as such.

    First its width, for which they are bands of rows, then its height, for which they are every fourth column: bit by
    bit what torch itself makes of it.
    """
    rows, columns = plane.shape
    bands = _enlarged(plane, -rows % _CHANNELS, 0).reshape(_CHANNELS, -1, columns)
    narrow = _interpolated(torch.from_numpy(bands), bands.shape[1], side).numpy().reshape(-1, side)[:rows]
    packed = _enlarged(narrow, 0, -side % _CHANNELS).reshape(rows, -1, _CHANNELS)
    done = _interpolated(torch.from_numpy(packed).permute(2, 0, 1), side, packed.shape[1]).permute(1, 2, 0)
    return done.numpy().reshape(side, -1)[:, :side]


def _enlarged(plane: NDArray[np.uint8], rows: int, columns: int) -> NDArray[np.uint8]:
    """With so many rows and columns more, of zeros; itself where there are none."""
    if not rows and not columns:
        return plane
    larger = np.zeros((plane.shape[0] + rows, plane.shape[1] + columns), np.uint8)
    larger[: plane.shape[0], : plane.shape[1]] = plane
    return larger


def _interpolated(image: Tensor, height: int, width: int) -> Tensor:
    """[C, H, W] as [C, height, width]."""
    return F.interpolate(image[None], size=(height, width), mode="bilinear", antialias=True)[0]
