"""Second look at a CT slice, at the body alone: which pixels are lung, and whether they can be a chest's lungs.

No connected components: they have no GPU kernel, and vessels and consolidation split lungs anyway. Lung is what is dark
and enclosed by tissue in its row and column; openings and a count of neighbours drop what is small.
"""

from __future__ import annotations

import numpy as np
from nvidia.dali import fn
from nvidia.dali.data_node import DataNode

from pipelines import thumbnail as t
from pipelines.body import Body

SIDE = 96
"""Of the image in which lungs are recognised and their borders placed."""
CORNER = SIDE // 12  # of the squares looked at in the corners

GAS_CONTRAST = 12.0
"""Grey values by which lungs must be brighter than the air about the body before gas is told from lung."""
LEAST_OUTSIDE = 0.02  # share of the image that must be such air
REGROWTH = 7  # side of the window about what is surely lung in which darker lung is kept too
NEIGHBOURHOOD, NEIGHBOURS = 13, 30
"""Lung has so many lung pixels in a window of this side about it: thin crescents have, letters and specks have not."""

EDGE_PIXELS = 2  # a row or column with fewer holds no lung
LEAST_WIDTH, LEAST_HEIGHT, LEAST_AREA = 0.25, 0.12, 0.04
"""Of a lung box, as shares of the body's box; smaller ones are doubted."""
LEAST_LUNG = 0.08
"""Share of its box that lung must be."""
LEAST_SIDE = 0.03
"""Share of lung that must lie on either side of the body's middle."""


def lung_mask(x: DataNode, body: Body, device: str) -> DataNode:
    """[SIDE, SIDE] 0/1 lung pixels of the body's image, grey values not inverted."""
    dark = x < body.air_level
    seen = _enclosed_or_cut(x >= body.air_level, device)
    core = t.opened(t.as_mask(dark & seen))
    core = _without_gas(x, core, t.eroded(t.as_mask(dark > seen)))
    rows = t.window_sum(core, NEIGHBOURHOOD, 1)
    return core * (t.window_sum(rows, 1, NEIGHBOURHOOD) > NEIGHBOURS - 0.5)


def border_mask(x: DataNode, lung: DataNode, body: Body) -> DataNode:
    """[SIDE, SIDE] 0/1: lung with its border placed anew, grey values not inverted.

    Inside is lung whatever its grey value; about the rim (a pixel to both sides) what is below edge_level.
    """
    neighbours = t.window_sum(lung, 3, 3)
    return t.as_mask((neighbours > 0.5) & ((neighbours > 8.5) | (x < body.edge_level)))


def is_plausible(box: DataNode, lung: DataNode, device: str) -> DataNode:
    """1 if lung and its box ([4], fractions of the body's image) may be a chest's: of some size, on both sides."""
    size = box[2:] - box[:2]
    area = size[0] * size[1]
    least = t.constant(np.array([LEAST_WIDTH, LEAST_HEIGHT], np.float32), device)
    number = t.total(lung)
    left = t.total(lung[:, : SIDE // 2])
    return (
        (fn.reductions.min(size - least) > 0.0)
        * t.as_mask(area > LEAST_AREA)
        * (number > area * (LEAST_LUNG * SIDE * SIDE))
        * (t.smaller(left, number - left) > LEAST_SIDE * number)
    )


def _enclosed_or_cut(bright: DataNode, device: str) -> DataNode:
    """Whether between tissue on all four sides; where the image cuts a lung off, the cut counts as tissue.

    A cut on the left or right is a stretch of the image border between tissue; one at the top or bottom asks for tissue
    in both corners, since air lies between the breasts. Tissue is opened first: table, frames and lettering are thin.
    """
    tissue = t.as_mask(bright)
    least = _least_in_corners(tissue, device)
    light = least > 0.5 * CORNER * CORNER - 0.25
    tissue = t.opened(tissue)
    (x0, x1), (y0, y1) = (t.first_and_end(tissue, SIDE, axis, device) for axis in (1, 0))
    y_last = y1 - 1.0
    left_cut, right_cut = (
        t.within(y0[:, at : at + 1], y_last[:, at : at + 1], SIDE, 0, device) for at in (0, SIDE - 1)
    )
    across = t.within(x0 * (left_cut < 0.5), t.larger(x1, right_cut * float(SIDE)) - 1.0, SIDE, 1, device)
    y_last = t.larger(y1, light[-1] * float(SIDE)) - 1.0
    return across & t.within(y0 * (light[0] < 0.5), y_last, SIDE, 0, device)


def _least_in_corners(tissue: DataNode, device: str) -> DataNode:
    """[SIDE / CORNER] pixels of tissue in that corner which has fewer; of use are the first (top) and last (bottom)."""
    blocks = SIDE // CORNER
    held = fn.reductions.sum(fn.reshape(tissue, shape=[blocks, CORNER, blocks, CORNER], layout=""), axes=[1, 3])
    inner_columns = np.full((1, blocks), CORNER * CORNER, np.float32)
    inner_columns[0, [0, -1]] = 0
    return fn.reductions.min(held + t.constant(inner_columns, device), axes=[1])


def _without_gas(x: DataNode, core: DataNode, outside: DataNode) -> DataNode:
    """Lung without gas in bowel and wind-pipe, which is no brighter than the air outside, as lungs on the whole are.

    Parts of lungs as dark as that (emphysema) come back where the rest is near.
    """
    number = t.total(outside)
    mean = t.mean_within(x, outside)
    # Of the air outside the brighter half counts: scanners leave black what is not in their round field of view.
    air = t.mean_within(x, outside * (x >= mean))
    contrast = t.mean_within(x, t.eroded(core)) - air
    usable = t.as_mask(contrast > GAS_CONTRAST) * (number > LEAST_OUTSIDE * SIDE * SIDE)
    gas = t.opened(core * (x < air * usable))
    rest = t.opened(core * (t.window_sum(gas, 5, 5) < 0.5))
    return core * (t.window_sum(rest, REGROWTH, REGROWTH) > 0.5)
