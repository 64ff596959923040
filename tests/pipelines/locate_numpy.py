"""The lobe locator again in plain numpy, written from the paper's rule and the module's words, not from its graph."""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

SIDE = 96


def window_values(mask: np.ndarray, mode: str) -> np.ndarray:
    """[H, W, 9] the 3×3 window of each pixel; mode as in numpy.pad."""
    return sliding_window_view(np.pad(mask, 1, mode=mode), (3, 3)).reshape(*mask.shape, 9)


def boundary(quantised: np.ndarray) -> np.ndarray:
    """Pixels whose window holds more than one distinct value, one by one."""
    height, width = quantised.shape
    out = np.zeros(quantised.shape, bool)
    for y in range(height):
        for x in range(width):
            window = quantised[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2]
            out[y, x] = len(set(window.ravel().tolist())) > 1
    return out


def opened(mask: np.ndarray) -> np.ndarray:
    eroded = window_values(mask, "constant").all(-1)
    return window_values(eroded, "constant").any(-1)


def two_class_threshold(x: np.ndarray) -> float:
    level = x.mean()
    for _ in range(3):
        bright = x > level
        means = [x[part].mean() if part.any() else 0.0 for part in (bright, ~bright)]
        level = (means[0] + means[1]) / 2
    return float(level)


def inside(x: np.ndarray, level: float) -> np.ndarray:
    dark = x < level
    tissue = opened(~dark)
    seen = np.zeros_like(dark)
    for y, x_at in np.argwhere(dark):
        row, column = np.flatnonzero(tissue[y]), np.flatnonzero(tissue[:, x_at])
        seen[y, x_at] = len(row) > 0 and len(column) > 0 and row[0] < x_at < row[-1] and column[0] < y < column[-1]
    return opened(dark & seen)


def locate(thumbnail: np.ndarray) -> tuple[np.ndarray, bool]:
    """Box (x0, y0, x1, y1) in fractions and whether nothing was found, of a [96, 96] thumbnail."""
    x = thumbnail.astype(np.float64)
    first = two_class_threshold(x)
    found = inside(x, first)
    if found.sum() < 0.02 * SIDE * SIDE:
        darker = np.minimum(x, first)
        found = inside(x, two_class_threshold(darker))
    edge = boundary(found.astype(int))
    columns, rows = (np.flatnonzero(edge.any(axis)) for axis in (0, 1))
    if len(columns) == 0 or len(rows) == 0:
        return np.array([0.0, 0.0, 1.0, 1.0]), True
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) / SIDE, False
