"""The paper's Generator inside the DALI graph: locate the lungs, crop five regions, resize (paper §5.3, eq. 4).

The paper marks a boundary pixel where a 3×3 window holds more than one value. On grey values that marks nearly every
pixel, so lung is told from the rest first (ours): body.py finds the body and the levels of grey, lungs.py the lung in
it. Everything has a GPU kernel and works on thumbnails of the un-augmented image.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from nvidia.dali import fn, types
from nvidia.dali.data_node import DataNode

from pipelines import body, lungs
from pipelines import thumbnail as t
from pipelines.recipe import REGION_NAMES

Rule = Literal["inner", "literal"]

SIDE = 128
"""Side in pixels of the thumbnail that everything is seen on."""

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


def locate(grey: DataNode, device: str, *, rule: Rule = "inner") -> tuple[DataNode, DataNode]:
    """Lung box of an HWC uint8 grey image: [4] float (x0, y0, x1, y1) as fractions of it, and [1] float fallback.

    fallback is 1 where no lungs were found or what was found cannot be a chest's; the box is then the whole image.
    rule: "literal" is the extent of the paper's boundary map, whose pixels lie on both sides of the border, so that the
    box is a thumbnail pixel too wide on every side; "inner" is the extent of the lung itself, placed by grey values.
    Overlap with the boxes of real masks (53 slices, median and 5th percentile): inner .980 and .930, literal .936
    and .879.
    """
    small = t.resized(grey, SIDE)  # the one look at the full image
    found = body.find_body(t.as_plane(t.resized(small, body.SIDE)), device)
    x = t.inverted_where(t.as_plane(body_image(small, found.window)), found.inverted)
    lung, end = lungs.lung_mask(x, found, device)
    inner = rule == "inner"
    edge = lungs.border_mask(x, lung, found) if inner else boundary_map(lung)
    box = t.extent(edge, lungs.SIDE, lungs.EDGE_PIXELS if inner else 1, device) / float(lungs.SIDE)
    plausible = lungs.is_plausible(box, lung, end, device)
    corner = fn.cat(found.window[:2], found.window[:2])
    size = fn.cat(found.window[2:], found.window[2:]) - corner
    whole = t.constant(np.array([0, 0, 1, 1], np.float32), device)
    return t.chosen(plausible, corner + box * size, whole), fn.stack(1.0 - plausible)


def body_image(small: DataNode, window: DataNode) -> DataNode:
    """The window of the grey HWC thumbnail as a square of lungs.SIDE pixels.

    The window comes to the CPU for this, as the box does in `region_windows`.
    """
    corner = window.cpu()
    return fn.resize(
        small,
        size=[lungs.SIDE, lungs.SIDE],
        roi_start=fn.stack(corner[1], corner[0]),
        roi_end=fn.stack(corner[3], corner[2]),
        roi_relative=True,
        interp_type=types.INTERP_LINEAR,
        antialias=True,
    )


def boundary_map(q: DataNode) -> DataNode:
    """0/1: the 3×3 window around a pixel holds more than one value (paper §5.3); q: small whole numbers.

    By the variance of the window, which is 0 only for equal values: 9 Σq² - (Σq)² ≥ 8 otherwise.
    """
    ones = types.Constant(np.ones((3, 3), np.float32), device="cpu")
    q = fn.cast(q, dtype=types.FLOAT)
    sums, squares = (fn.filter(values, ones, border="clamp") for values in (q, q * q))
    return t.as_mask(9.0 * squares - sums * sums > 0.5)


def region_windows(box: DataNode) -> list[tuple[DataNode, DataNode]]:
    """First and last corner, each [2] (y, x) as fractions of the image, of the template's five regions within the box.

    The box comes to the CPU for this (16 bytes an image): resizing takes its window as a named argument.
    """
    corner = box.cpu()
    left, top = corner[0], corner[1]
    width, height = corner[2] - left, corner[3] - top
    return [
        (
            fn.stack(top + (y - h / 2) * height, left + (x - w / 2) * width),
            fn.stack(top + (y + h / 2) * height, left + (x + w / 2) * width),
        )
        for x, y, w, h in TEMPLATE.values()
    ]
