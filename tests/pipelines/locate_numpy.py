"""The lobe locator again in plain numpy, written from the modules' words, not from their graph."""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

BODY, LUNGS = 64, 96


def windows(mask: np.ndarray, side: int) -> np.ndarray:
    """[H, W, side²] the window of each pixel; nothing beyond the border."""
    return sliding_window_view(np.pad(mask, side // 2), (side, side)).reshape(*mask.shape, side * side)


def boundary(quantised: np.ndarray) -> np.ndarray:
    """Pixels whose window holds more than one distinct value, one by one."""
    height, width = quantised.shape
    out = np.zeros(quantised.shape, bool)
    for y in range(height):
        for x in range(width):
            window = quantised[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2]
            out[y, x] = len(set(window.ravel().tolist())) > 1
    return out


def eroded(mask: np.ndarray) -> np.ndarray:
    return windows(mask, 3).all(-1)


def dilated(mask: np.ndarray, side: int = 3) -> np.ndarray:
    return windows(mask, side).any(-1)


def opened(mask: np.ndarray) -> np.ndarray:
    return dilated(eroded(mask))


def mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else 0.0


def two_class_level(values: np.ndarray) -> float:
    level = mean(values)
    for _ in range(2):
        level = (mean(values[values > level]) + mean(values[values <= level])) / 2
    return level


def span(line: np.ndarray) -> tuple[int, int]:
    """First 1 and the place behind the last; (length, 0) for none."""
    filled = np.flatnonzero(line)
    return (int(filled[0]), int(filled[-1]) + 1) if filled.size else (len(line), 0)


def box_of(mask: np.ndarray, least: int) -> list[int]:
    (x0, x1), (y0, y1) = span(mask.sum(0) >= least), span(mask.sum(1) >= least)
    return [x0, y0, x1, y1]


def between(spans: list[tuple[int, int]], length: int) -> np.ndarray:
    """[len(spans), length] whether a place is inside the span of its line."""
    return np.array([[start <= place < end for place in range(length)] for start, end in spans])


def enclosed(tissue: np.ndarray) -> np.ndarray:
    side = len(tissue)
    across = between([span(line) for line in tissue], side)
    return across & between([span(line) for line in tissue.T], side).T


def find_body(small: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Window in fractions, and (inverted, edge_level, air_level), of a [64, 64] image."""
    x = small.astype(np.float64)
    panel = box_of(opened(x < 200), 2)
    panel = [place + (place > 0) for place in panel[:2]] + [place - (place < BODY) for place in panel[2:]]
    in_panel = np.zeros(x.shape, bool)
    in_panel[panel[1] : max(panel[3], 0), panel[0] : max(panel[2], 0)] = True
    y_at, x_at = np.mgrid[:BODY, :BODY]
    near_x = (x_at < panel[0] + 3) | (x_at >= panel[2] - 3)
    near_y = (y_at < panel[1] + 3) | (y_at >= panel[3] - 3)
    corners = x[in_panel & near_x & near_y]
    has_page = corners.size > 0 and 2 * (corners < 127.5).sum() > corners.size
    rim = [*range(5), *range(BODY - 5, BODY)]
    flanks = np.concatenate([x[21:42, 10:21].ravel(), x[21:42, 43:54].ravel()])
    bright, middle = x[np.ix_(rim, rim)].mean(), x[16:48, 28:36].mean()
    inverted = bright > 128 and middle < bright - 60 and flanks.mean() > middle - 10 and not has_page
    if inverted:
        x = 255 - x
    if has_page:
        x = np.where(in_panel, x, 0)
    level = two_class_level(x.ravel())
    return window(x > 0.6 * level, panel if has_page else [0, 0, BODY, BODY]), levels(x, level, inverted)


def window(bright: np.ndarray, limits: list[int]) -> np.ndarray:
    box = box_of(opened(bright), 4)
    if not (box[2] > box[0] and box[3] > box[1]):
        box = [0, 0, BODY, BODY]
    low = [max(place - 3, limit) for place, limit in zip(box[:2], limits[:2], strict=True)]
    high = [min(place + 3, limit) for place, limit in zip(box[2:], limits[2:], strict=True)]
    return np.array(low + high) / BODY


def levels(x: np.ndarray, level: float, inverted: bool) -> np.ndarray:
    body = enclosed(opened(x >= level))
    darker = two_class_level(np.minimum(x, level).ravel())
    lung = opened((x < level) & body)
    soft = opened((x < darker) & enclosed(opened(x >= darker))).sum() > 1.25 * lung.sum()
    if soft:
        return np.array([inverted, darker, darker])
    dark, bright = mean(x[x < level]), mean(x[x >= level])
    air_level = max(level, min(dark + 0.8 * (bright - dark), two_class_level(x[body])))
    return np.array([inverted, level, air_level])


def find_lungs(body_seen: np.ndarray, levels: np.ndarray) -> tuple[np.ndarray, np.ndarray, set[str]]:
    """Lung mask [96, 96], box in fractions of the body's image, and what is doubtful about it."""
    inverted, edge_level, air_level = levels
    x = 255.0 - body_seen if inverted else body_seen.astype(np.float64)
    dark = x < air_level
    seen, end = enclosed_or_cut(dark)
    core = opened(dark & seen)
    rest = without_gas(x, core, eroded(dark & ~seen), mean(x[~dark]))
    lung = rest & (windows(rest, 13).sum(-1) >= 30)
    box = np.array(box_of(eroded(lung) | (dilated(lung) & (x < edge_level)), 2)) / LUNGS
    return lung, box, doubts(lung, box, end)


def without_gas(x: np.ndarray, core: np.ndarray, outside: np.ndarray, tissue: float) -> np.ndarray:
    """Gas is what is nearly as dark as the air above the body; what hangs together with the rest is kept."""
    above = x[: LUNGS // 2][outside[: LUNGS // 2]]
    above = above[above >= mean(above)]
    air = mean(above)
    uneven = mean(abs(above - air)) >= 0.025 * (tissue - air)
    cut_off = air <= 6 and mean(x[eroded(core)]) <= air + 12
    if cut_off or above.size <= 0.01 * LUNGS * LUNGS or uneven:
        return core
    gas = opened(core & (x < air + 0.04 * (tissue - air)))
    rest = dilated(opened(core & ~dilated(gas, 5)), 5) & core
    for _ in range(4):
        rest = dilated(rest, 3) & core
    return rest


def doubts(lung: np.ndarray, box: np.ndarray, end: int) -> set[str]:
    """The names of the rules that a chest would not break."""
    width, height = box[2] - box[0], box[3] - box[1]
    left, right = lung[:, : LUNGS // 2].sum(), lung[:, LUNGS // 2 :].sum()
    in_corners = sum(lung[rows, columns].sum() for _, rows, columns in corners())
    broken = {
        "small": not (width > 0.25 and height > 0.12 and width * height > 0.04),
        "sparse": not lung.sum() > 0.08 * LUNGS * LUNGS * width * height,
        "one side": not min(left, right) > 0.03 * lung.sum(),
        "back": not end / LUNGS - box[3] + 0.6 * width < 0.76,
        "corners": not in_corners < 64,
    }
    return {name for name, holds in broken.items() if holds}


def enclosed_or_cut(dark: np.ndarray) -> tuple[np.ndarray, int]:
    """Between tissue, the image border counting as tissue where it cuts through a lung; and the end of all tissue."""
    tissue = opened(~dark)
    rows, columns = [span(line) for line in tissue], [span(line) for line in tissue.T]
    end = max(end for _, end in columns)
    rows = [
        (0 if columns[0][0] <= y < columns[0][1] else start, LUNGS if columns[-1][0] <= y < columns[-1][1] else end)
        for y, (start, end) in enumerate(rows)
    ]
    light = {place: dark[rows_][:, columns_].mean() <= 0.5 for place, rows_, columns_ in corners()}
    if light["top left"] and light["top right"]:
        columns = [(0, end) for _, end in columns]
    if light["bottom left"] and light["bottom right"]:
        columns = [(start, LUNGS) for start, _ in columns]
    return between(rows, LUNGS) & between(columns, LUNGS).T, end


def corners() -> list[tuple[str, slice, slice]]:
    first, last = slice(0, 8), slice(LUNGS - 8, LUNGS)
    return [
        ("top left", first, first), ("top right", first, last),
        ("bottom left", last, first), ("bottom right", last, last),
    ]  # fmt: skip
