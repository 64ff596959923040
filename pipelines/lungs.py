"""Second look at a CT slice, at the body alone: which pixels are lung, and whether they can be a chest's lungs.

No connected components: they have no GPU kernel, and vessels and consolidation split lungs anyway. Lung is what is dark
and enclosed by tissue in its row and column; openings and a count of neighbours drop what is small.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

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


def lung_mask(x: t.Values, body: Body) -> tuple[t.Values, t.Values]:
    """Lung in the body's image, grey values not inverted: a [SIDE, SIDE] mask; and the row behind the last tissue."""
    tissue = t.as_mask(t.at_least(x, body.air_level))
    seen, end = _enclosed_or_cut(tissue)
    core = t.opened(t.as_mask(seen > tissue))
    outside = t.eroded(t.as_mask((seen + tissue) < 1))
    core = _without_gas(x, core, outside, t.mean_within(x, tissue))
    rows = t.window_sum(core, NEIGHBOURHOOD, 1)
    return core * (t.window_sum(rows, 1, NEIGHBOURHOOD) >= NEIGHBOURS), end


def border_mask(x: t.Values, lung: t.Values, body: Body) -> t.Values:
    """[SIDE, SIDE] 0/1: lung with its border placed anew, grey values not inverted.

    Inside is lung whatever its grey value; about the rim (a pixel to both sides) what is below edge_level.
    """
    neighbours = t.window_sum(lung, 3, 3)
    return t.as_mask((neighbours > 0) & ((neighbours > 8) | t.below(x, body.edge_level)))


def is_plausible(box: t.Values, lung: t.Values, end: t.Values) -> t.Values:
    """1 if lung and its box ([4], fractions of the body's image) may be a chest's.

    They must be of some size, on both sides, not in the corners, and reach near the back. end: as `lung_mask` gives it.
    """
    size = t.corner(box, 1) - t.corner(box, 0)
    width = t.place(size, 0)
    area = width * t.place(size, 1)
    least = t.constant(np.array([LEAST_WIDTH, LEAST_HEIGHT], np.float32), box)
    number = t.total(lung)
    left = t.total(t.part(lung, slice(SIDE), slice(SIDE // 2)))
    back = end * (1 / SIDE) - t.place(box, 3)
    return (
        t.as_mask(t.least(size - least) > 0.0)
        * (area > LEAST_AREA)
        * (number > area * (LEAST_LUNG * SIDE * SIDE))
        * (t.smaller(left, number - left) > LEAST_SIDE * number)
        * (back + BACK_PER_WIDTH * width < THICKEST_BACK)
        * (t.total(lung * t.constant(_corners(), lung)) < MOST_IN_CORNERS * 4 * CORNER * CORNER)
    )


def _corners() -> NDArray[np.uint8]:
    corners = np.zeros((SIDE, SIDE), np.uint8)
    rim = np.r_[:CORNER, SIDE - CORNER : SIDE]
    corners[np.ix_(rim, rim)] = 1
    return corners


def _enclosed_or_cut(tissue: t.Values) -> tuple[t.Values, t.Values]:
    """What is between tissue on all four sides, a mask, and the row behind the last tissue, a scalar.

    Where the image cuts a lung off, the cut counts as tissue. A cut on the left or right is a stretch of the image
    border between tissue; one at the top or bottom asks for tissue in both corners, since air lies between the breasts.
    Tissue is opened first: table, frames and lettering are thin.
    """
    fewest = 0.5 * CORNER * CORNER - 0.25
    light_top, light_bottom = (held > fewest for held in t.fewer_in_corners(tissue, SIDE, CORNER))
    tissue = t.opened(tissue)
    (x0, x1), (y0, y1) = (t.first_and_end(tissue, SIDE, axis) for axis in (1, 0))
    y_last = y1 - 1.0
    borders = (slice(1), slice(SIDE - 1, SIDE))
    left_cut, right_cut = (t.within(t.part(y0, slice(1), at), t.part(y_last, slice(1), at), SIDE, 0) for at in borders)
    across = t.within(x0 * (left_cut < 0.5), t.larger(x1, right_cut * float(SIDE)) - 1.0, SIDE, 1)
    y_last = t.larger(y1, light_bottom * float(SIDE)) - 1.0
    seen = across & t.within(y0 * (light_top < 0.5), y_last, SIDE, 0)
    return t.as_mask(seen), t.greatest(y1)


def _without_gas(x: t.Values, core: t.Values, outside: t.Values, tissue_mean: t.Values) -> t.Values:
    """Lung without gas in bowel and wind-pipe, which is as dark as the air outside, as lungs on the whole are not.

    Parts of lungs as dark as that (emphysema) come back where they hang together with the rest; a wall holds gas back.
    Where that air is not to be seen, or not dark evenly, nothing is taken for gas.
    """
    air, spread, number = _air(*(t.part(seen, slice(SIDE // 2), slice(SIDE)) for seen in (x, outside)))
    span = tissue_mean - air
    is_cut_off = (air <= DARKEST_AIR) & (t.mean_within(x, t.eroded(core)) - air <= LUNG_CONTRAST)
    usable = t.as_mask(is_cut_off < 0.5) * (number > LEAST_OUTSIDE * SIDE * SIDE) * (spread < LARGEST_SPREAD * span)
    gas = t.opened(core * t.below(x, (air + GAS_SHARE * span) * usable))
    rest = t.opened(core * (t.window_sum(gas, 5, 5) < 1))
    rest = core * t.dilated(rest, REGROWTH)
    for _ in range(REGROWTH_STEPS):
        rest = core * t.dilated(rest, REGROWTH_STEP)
    return rest


def _air(x: t.Values, outside: t.Values) -> tuple[t.Values, t.Values, t.Values]:
    """Mean, mean deviation and number of the brighter half of the pixels outside the body, in the image's upper half.

    The darker half is black that scanners leave beyond their round field of view; below are table and blankets.
    """
    brighter = outside * t.at_least(x, t.mean_within(x, outside))
    air = t.mean_within(x, brighter)
    return air, t.mean_within(t.distance(x, air), brighter), t.total(brighter)
