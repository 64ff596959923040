"""The paper's Generator inside the DALI graph: locate the lungs, crop five regions, resize (paper §5.3, eq. 4).

The paper marks a boundary pixel where a 3×3 window holds more than one value. On grey values that marks nearly every
pixel, so the image is quantised first (ours): air against tissue, and of the air only what lies inside the body. No
connected components are needed, hence every node has a GPU kernel. Works on a thumbnail of the un-augmented image.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from nvidia.dali import fn, math, types
from nvidia.dali.data_node import DataNode

from pipelines.recipe import REGION_NAMES

SIDE = 96
"""Side of the thumbnail in pixels (ours)."""
THRESHOLD_ROUNDS = 3
LEAST_AREA = 0.02
"""Share of the thumbnail below which the lungs count as not found (ours)."""

TEMPLATE: dict[str, tuple[float, float, float, float]] = {
    "ru": (0.25, 1 / 6, 0.5, 1 / 3),
    "rm": (0.25, 3 / 6, 0.5, 1 / 3),
    "rl": (0.25, 5 / 6, 0.5, 1 / 3),
    "lu": (0.75, 0.25, 0.5, 0.5),
    "ll": (0.75, 0.75, 0.5, 0.5),
}
"""Location tuples (centre x, centre y, width, height) as fractions of the lung box; read off paper Fig. 2, whose
numbers are not printed. Radiological view: the patient's right is on the left of the image."""
assert tuple(TEMPLATE) == REGION_NAMES


def locate(image: DataNode, device: str) -> tuple[DataNode, DataNode]:
    """Lung box of an RGB image: [4] float (x0, y0, x1, y1) as fractions of the image, and [1] float fallback.

    fallback is 1 where no lungs were found; the box is then the whole image.
    """
    found = lung_air(thumbnail(image), device)
    return bounding_box(boundary_map(found), device)


def regions(image: DataNode, box: DataNode, side: int) -> list[DataNode]:
    """The five regions of the template within the box, each resized to `side` pixels square: uint8 HWC.

    The box comes to the CPU for this (16 bytes an image): the resize takes its window as a named argument.
    """
    corner = box.cpu()
    left, top = corner[0], corner[1]
    width, height = corner[2] - left, corner[3] - top
    cut = []
    for x, y, w, h in TEMPLATE.values():
        cut.append(
            fn.resize(
                image,
                size=[side, side],
                roi_start=fn.stack(top + (y - h / 2) * height, left + (x - w / 2) * width),
                roi_end=fn.stack(top + (y + h / 2) * height, left + (x + w / 2) * width),
                roi_relative=True,
                interp_type=types.INTERP_LINEAR,
                antialias=True,
            )
        )
    return cut


def thumbnail(image: DataNode) -> DataNode:
    """[SIDE, SIDE] float grey values 0 … 255 of an RGB image, whatever its aspect ratio."""
    grey = fn.color_space_conversion(image, image_type=types.RGB, output_type=types.GRAY)
    small = fn.resize(grey, size=[SIDE, SIDE], interp_type=types.INTERP_LINEAR, antialias=True)
    return fn.squeeze(fn.cast(small, dtype=types.FLOAT), axes=[2])


def lung_air(x: DataNode, device: str) -> DataNode:
    """[SIDE, SIDE] 0/1: dark pixels inside the body.

    A soft-tissue window shows lungs and fat dark alike, then nothing inside the body is found at first: the dark
    class is split once more.
    """
    first = _threshold(x)
    air = _inside(x, first, device)
    missed = fn.cast(fn.reductions.sum(air) < LEAST_AREA * SIDE * SIDE, dtype=types.FLOAT)
    return (1.0 - missed) * air + missed * _inside(x, _threshold(math.min(x, first)), device)


def boundary_map(q: DataNode) -> DataNode:
    """0/1: the 3×3 window around a pixel holds more than one value (paper §5.3); q: small whole numbers.

    By the variance of the window, which is 0 only for equal values: 9 Σq² - (Σq)² ≥ 8 otherwise.
    """
    total = _window_sum(q, border="clamp")
    return fn.cast(9.0 * _window_sum(q * q, border="clamp") - total * total > 0.5, dtype=types.FLOAT)


def bounding_box(edge: DataNode, device: str) -> tuple[DataNode, DataNode]:
    """Extent of the rows and columns that hold any boundary: box [4] and fallback [1], see `locate`.

    Specks cannot widen it: what `lung_air` finds is at least three pixels wide and high.
    """
    x0, x1, columns = _extent(fn.reductions.sum(edge, axes=[0]), device)
    y0, y1, rows = _extent(fn.reductions.sum(edge, axes=[1]), device)
    found = columns * rows
    whole = _constant(np.array([0, 0, 1, 1], np.float32), device)
    box = fn.stack(x0, y0, x1, y1)
    return found * box + (1.0 - found) * whole, fn.stack(1.0 - found)


def _constant(values: NDArray[np.float32], device: str) -> DataNode:
    return types.Constant(np.ascontiguousarray(values), device=device)


def _window_sum(x: DataNode, border: str) -> DataNode:
    """3×3 sums; beyond the border values are repeated ("clamp") or 0 ("constant")."""
    ones = types.Constant(np.ones((3, 3), np.float32), device="cpu")
    if border == "constant":
        return fn.filter(x, ones, np.float32(0), border="constant", dtype=types.FLOAT)
    return fn.filter(x, ones, border=border, dtype=types.FLOAT)


def _opened(mask: DataNode) -> DataNode:
    """3×3 opening: drops what is thinner than three pixels."""
    eroded = fn.cast(_window_sum(mask, "constant") > 8.5, dtype=types.FLOAT)
    return fn.cast(_window_sum(eroded, "constant") > 0.5, dtype=types.FLOAT)


def _threshold(x: DataNode) -> DataNode:
    """Two-class threshold by iterated means (Ridler and Calvard 1978): starts at the mean, a fixed number of rounds."""
    pixels = float(SIDE * SIDE)
    total = fn.reductions.sum(x)
    level = total / pixels
    for _ in range(THRESHOLD_ROUNDS):
        bright = fn.cast(x > level, dtype=types.FLOAT)
        count = fn.reductions.sum(bright)
        bright_total = fn.reductions.sum(bright * x)
        dark_mean = (total - bright_total) / (pixels - count + 1e-6)
        level = 0.5 * (bright_total / (count + 1e-6) + dark_mean)
    return level


def _inside(x: DataNode, level: DataNode, device: str) -> DataNode:
    """Pixels darker than `level` strictly between the first and last tissue of both their row and their column.

    Tissue is opened before it counts (the table, frames and lettering are thin), and so is the result.
    """
    dark = fn.cast(x < level, dtype=types.FLOAT)
    tissue = _opened(1.0 - dark)
    ramp = np.arange(SIDE, dtype=np.float32)
    columns = types.Constant(np.ascontiguousarray(np.broadcast_to(ramp, (SIDE, SIDE))), device=device, layout="HW")
    rows = types.Constant(
        np.ascontiguousarray(np.broadcast_to(ramp[:, None], (SIDE, SIDE))), device=device, layout="HW"
    )
    seen = _between(columns, tissue, axis=1) & _between(rows, tissue, axis=0)
    return _opened(dark * fn.cast(seen, dtype=types.FLOAT))


def _between(ramp: DataNode, tissue: DataNode, axis: int) -> DataNode:
    """Where `ramp` is strictly between the first and last place of tissue along an axis; nowhere without tissue."""
    first = fn.reductions.min(ramp * tissue + float(SIDE) * (1.0 - tissue), axes=[axis], keep_dims=True)
    last = fn.reductions.max(ramp * tissue - (1.0 - tissue), axes=[axis], keep_dims=True)
    return (ramp > first) & (ramp < last)


def _extent(projection: DataNode, device: str) -> tuple[DataNode, DataNode, DataNode]:
    """First and last filled bin of a projection as fractions, and 1 if there is any (else 0, fractions meaningless)."""
    ramp = _constant(np.arange(SIDE, dtype=np.float32), device)
    filled = fn.cast(projection > 0.5, dtype=types.FLOAT)
    first = fn.reductions.min(ramp * filled + float(SIDE) * (1.0 - filled))
    last = fn.reductions.max((ramp + 1.0) * filled)
    return first / float(SIDE), last / float(SIDE), fn.reductions.max(filled)
