"""The paper's Generator inside the DALI graph: locate the lungs, crop five regions, resize (paper §5.3, eq. 4).

The paper marks a boundary pixel where a 3×3 window holds more than one value. On grey values that marks nearly every
pixel, so lung is told from the rest first (ours): body.py finds the body and the levels of grey, lungs.py the lung in
it. All of it works on thumbnails of the un-augmented image: on a GPU in nodes of the graph, on the CPU in numpy, by the
same lines of code (see thumbnail.py).
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from nvidia.dali import fn, types
from nvidia.dali.data_node import DataNode

from pipelines import body, lungs
from pipelines import thumbnail as t
from pipelines.batchwise import batchwise
from pipelines.recipe import REGION_NAMES

Array = NDArray[Any]
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


def locate(grey: DataNode, *, rule: Rule = "inner", by_nodes: bool = False) -> tuple[DataNode, DataNode]:
    """Lung box of an HWC uint8 grey image: [4] float (x0, y0, x1, y1) as fractions of it, and [1] float fallback.

    fallback is 1 where no lungs were found or what was found cannot be a chest's; the box is then the whole image.
    rule: "literal" is the extent of the paper's boundary map, whose pixels lie on both sides of the border, so that the
    box is a thumbnail pixel too wide on every side; "inner" is the extent of the lung itself, placed by grey values.
    Overlap with the boxes of real masks (53 slices, median and 5th percentile): inner .980 and .930, literal .936
    and .879. by_nodes: do on the CPU too what a GPU's graph does, in some 600 nodes.
    """
    small = t.resized(grey, SIDE)  # the one look at the full image
    x = t.as_plane(t.resized(small, body.SIDE))
    if grey.device == "gpu" or by_nodes:
        found = body.find_body(x)
        box, fallback = _look(t.as_plane(body_image(small, found.window)), found, rule)
        return box, fn.stack(fallback)
    window, levels = batchwise(_find_bodies, x, outputs=2)
    return batchwise(partial(_find_lungs, rule=rule), t.as_plane(body_image(small, window)), window, levels, outputs=2)


def _look(seen: t.Values, found: body.Body, rule: Rule) -> tuple[t.Values, t.Values]:
    """Lung box as fractions of the image, and fallback, a scalar, by the body's image."""
    x = t.inverted_where(seen, found.inverted)
    lung, end = lungs.lung_mask(x, found)
    inner = rule == "inner"
    edge = lungs.border_mask(x, lung, found) if inner else boundary_map(lung)
    box = t.extent(edge, lungs.SIDE, lungs.EDGE_PIXELS if inner else 1) / float(lungs.SIDE)
    plausible = lungs.is_plausible(box, lung, end)
    first, last = t.corner(found.window, 0), t.corner(found.window, 1)
    placed = t.joined(first, first) + box * t.joined(last - first, last - first)
    whole = t.constant(np.array([0, 0, 1, 1], np.float32), seen)
    return t.chosen(plausible, placed, whole), 1.0 - plausible


def _find_bodies(seen: Array) -> tuple[Array, Array]:
    """Of [N, SIDE, SIDE]: the windows, [N, 4], and (inverted, edge_level, air_level), [N, 3], of `body.Body`."""
    found = body.find_body(seen)
    levels = np.concatenate([found.inverted, found.edge_level, found.air_level], axis=2)
    return found.window[:, 0].astype(np.float32), levels[:, 0].astype(np.float32)


def _find_lungs(seen: Array, window: Array, levels: Array, *, rule: Rule) -> tuple[Array, Array]:
    """Boxes, [N, 4], and fallbacks, [N, 1], by the bodies' images and what `_find_bodies` gave."""
    inverted, edge_level, air_level = np.split(levels[:, None], 3, axis=2)
    found = body.Body(inverted, window[:, None], edge_level, air_level)
    box, fallback = _look(seen, found, rule)
    return box[:, 0].astype(np.float32), fallback[:, 0].astype(np.float32)


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


def boundary_map(q: t.Values) -> t.Values:
    """0/1: the 3×3 window around a pixel, beyond the border its nearest pixels, holds more than one value (paper §5.3).

    q: small whole numbers.
    """
    return t.as_mask(t.varies(q))


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
