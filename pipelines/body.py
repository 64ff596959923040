"""First look at a CT slice, small: is grey inverted, is there a page around it, where is the body, which grey
values are air (all of it ours: the paper takes a lung image for granted).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines import thumbnail as t

SIDE = 64
PAGE_GREY = 200
"""What is not darker than this all along a line of pixels may be the paper of a page."""
INK_PIXELS = 2  # a line of pixels with fewer dark ones, opened, is white
BODY_PIXELS = 4  # a line of pixels with fewer bright ones holds no body
MARGIN_PIXELS = 3  # left around the body
BODY_LEVEL = 0.6  # share of the air level above which something may be skin or fat
MORE_AIR = 1.25
HIGHEST_SHARE = 0.8
WHOLE = np.array([0, 0, SIDE, SIDE], np.float32)


@dataclass(frozen=True, slots=True)
class Body:
    """Edges about one image; all are scalars but the window, [4].

    inverted: 1 where air is bright. window: x0, y0, x1, y1 of the body with a margin, fractions of the image.
    edge_level: grey value half-way between lung and tissue, where a border lies (after undoing the inversion).
    air_level: grey value up to which a pixel may be lung; higher than edge_level where lungs are hazy.
    """

    inverted: t.Values
    window: t.Values
    edge_level: t.Values
    air_level: t.Values


def find_body(image: t.Values) -> Body:
    """Everything about an image of SIDE pixels square, [SIDE, SIDE] uint8."""
    limits, shown, has_page = _panel(image)
    inverted = _is_inverted(image) * (has_page < 0.5)
    x = t.inverted_where(image, inverted) * shown
    level = t.two_class_level(x, side=SIDE)
    window = _window(x, BODY_LEVEL * level, limits)
    return Body(inverted, window, *_levels(x, level))


def _panel(image: t.Values) -> tuple[t.Values, t.Values, t.Values]:
    """Box and mask of what is not white page, and 1 if there is a page: if the corners of that box are black.

    Without a page, box and mask are of the whole image. Within a body cut off at the image border the corners are
    tissue: white there is no page.
    """
    found = t.extent(t.opened(t.as_mask(image < PAGE_GREY)), SIDE, INK_PIXELS)
    whole = t.constant(WHOLE, image)
    inward = t.constant(np.array([1, 1, -1, -1], np.float32), image)
    box = found + (found != whole) * inward  # one pixel in: the border pixel is half page
    x0, y0, x1, y1 = (t.place(box, at) for at in range(4))
    across, down = t.within(x0, x1 - 1.0, SIDE, 1), t.within(y0, y1 - 1.0, SIDE, 0)
    middle_x, middle_y = t.within(x0 + 3.0, x1 - 4.0, SIDE, 1), t.within(y0 + 3.0, y1 - 4.0, SIDE, 0)
    in_panel = across & down
    corners = t.as_mask(in_panel > (middle_x | middle_y))
    black = t.total(corners * (image < 128))
    has_page = t.as_mask(black + black - t.total(corners) > 0.5)
    return whole + has_page * (box - whole), t.as_mask(in_panel | (has_page < 0.5)), has_page


def _is_inverted(image: t.Values) -> t.Values:
    """1 where the image's corners are bright, its middle is much darker, and the flanks are no darker than the middle.

    The middle of a chest is heart and spine: of tissue's grey. Air is bright in the corners and in the lungs, if at
    all; a white page has bright corners too, but dark lungs.
    """
    corners, middle, flanks = (place / place.sum() for place in _places())
    bright, drop, rise = (
        t.total(image * t.constant(weights, image)) for weights in (corners, corners - middle, flanks - middle)
    )
    return (bright > 128.0) * t.as_mask(drop > 60.0) * (rise > -10.0)


def _places() -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    corners, middle, flanks = (np.zeros((SIDE, SIDE), np.float32) for _ in range(3))
    rim = np.r_[0 : SIDE // 12, SIDE - SIDE // 12 : SIDE]
    corners[np.ix_(rim, rim)] = 1
    middle[SIDE // 4 : 3 * SIDE // 4, 7 * SIDE // 16 : 9 * SIDE // 16] = 1
    flanks[SIDE // 3 : 2 * SIDE // 3, np.r_[SIDE // 6 : SIDE // 3, SIDE - SIDE // 3 : SIDE - SIDE // 6]] = 1
    return corners, middle, flanks


def _levels(x: t.Values, level: t.Values) -> tuple[t.Values, t.Values]:
    """edge_level and air_level, see Body, from the level that splits all pixels in two.

    Soft-tissue windows show fat as dark as lung nearly, so that the body's skin is lost: there, splitting the dark
    class once more encloses more air. Elsewhere hazy lungs (ground glass) are brighter than the first level:
    splitting only the body's pixels finds them; the level is capped, for slices with little lung split fat off muscle.
    """
    dark = t.as_mask(t.below(x, level))
    body = _body(dark)
    darker = t.two_class_level(t.smaller(x, level), side=SIDE)
    darkest = t.as_mask(t.below(x, darker))
    enclosed, enclosed_darkest = t.opened(dark * body), t.opened(_body(darkest) * darkest)
    soft = t.as_mask(t.total(enclosed_darkest) > MORE_AIR * t.total(enclosed))
    dark_mean, bright_mean = t.mean_within(x, dark), t.mean_within(x, t.as_mask(dark < 1))
    cap = dark_mean + HIGHEST_SHARE * (bright_mean - dark_mean)
    hazy = t.larger(level, t.smaller(cap, t.two_class_level(x, body, side=SIDE)))
    return t.chosen(soft, darker, level), t.chosen(soft, darker, hazy)


def _body(dark: t.Values) -> t.Values:
    return t.enclosed(t.opened(t.as_mask(dark < 1)), SIDE)


def _window(x: t.Values, level: t.Values, limits: t.Values) -> t.Values:
    """Extent of what is brighter than the level, opened, with a margin, within the limits: fractions of the image, [4].

    The limits themselves where nothing is bright.
    """
    found = t.extent(t.opened(t.as_mask(t.over(x, level))), SIDE, BODY_PIXELS)
    lowest = t.least(t.corner(found, 1) - t.corner(found, 0))
    # The least of both sides is positive for a body; without one the box is made far larger than any limit.
    reach = t.chosen(t.as_mask(lowest > 0.5), float(MARGIN_PIXELS), 3.0 * SIDE)
    outward = t.constant(np.array([-1, -1, 1, 1], np.float32), x)
    wide = found + reach * outward
    low = t.larger(t.corner(wide, 0), t.corner(limits, 0))
    high = t.smaller(t.corner(wide, 1), t.corner(limits, 1))
    return t.joined(low, high) / float(SIDE)
