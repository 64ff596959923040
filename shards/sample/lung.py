"""What radiographs and CT slices share: the grain of diseased lung, infiltrates and branching vessels."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import ImageDraw

from shards.sample.paint import Field, Point, edge, fractal, radius


@dataclass(frozen=True, slots=True)
class Mottle:
    """The grain of diseased lung in one image, the same on radiographs and on CT."""

    coarse: Field
    fine: Field


def mottle(rng: np.random.Generator, width: int, height: int, scale: float) -> Mottle:
    """Draw a grain; `scale` is how many lung heights the longer side spans."""
    return Mottle(fractal(rng, width, height, 6 * scale, 3), fractal(rng, width, height, 26 * scale, 2))


def infiltrate(x: Field, y: Field, grain: Mottle, centre: Point, radii: Point, angle: float) -> Field:
    """One patchy infiltrate: opacity in [0, 1] with a ragged border and a mottled inside.

    Radiographs add it to the attenuation and CT slices to the density, so what the one teaches the other can use.
    """
    depth = 1 - radius(x, y, centre, radii, angle) + 0.30 * grain.coarse
    texture = np.clip(0.78 + 0.28 * grain.fine, 0.25, 1.2)
    opacity: Field = np.clip(edge(depth - 0.2, 0.9) * texture, 0, 1)
    return opacity


def vessel(
    rng: np.random.Generator,
    pen: ImageDraw.ImageDraw,
    place: Callable[[float, float], Point],
    start: Point,
    heading: float,
    length: float,
    thickness: float,
) -> None:
    """Draw a vessel and its branches on an L sheet, thinner and fainter outwards.

    Start, length and thickness are in the chest's own units; `place` gives the sheet's pixels of a point.
    """
    x, y = start
    pixels = place(1, 0)[0] - place(0, 0)[0]
    for _ in range(3):
        heading += rng.normal(0, 0.15)
        on = (x + length / 3 * math.cos(heading), y + length / 3 * math.sin(heading))
        ink = min(255, round(85 + 6500 * thickness))
        pen.line([*place(x, y), *place(*on)], fill=ink, width=max(1, round(thickness * pixels)))
        x, y = on
    if thickness > 0.0095:
        for turn in (rng.uniform(0.2, 0.6), -rng.uniform(0.2, 0.6)):
            vessel(rng, pen, place, (x, y), heading + turn, length * rng.uniform(0.55, 0.88), thickness * 0.64)
