"""How CT slices become figures in papers: windows, frames, letters, file formats."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from shards.sample.paint import Field, grain, label_corner, to_image


@dataclass(frozen=True, slots=True)
class Slice:
    """A drawn slice: the image, and the lung box (x0, y0, x1, y1) in pixels, x1 and y1 exclusive."""

    image: Image.Image
    form: str
    quality: int
    lung_box: tuple[int, int, int, int]


def expose(rng: np.random.Generator, hu: Field, lungs: Field, from_centre: Field) -> Slice:
    """Window the densities as figures are, then frame, label and convert; gives the slice and its true lung box."""
    height, width = hu.shape
    hu = hu + rng.uniform(12, 45) * grain(rng, width, height)
    if rng.random() < 0.55:
        hu[from_centre > 1] = -3000
    if rng.random() < 0.12:
        low, span = rng.uniform(-750, -550), rng.uniform(1000, 1200)
    else:
        low, span = rng.uniform(-1350, -1000), rng.uniform(1150, 1900)
    image = to_image((hu - low) / span)
    if rng.random() < 0.2:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 0.9)))
    frame = int(rng.integers(2, 7)) if rng.random() < 0.2 else 0
    if frame:
        paper = Image.new("L", (width + 2 * frame, height + 2 * frame), 255)
        paper.paste(image, (frame, frame))
        image = paper
    if rng.random() < 0.3:
        text = str(rng.choice(["A", "B", "C", "R", "1a", "2B", "Im 41"]))
        plate = int(rng.choice([255, 0])) if rng.random() < 0.5 else None
        ink = int(rng.choice([0, 255])) if plate is None else 255 - plate
        label_corner(image, text, int(rng.integers(0, 4)), max(8, height // 12), ink, plate)
    mode, form = (("L", "PNG"), ("RGB", "PNG"), ("RGBA", "PNG"), ("RGB", "JPEG"), ("L", "JPEG"))[
        int(rng.choice(5, p=[0.15, 0.30, 0.20, 0.25, 0.10]))
    ]
    columns, rows = np.flatnonzero((lungs > 0.5).any(0)), np.flatnonzero((lungs > 0.5).any(1))
    box = (int(columns[0]) + frame, int(rows[0]) + frame, int(columns[-1]) + 1 + frame, int(rows[-1]) + 1 + frame)
    return Slice(image.convert(mode), form, int(rng.integers(70, 96)), box)
