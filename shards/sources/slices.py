"""Medical pixel values to a grey image as a radiologist looks at it: window, orientation, PNG."""

from __future__ import annotations

import math
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shards.errors import MstlError

_OPPOSITE = {"L": "R", "R": "L", "A": "P", "P": "A", "H": "F", "F": "H"}
_MAX_TILT = math.cos(math.radians(40))  # a gantry is tilted by up to 30°


@dataclass(frozen=True, slots=True)
class Window:
    """A range of pixel values to show, by the names and functions of DICOM PS3.3 C.11.2.1.2 and C.11.2.1.3."""

    center: float
    width: float
    function: str = "LINEAR"


TOO_LARGE = "have slices of more pixels than any should (Pillow's limit)"
WINDOWS = {"lung": Window(-600, 1500), "mediastinum": Window(40, 400)}  # Hounsfield units
_SMALLEST_WIDTH = {"LINEAR": 1.0, "LINEAR_EXACT": math.ulp(0.0), "SIGMOID": math.ulp(0.0)}  # the standard's


def parse_window(text: str) -> Window:
    """The window a user names: "lung", "mediastinum" or "CENTER,WIDTH"; raises MstlError for anything else."""
    if text in WINDOWS:
        return WINDOWS[text]
    try:
        center, width = (float(part) for part in text.split(","))
    except ValueError:
        center, width = math.nan, math.nan
    if not (math.isfinite(center) and math.isfinite(width) and width >= 1):
        raise MstlError(
            f"--window {text}",
            why="it is neither a known window nor two numbers with a width of 1 or more",
            remedy=f"Use {', '.join(WINDOWS)} or CENTER,WIDTH, such as -600,1500",
        )
    return Window(center, width)


def windowed(values: NDArray[Any], window: Window) -> NDArray[np.float64]:
    """Values brought to 0 (black) to 1 (white).

    LINEAR, with x a value, c the center and w the width: 0 where x ≤ c − 0.5 − (w−1)/2, 1 where
    x > c − 0.5 + (w−1)/2, between them (x − (c − 0.5)) / (w−1) + 0.5 (PS3.3 C.11.2.1.2.1). LINEAR_EXACT:
    (x − c) / w + 0.5, clipped. SIGMOID: 1 / (1 + exp(−4 (x − c) / w)). Raises ValueError for what the standard has not.
    """
    center, width = window.center, window.width
    if not (math.isfinite(center) and width >= _SMALLEST_WIDTH.get(window.function, math.inf)):
        raise ValueError(f"a window {center:g},{width:g} of the function {window.function} is not in the standard")
    x = values.astype(np.float64)
    if window.function == "LINEAR":
        if width == 1:
            return (x > center - 0.5).astype(np.float64)
        return np.clip((x - (center - 0.5)) / (width - 1) + 0.5, 0, 1)
    if window.function == "LINEAR_EXACT":
        return np.clip((x - center) / width + 0.5, 0, 1)
    steep = np.clip(-4 * (x - center) / width, -700, 700)  # beyond that, exp overflows
    return np.asarray(1 / (1 + np.exp(steep)))


def upright(image: NDArray[Any], across: str, down: str, *, to: str) -> NDArray[Any]:
    """An image (rows, columns) turned and mirrored so that it runs to the patient's left, and down to `to`.

    across, down: where it runs with growing column and row, one of L, R (left, right of the patient), A, P (front,
    back), H, F (head, feet). to: "P" for axial slices (front on top), "F" for frontal ones (head on top). So the
    patient's right is on the image's left, as radiologists look at it. Raises ValueError where that cannot be.
    """
    if across in (to, _OPPOSITE[to]):
        image, across, down = image.T, down, across
    if across not in ("L", "R") or down not in (to, _OPPOSITE[to]):
        raise ValueError(f"an image that runs to {across} and down to {down} cannot be turned to run to L and {to}")
    if across == "R":
        image = image[:, ::-1]
    return image if down == to else image[::-1]


def direction(vector: NDArray[np.float64]) -> str:
    """The letter of the direction nearest to a vector in DICOM's patient coordinates (x left, y back, z head)."""
    axis = int(np.argmax(np.abs(vector)))
    return "LPH"[axis] if vector[axis] > 0 else "RAF"[axis]


def is_axial(normal: NDArray[np.float64]) -> bool:
    """Whether a plane with this normal (any length) is tilted by less than 40° from the axial one; ours."""
    length = float(np.linalg.norm(normal))
    return length > 0 and abs(float(normal[2])) / length > _MAX_TILT


def to_png(unit: NDArray[np.float64], bits: int) -> bytes:
    """A PNG without any metadata of values between 0 and 1, spread over all of 8 or 16 bits, rounded to nearest."""
    top = 2**bits - 1
    grey = np.floor(unit * top + 0.5).astype(np.uint8 if bits == 8 else np.uint16)
    out = BytesIO()
    Image.fromarray(np.ascontiguousarray(grey)).save(out, "PNG")
    return out.getvalue()


def is_too_large(rows: int, columns: int) -> bool:
    """Whether an image has more pixels than Pillow reads without a warning: 89 megapixels, unless it is told more."""
    return Image.MAX_IMAGE_PIXELS is not None and rows * columns > Image.MAX_IMAGE_PIXELS


def rendering(window: Window | None, bits: int) -> str:
    """What decides the pixels of slices beside their files, in words; None is a file's own window."""
    return f"window {window.center:g},{window.width:g}, {bits} bits" if window else f"window of the file, {bits} bits"


def checked_bits(bits: int | None) -> int:
    """Bits of a written slice, 8 unless the user says 16; raises MstlError for others."""
    if bits not in (None, 8, 16):
        raise MstlError(f"--bits {bits}", why="a grey PNG has 8 or 16 bits", remedy="Use --bits 8 or --bits 16")
    return bits or 8
