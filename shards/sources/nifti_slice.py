"""One axial slice of a NIfTI volume: which ones a header offers, and a slice as a PNG."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.sources.blob import modified_ns
from shards.sources.slices import TOO_LARGE, Window, direction, is_axial, is_too_large, to_png, upright, windowed

_MOST_BEFORE_BYTES = 2**24  # of header and extensions (ours)
_MOST_PACKED = 1032  # bytes that one of a .gz file can unpack to (zlib's technical notes)
# What nibabel raises on damaged files, OSError aside.
DAMAGE = (ValueError, TypeError, KeyError, IndexError, EOFError, OverflowError, AttributeError, zlib.error)


@dataclass(frozen=True, slots=True)
class Volume:
    """What a header offers: the number of axial slices, and the bytes of one as stored."""

    slices: int
    slice_bytes: int


@dataclass(frozen=True, slots=True)
class _Layout:
    """How a volume lies in its array.

    axis: the one through the slices. to_head: whether it runs that way. down, across: where the other two axes run, in
    their order in the array, as the letters of `slices.direction`.
    """

    axis: int
    to_head: bool
    down: str
    across: str


@dataclass(frozen=True, slots=True)
class NiftiSlice:
    """An axial slice that reads as a PNG (a `Readable`). number: counted from the feet, from 0. size: bytes stored.

    Of a compressed volume everything up to the slice is unpacked for each reading; see nifti_unpack.py.
    """

    path: str
    number: int
    size: int
    window: Window
    bits: int

    @property
    def name(self) -> str:
        """What to call the slice in messages."""
        return f"{self.path}, slice {self.number + 1}"

    def read(self) -> bytes:
        """The PNG; raises OSError with the reason when the slice cannot be read or shown."""
        try:
            image = _open(Path(self.path))
            layout = _layout(image)
            if isinstance(layout, str):
                raise ValueError(f"such volumes {layout}")
            count = image.shape[layout.axis]
            at = self.number if layout.to_head else count - 1 - self.number
            where: list[int | slice] = [slice(None)] * 3 + [0] * (len(image.shape) - 3)
            where[layout.axis] = at
            # Mapped into memory, not sliced by nibabel, which reads all of a volume that is stored across its slices.
            stored: NDArray[Any] = image.dataobj.get_unscaled()[tuple(where)]
            values = stored.astype(np.float64) * image.dataobj.slope + image.dataobj.inter
            if not np.isfinite(values).all():
                raise ValueError("some of its values are not finite")
            return to_png(upright(windowed(values, self.window), layout.across, layout.down, to="P"), self.bits)
        except DAMAGE as error:
            raise OSError(f"the NIfTI slice cannot be shown ({error})") from error

    def stamp(self) -> int:
        """When the volume was last written, in ns since 1970; raises OSError when it is gone."""
        return modified_ns(self.path)


def is_packed(path: Path) -> bool:
    """Whether a volume is compressed, by its name."""
    return path.name.lower().endswith(".gz")


def unpacked_bytes(path: Path) -> int:
    """The bytes that a volume has unpacked, by its header; raises OSError when that cannot be read."""
    try:
        return declared_bytes(_open(path))
    except DAMAGE as error:
        raise OSError(f"its header is damaged ({error})") from error


def declared_bytes(image: Any) -> int:
    """The bytes of a volume's header and data, as its header gives them."""
    return int(image.dataobj.offset) + math.prod(map(int, image.shape)) * int(image.get_data_dtype().itemsize)


def read_volume(path: Path) -> Volume | str:
    """What a header offers, or why its volume is left out, in words that follow a count.

    Raises OSError where the system cannot read it: a volume must not be lost to that.
    """
    try:
        if not 0 <= _data_start(path) <= _MOST_BEFORE_BYTES:  # nibabel reads all of that, however large
            return f"say that there are more than {_MOST_BEFORE_BYTES:,} bytes before their data"
        image = _open(path)
        layout = _layout(image)
        if isinstance(layout, str):
            return layout
        if declared_bytes(image) > path.stat().st_size * (_MOST_PACKED if is_packed(path) else 1):
            return "are shorter than their header says"
        pixels = math.prod(image.shape) // image.shape[layout.axis]
        return Volume(image.shape[layout.axis], pixels * int(image.get_data_dtype().itemsize))
    except (OSError, *DAMAGE) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        return "have a damaged header"


def _data_start(path: Path) -> float:
    """Where the data of a volume start, by its header; 0 where that is none."""
    with gzip.open(path) if is_packed(path) else path.open("rb") as file:
        head = file.read(540)
    for order in "<>" if len(head) >= 348 else "":
        (kind,) = struct.unpack_from(f"{order}i", head)
        if kind == 348:  # NIfTI-1
            return float(struct.unpack_from(f"{order}f", head, 108)[0])
        if kind == 540:
            return float(struct.unpack_from(f"{order}q", head, 168)[0])
    return 0


def _open(path: Path) -> Any:
    import nibabel
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError

    try:
        return nibabel.load(path)
    except (ImageFileError, HeaderDataError) as error:
        raise OSError(f"it is no NIfTI volume ({error})") from error


def _layout(image: Any) -> _Layout | str:
    """How a volume lies, or why it cannot be used."""
    shape = image.shape
    if len(shape) < 3 or math.prod(shape[3:]) != 1 or min(shape) < 1:
        return "have not three dimensions"
    if image.get_data_dtype().kind not in "iuf":
        return "are in colour or complex"
    if not int(image.header["sform_code"]) and not int(image.header["qform_code"]):
        return "do not say how they lie in the patient (sform and qform are unset)"
    axes = np.asarray(image.affine, dtype=np.float64)[:3, :3]
    if not np.isfinite(axes).all() or abs(np.linalg.det(axes)) < 1e-9:
        return "have an orientation that is none"
    # NIfTI counts to the right, the front and the head; DICOM, and `direction`, to the left, the back and the head.
    columns = [column * (-1, -1, 1) for column in (axes / np.linalg.norm(axes, axis=0)).T]
    letters = [direction(column) for column in columns]
    along = [place for place, letter in enumerate(letters) if letter in "HF"]
    if len(along) != 1 or len({frozenset(pair) for pair in _pairs(letters)}) != 3 or not is_axial(columns[along[0]]):
        return "are oblique by 40° or more"
    if is_too_large(*(size for axis, size in enumerate(shape[:3]) if axis != along[0])):
        return TOO_LARGE
    down, across = (letter for letter in letters if letter not in "HF")
    return _Layout(along[0], letters[along[0]] == "H", down, across)


def _pairs(letters: list[str]) -> list[str]:
    """The pair of opposites each letter belongs to."""
    return [pair for letter in letters for pair in ("LR", "AP", "HF") if letter in pair]
