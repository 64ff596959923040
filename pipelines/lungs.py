"""Second look at a CT slice, at the body alone: which pixels are lung, and whether they can be a chest's lungs.

No connected components: they have no GPU kernel, and vessels and consolidation split lungs anyway. Lung is what is dark
and enclosed by tissue in its row and column; openings and a count of neighbours drop what is small.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from nvidia.dali import fn, math, types
from nvidia.dali.data_node import DataNode

from pipelines import thumbnail as t
from pipelines.body import Body

SIDE = 96
"""Of the image in which lungs are recognised and their borders placed."""
CORNER = SIDE // 12  # of the squares looked at in the corners

GAS_SHARE = 0.04
"""Of the way from air to tissue: what is darker is gas. In Hounsfield units -960, where no lung is as a whole."""
DARKEST_AIR, LUNG_CONTRAST = 6.0, 12.0
"""Grey value below which the air about the body is cut off by the window, so that lung may look the same; unless it is
brighter than that air by the second."""
LARGEST_SPREAD = 0.025  # of that air about its mean, as a share of the way from air to tissue
LEAST_OUTSIDE = 0.01  # share of the image that must be such air
REGROWTH, REGROWTH_STEP, REGROWTH_STEPS = 5, 3, 4
"""Sides of the windows about what is surely lung in which darker lung is kept too: the first, and those that follow."""
NEIGHBOURHOOD, NEIGHBOURS = 13, 30
"""Lung has so many lung pixels in a window of this side about it: thin crescents have, letters and specks have not."""

EDGE_PIXELS = 2  # a row or column with fewer holds no lung
LEAST_WIDTH, LEAST_HEIGHT, LEAST_AREA = 0.25, 0.12, 0.04
"""Of a lung box, as shares of the body's image; smaller ones are doubted."""
LEAST_LUNG = 0.08
"""Share of its box that lung must be."""
LEAST_SIDE = 0.03
"""Share of lung that must lie on either side of the body's middle."""
THICKEST_BACK, BACK_PER_WIDTH = 0.76, 0.6
"""Tissue behind the lungs, as a share of the body's image, is at most the first less the second times the lungs' width:
lungs that span the chest lie along the spine to near the back, where those near the neck have the shoulders behind
them. What is thicker is lung that was not seen: consolidated, or there is none and this is bowel."""
MOST_IN_CORNERS = 0.25
"""Share of the four corners' pixels that may be lung; bodies are round, what fills corners is the air about them."""


def lung_mask(x: DataNode, body: Body, device: str) -> tuple[DataNode, DataNode]:
    """Lung in the body's image, grey values not inverted: a [SIDE, SIDE] mask; and the row behind the last tissue."""
    tissue = t.as_mask(x >= body.air_level)
    seen, end = _enclosed_or_cut(tissue, device)
    core = t.opened(t.as_mask(seen > tissue))
    outside = t.eroded(t.as_mask((seen + tissue) < 0.5))
    core = _without_gas(x, core, outside, t.mean_within(x, tissue))
    rows = t.window_sum(core, NEIGHBOURHOOD, 1)
    return core * (t.window_sum(rows, 1, NEIGHBOURHOOD) > NEIGHBOURS - 0.5), end


def border_mask(x: DataNode, lung: DataNode, body: Body) -> DataNode:
    """[SIDE, SIDE] 0/1: lung with its border placed anew, grey values not inverted.

    Inside is lung whatever its grey value; about the rim (a pixel to both sides) what is below edge_level.
    """
    neighbours = t.window_sum(lung, 3, 3)
    return t.as_mask((neighbours > 0.5) & ((neighbours > 8.5) | (x < body.edge_level)))


def is_plausible(box: DataNode, lung: DataNode, end: DataNode, device: str) -> DataNode:
    """1 if lung and its box ([4], fractions of the body's image) may be a chest's.

    They must be of some size, on both sides, not in the corners, and reach near the back. end: as `lung_mask` gives it.
    """
    size = box[2:] - box[:2]
    area = size[0] * size[1]
    least = t.constant(np.array([LEAST_WIDTH, LEAST_HEIGHT], np.float32), device)
    number = t.total(lung)
    left = t.total(lung[:, : SIDE // 2])
    back = end * (1 / SIDE) - box[3]
    return (
        t.as_mask(fn.reductions.min(size - least) > 0.0)
        * (area > LEAST_AREA)
        * (number > area * (LEAST_LUNG * SIDE * SIDE))
        * (t.smaller(left, number - left) > LEAST_SIDE * number)
        * (back + BACK_PER_WIDTH * size[0] < THICKEST_BACK)
        * (t.total(lung * t.constant(_corners(), device)) < MOST_IN_CORNERS * 4 * CORNER * CORNER)
    )


def _corners() -> NDArray[np.uint8]:
    corners = np.zeros((SIDE, SIDE), np.uint8)
    rim = np.r_[:CORNER, SIDE - CORNER : SIDE]
    corners[np.ix_(rim, rim)] = 1
    return corners


def _enclosed_or_cut(tissue: DataNode, device: str) -> tuple[DataNode, DataNode]:
    """What is between tissue on all four sides, a mask, and the row behind the last tissue, a scalar.

    Where the image cuts a lung off, the cut counts as tissue. A cut on the left or right is a stretch of the image
    border between tissue; one at the top or bottom asks for tissue in both corners, since air lies between the breasts.
    Tissue is opened first: table, frames and lettering are thin.
    """
    light = _least_in_corners(tissue, device) > 0.5 * CORNER * CORNER - 0.25
    tissue = t.opened(tissue)
    (x0, x1), (y0, y1) = (t.first_and_end(tissue, SIDE, axis, device) for axis in (1, 0))
    y_last = y1 - 1.0
    left_cut, right_cut = (
        t.within(y0[:, at : at + 1], y_last[:, at : at + 1], SIDE, 0, device) for at in (0, SIDE - 1)
    )
    across = t.within(x0 * (left_cut < 0.5), t.larger(x1, right_cut * float(SIDE)) - 1.0, SIDE, 1, device)
    y_last = t.larger(y1, light[-1] * float(SIDE)) - 1.0
    seen = across & t.within(y0 * (light[0] < 0.5), y_last, SIDE, 0, device)
    return t.as_mask(seen), fn.reductions.max(y1)


def _least_in_corners(tissue: DataNode, device: str) -> DataNode:
    """[SIDE / CORNER] pixels of tissue in that corner which has fewer; of use are the first (top) and last (bottom)."""
    blocks = SIDE // CORNER
    held = fn.reductions.sum(
        fn.reshape(tissue, shape=[blocks, CORNER, blocks, CORNER], layout=""), axes=[1, 3], dtype=types.FLOAT
    )
    inner_columns = np.full((1, blocks), CORNER * CORNER, np.float32)
    inner_columns[0, [0, -1]] = 0
    return fn.reductions.min(held + t.constant(inner_columns, device), axes=[1])


def _without_gas(x: DataNode, core: DataNode, outside: DataNode, tissue_mean: DataNode) -> DataNode:
    """Lung without gas in bowel and wind-pipe, which is as dark as the air outside, as lungs on the whole are not.

    Parts of lungs as dark as that (emphysema) come back where they hang together with the rest; a wall holds gas back.
    Where that air is not to be seen, or not dark evenly, nothing is taken for gas.
    """
    air, spread, number = _air(x[: SIDE // 2], outside[: SIDE // 2])
    span = tissue_mean - air
    is_cut_off = (air <= DARKEST_AIR) & (t.mean_within(x, t.eroded(core)) - air <= LUNG_CONTRAST)
    usable = t.as_mask(is_cut_off < 0.5) * (number > LEAST_OUTSIDE * SIDE * SIDE) * (spread < LARGEST_SPREAD * span)
    gas = t.opened(core * (x < (air + GAS_SHARE * span) * usable))
    rest = t.opened(core * (t.window_sum(gas, 5, 5) < 0.5))
    rest = core * t.dilated(rest, REGROWTH)
    for _ in range(REGROWTH_STEPS):
        rest = core * t.dilated(rest, REGROWTH_STEP)
    return rest


def _air(x: DataNode, outside: DataNode) -> tuple[DataNode, DataNode, DataNode]:
    """Mean, mean deviation and number of the brighter half of the pixels outside the body, in the image's upper half.

    The darker half is black that scanners leave beyond their round field of view; below are table and blankets.
    """
    brighter = outside * (x >= t.mean_within(x, outside))
    air = t.mean_within(x, brighter)
    return air, t.mean_within(math.abs(x - air), brighter), t.total(brighter)
