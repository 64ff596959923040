"""Drawing tools of the sample images: noise, soft shapes, colour and encoding."""

from __future__ import annotations

import io
import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Field = NDArray[np.floating]
Point = tuple[float, float]


def stream(seed: int, *path: int) -> np.random.Generator:
    """The random numbers of one image or patient: they depend on the seed and its place, on nothing drawn before."""
    return np.random.default_rng([seed, *path])


def noise(rng: np.random.Generator, width: int, height: int, cells: float) -> Field:
    """Smooth noise [height, width] of about unit spread; `cells` grid cells span the longer side."""
    longer = max(width, height)
    columns, rows = (max(2, round(cells * side / longer) + 1) for side in (width, height))
    coarse = rng.standard_normal((rows, columns), dtype=np.float32)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), np.float32)


def fractal(rng: np.random.Generator, width: int, height: int, cells: float, octaves: int = 4) -> Field:
    """Noise summed over octaves of halved size and strength; about unit spread."""
    total = noise(rng, width, height, cells)
    for octave in range(1, octaves):
        total = total + noise(rng, width, height, cells * 2.0**octave) * (0.5**octave)
    return total * 0.85


def grain(rng: np.random.Generator, width: int, height: int) -> Field:
    """Independent unit noise, one number a pixel."""
    return rng.standard_normal((height, width), dtype=np.float32)


def edge(inside: Field, softness: float) -> Field:
    """Smooth step in [0, 1] of a signed distance (positive inside): 0.5 on the border, `softness` wide."""
    ramp = np.clip(inside / softness + 0.5, 0, 1)
    step: Field = ramp * ramp * (3 - 2 * ramp)
    return step


def radius(x: Field, y: Field, centre: Point, radii: Point, angle: float = 0.0) -> Field:
    """Elliptic radius of every pixel: 1 on the ellipse, less inside; `angle` in radians turns it clockwise."""
    dx, dy = x - centre[0], y - centre[1]
    cos, sin = math.cos(angle), math.sin(angle)
    along, across = (dx * cos + dy * sin) / radii[0], (dy * cos - dx * sin) / radii[1]
    length: Field = np.sqrt(along * along + across * across)  # several times faster than numpy.hypot
    return length


def ellipse(x: Field, y: Field, centre: Point, radii: Point, angle: float = 0.0, softness: float = 0.03) -> Field:
    """A filled ellipse in [0, 1]; `softness` is the width of its border in the units of x and y."""
    return edge(1 - radius(x, y, centre, radii, angle), softness / min(radii))


def hue(colour: float, saturation: float, value: float) -> Field:
    """RGB in [0, 1] of a hue (turns), a saturation and a value."""
    sextant = (np.array([5, 3, 1], np.float32) + colour * 6) % 6
    ramp = np.clip(np.minimum(sextant, 4 - sextant), 0, 1)
    return np.asarray(value * (1 - saturation * ramp), np.float32)


def label_corner(image: Image.Image, text: str, corner: int, size_px: int, ink: int, paper: int | None) -> None:
    """Write a short text into a corner (0 to 3, clockwise from the top left), on a plate unless `paper` is None."""
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(size_px)
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    margin = max(2, size_px // 4)
    x = margin if corner in (0, 3) else image.width - margin - (right - left)
    y = margin if corner in (0, 1) else image.height - margin - (bottom - top)
    if paper is not None:
        draw.rectangle((x - 2, y - 2, x + right - left + 2, y + bottom - top + 2), fill=paper)
    draw.text((x - left, y - top), text, font=font, fill=ink)


def to_image(grey_or_rgb: Field) -> Image.Image:
    """An 8-bit image (mode L or RGB) of values in [0, 1], clipped."""
    return Image.fromarray((np.clip(grey_or_rgb, 0, 1) * 255 + 0.5).astype(np.uint8))


def encode(image: Image.Image, form: str, quality: int = 90) -> bytes:
    """The file of an image: `form` is JPEG or PNG; `quality` is read by JPEG only."""
    file = io.BytesIO()
    if form == "JPEG":
        image.save(file, "JPEG", quality=quality)
    else:
        image.save(file, "PNG", compress_level=3)
    return file.getvalue()
