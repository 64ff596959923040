"""CT slices at the height of the diaphragm, made in Hounsfield units: thin lungs about the domes, gas in the belly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

AIR, LUNG, FAT, FLUID, TISSUE, BONE = -1000.0, -840.0, -100.0, 10.0, 50.0, 400.0
WINDOWS = {"lung": (-600.0, 1500.0), "wide": (-300.0, 1800.0), "narrow": (-500.0, 1100.0)}
"""Centre and width in Hounsfield units. The narrowest shows the air about the body and in the belly black."""
GAS = ("none", "bubble", "loops", "flexure", "fold", "front")


@dataclass(frozen=True, slots=True)
class Slice:
    """hounsfield: [side, side]. lungs: [side, side] bool, box: x0, y0, x1, y1 of it as fractions. gas: bool."""

    hounsfield: np.ndarray
    lungs: np.ndarray
    gas: np.ndarray

    @property
    def box(self) -> np.ndarray:
        columns, rows = np.flatnonzero(self.lungs.any(0)), np.flatnonzero(self.lungs.any(1))
        return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) / len(self.lungs)


def diaphragm(seed: int, gas: str, *, side: int = 256, dome: float = 0.85, lungs: bool = True) -> Slice:
    """One slice: gas is one of GAS, dome the share of the chest that the belly's organs fill; lungs: or none at all.

    "bubble" lies in the stomach above fluid, level as gas lies; "loops" are three small round ones; "flexure" is a ring
    of bowel beside the left lung; "fold" a wide gas-filled bowel across the front; "front" one before the liver.
    """
    random = np.random.default_rng(seed)
    y, x = (np.mgrid[:side, :side] + 0.5) / side

    def ellipse(cx: float, cy: float, rx: float, ry: float) -> np.ndarray:
        return ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 < 1

    wide, high, middle = random.uniform(0.4, 0.45), random.uniform(0.29, 0.34), random.uniform(0.46, 0.5)
    fat = 0.04
    image = np.full((side, side), AIR)
    image[ellipse(0.5, middle, wide, high)] = TISSUE
    image[ellipse(0.5, middle, wide - 0.012, high - 0.012)] = FAT
    image[ellipse(0.5, middle, wide - 0.012 - fat, high - 0.012 - fat)] = TISSUE
    inner_wide, inner_high = wide - fat - 0.04, high - fat - 0.04
    chest = ellipse(0.5, middle, inner_wide, inner_high)
    organs = ellipse(0.5, middle - 0.03, inner_wide * dome, inner_high * (dome + 0.06))
    spine = ellipse(0.5, middle + 0.75 * inner_high, 0.055, 0.075)
    seen = chest & ~organs & ~ellipse(0.5, middle + 0.7 * inner_high, 0.09, 0.12) & (y > middle - 0.3 * inner_high)
    if not lungs:
        seen[:] = False
    image[seen] = LUNG
    for _ in range(10):
        cx, cy = random.uniform(0.1, 0.9), random.uniform(0.3, 0.8)
        image[ellipse(cx, cy, 0.008, 0.008) & seen] = TISSUE
    image[spine & ~seen] = BONE
    belly = ellipse(0.5, middle - 0.03, inner_wide * dome - 0.02, inner_high * (dome + 0.06) - 0.02)
    x_left = 0.5 + 0.45 * inner_wide * dome
    holes = {
        "none": [],
        "bubble": [ellipse(x_left, middle - 0.35 * inner_high, 0.11, 0.1)],
        "loops": [ellipse(0.5 + dx, middle - dy, 0.035, 0.035) for dx, dy in ((0.1, 0.08), (0.18, 0.02), (0.03, 0.12))],
        "flexure": [ellipse(x_left + 0.05, middle, 0.07, 0.09) & ~ellipse(x_left + 0.05, middle, 0.03, 0.045)],
        "fold": [ellipse(0.5, middle - 0.55 * inner_high * dome, 0.6 * inner_wide * dome, 0.05)],
        "front": [ellipse(0.5 - 0.5 * inner_wide * dome, middle - 0.5 * inner_high * dome, 0.09, 0.05)],
    }[gas]
    filled = np.zeros_like(seen)
    for hole in holes:
        filled |= hole & belly
    if gas == "bubble":
        fluid = filled & (y > middle - 0.3 * inner_high)
        image[fluid], filled = FLUID, filled & ~fluid
    image[filled] = AIR
    image[(abs(y - 0.88) < 0.006) & (abs(x - 0.5) < 0.35)] = -400  # the table
    return Slice(image + random.normal(0, 25, image.shape), seen, filled)


def shown(hounsfield: np.ndarray, window: str) -> np.ndarray:
    """[H, W] uint8 as a window shows it."""
    centre, width = WINDOWS[window]
    return np.clip((hounsfield - centre) / width * 255 + 127.5, 0, 255).astype(np.uint8)
