"""One frame of a DICOM file: whether its header allows to show it rightly, and its pixels as a PNG."""

from __future__ import annotations

import struct
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from shards.sources.blob import modified_ns
from shards.sources.dicom_file import plain_dicom
from shards.sources.slices import TOO_LARGE, Window, direction, is_axial, is_too_large, to_png, upright, windowed

if TYPE_CHECKING:
    from pydicom import Dataset

KINDS = {"CT": "ct", "CR": "cxr", "DX": "cxr"}
# Where a file of many frames keeps what others have at the top: PS3.3 C.7.6.16.2, C.8.15.3.
_MACROS = {
    "ImageOrientationPatient": "PlaneOrientationSequence",
    "FrameType": "CTImageFrameTypeSequence",
    "RescaleSlope": "PixelValueTransformationSequence",
    "RescaleIntercept": "PixelValueTransformationSequence",
    "RescaleType": "PixelValueTransformationSequence",
    "WindowCenter": "FrameVOILUTSequence",
    "WindowWidth": "FrameVOILUTSequence",
    "VOILUTFunction": "FrameVOILUTSequence",
}
_GREY = ("MONOCHROME1", "MONOCHROME2")
_OVERVIEWS = {"LOCALIZER", "SCOUT", "TOPOGRAM"}
_SIDEWAYS = {"LL", "RL", "LATERAL", "LLD", "RLD"}
# What pydicom and its decoders raise on files that are damaged or beyond them.
DAMAGE = (
    AttributeError, EOFError, IndexError, KeyError, NotImplementedError, OverflowError, RuntimeError, TypeError,
    ValueError, struct.error, zlib.error,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class DicomFrame:
    """A frame of a DICOM file that reads as a PNG (a `Readable`).

    size: the bytes of the file, divided among its frames. kind: "ct" or "cxr". window: of values behind rescaling;
    None takes the file's own VOI LUT or window, else all from the least to the greatest value. bits: 8 or 16.
    """

    path: str
    frame: int
    size: int
    kind: str
    window: Window | None
    bits: int

    @property
    def name(self) -> str:
        """What to call the frame in messages."""
        return f"{self.path}, frame {self.frame + 1}" if self.frame else self.path

    def read(self) -> bytes:
        """The PNG; raises OSError with the reason when the pixels cannot be decoded or shown."""
        from pydicom import dcmread
        from pydicom.errors import InvalidDicomError
        from pydicom.pixels.utils import pixel_array

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # odd values elsewhere in the header
                file = plain_dicom(Path(self.path))
                header = dcmread(file, stop_before_pixels=True)
                why = why_not(header)
                if why:
                    raise ValueError(why)
                # As stored: a padding value may need the bits that pydicom would clear.
                pixels = pixel_array(file, index=self.frame, correct_unused_bits=False)
                return to_png(_shown(header, pixels, self), self.bits)
        except (InvalidDicomError, *DAMAGE) as error:
            raise OSError(f"the DICOM pixels cannot be shown ({error})") from error

    def stamp(self) -> int:
        """When the file was last written, in ns since 1970; raises OSError when it is gone."""
        return modified_ns(self.path)


def why_not(header: Dataset) -> str:
    """Why frames of a file cannot be shown rightly, in words that follow a count; empty when they can."""
    modality = str(header.get("Modality", ""))
    if not header.get("Rows") or not header.get("Columns") or not header.get("PhotometricInterpretation"):
        return "hold no image (reports, contours, plans)"
    if modality not in KINDS:
        return f"are of the modality {modality or 'unknown'} (used are {', '.join(KINDS)})"
    if header.get("SamplesPerPixel") != 1 or str(header.PhotometricInterpretation) not in _GREY:
        return f"have {header.PhotometricInterpretation} pixels (used are {' and '.join(_GREY)})"
    if header.get("BitsAllocated") not in (8, 16):
        return f"have {header.get('BitsAllocated')} bits a pixel (used are 8 and 16)"
    if is_too_large(int(header.Rows), int(header.Columns)):
        return TOO_LARGE
    frames = range(frame_count(header))
    if KINDS[modality] == "cxr":
        return _why_not_projection(header)
    return next((why for frame in frames if (why := _why_not_slice(header, frame))), "")


def frame_count(header: Dataset) -> int:
    """The number of frames of a file."""
    return int(header.get("NumberOfFrames") or 1)


def _why_not_slice(header: Dataset, frame: int) -> str:
    kinds = _several(header.get("ImageType")) + _several(_attribute(header, frame, "FrameType"))
    if _OVERVIEWS & {kind.upper() for kind in kinds}:
        return "are localizers (scout views)"
    if _attribute(header, frame, "RescaleSlope") is None or _attribute(header, frame, "RescaleIntercept") is None:
        return "have no rescale slope and intercept, so their values are not known to be Hounsfield units"
    if str(_attribute(header, frame, "RescaleType") or "HU") != "HU":
        return f"are in units of {_attribute(header, frame, 'RescaleType')} and not in Hounsfield units"
    orientation = _attribute(header, frame, "ImageOrientationPatient")
    if orientation is None or len(orientation) != 6:
        return "do not say how they lie in the patient (ImageOrientationPatient)"
    across, down = _vectors(orientation)
    square = abs(float(across @ down)) < 0.01 and all(abs(float(v @ v) - 1) < 0.02 for v in (across, down))
    if not square:
        return "have an ImageOrientationPatient that is none"
    return "" if is_axial(np.cross(across, down)) else "are not axial (sagittal, coronal or oblique)"


def _why_not_projection(header: Dataset) -> str:
    if str(header.get("PresentationIntentType", "")) == "FOR PROCESSING":
        return "are raw detector data (FOR PROCESSING), not meant to be looked at"
    letters = _projection_letters(header)
    if str(header.get("ViewPosition", "")) in _SIDEWAYS or {"A", "P"} & set(letters):
        return "are lateral views"
    return ""


def _attribute(header: Dataset, frame: int, keyword: str) -> Any:
    """A value at the top of a header, else of the frame's functional group, else of the group all frames share."""
    holders = [header]
    for groups, place in (("PerFrameFunctionalGroupsSequence", frame), ("SharedFunctionalGroupsSequence", 0)):
        if keyword in _MACROS and header.get(groups):
            holders += list(header[groups].value[place].get(_MACROS[keyword]) or ())[:1]
    return next((value for holder in holders if (value := holder.get(keyword)) not in (None, "")), None)


def _shown(header: Dataset, pixels: NDArray[Any], frame: DicomFrame) -> NDArray[np.float64]:
    """The frame from 0 (black) to 1 (white), upright."""
    if pixels.ndim != 2:
        raise ValueError(f"its pixels have the shape {pixels.shape}")
    padding = _padding(header, pixels)
    values = _stored_values(header, pixels)
    if frame.kind == "cxr" and header.get("ModalityLUTSequence"):
        values = _looked_up(header.ModalityLUTSequence[0], values)[0]
    else:
        slope = _attribute(header, frame.frame, "RescaleSlope")
        intercept = _attribute(header, frame.frame, "RescaleIntercept")
        values = values * float(1 if slope is None else slope) + float(0 if intercept is None else intercept)
    unit = (
        _file_window(header, frame.frame, values, padding) if frame.window is None else windowed(values, frame.window)
    )
    if not np.isfinite(unit).all():
        raise ValueError("some of its values are not finite")
    if header.PhotometricInterpretation == "MONOCHROME1":
        unit = 1 - unit
    unit = np.where(padding, 0.0, unit)
    if frame.kind == "cxr":
        letters = _projection_letters(header)
        return upright(unit, *letters, to="F") if letters else unit
    across, down = _vectors(_attribute(header, frame.frame, "ImageOrientationPatient"))
    return upright(unit, direction(across), direction(down), to="P")


def _vectors(orientation: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    numbers = np.array([float(number) for number in orientation])
    return numbers[:3], numbers[3:]


def _projection_letters(header: Dataset) -> str:
    """Where a projection runs with growing column and row, "LF" for most; empty where the file does not say."""
    said = _several(header.get("PatientOrientation"))
    letters = "".join(part[:1] for part in said)
    return letters if len(said) == len(letters) == 2 else ""


def _padding(header: Dataset, pixels: NDArray[Any]) -> NDArray[np.bool_]:
    """Where there is no image: pixels of the padding value, or between it and its range limit."""
    value = header.get("PixelPaddingValue")
    if value is None:
        return np.zeros(pixels.shape, dtype=np.bool_)
    limit = header.get("PixelPaddingRangeLimit")
    # Some files write a signed value as an unsigned one, or the other way round: it wraps as the pixels did.
    ends = np.array([value, value if limit is None else limit], dtype=np.int64).astype(pixels.dtype)
    low, high = ends.min(), ends.max()
    return np.asarray((pixels >= low) & (pixels <= high))


def _stored_values(header: Dataset, pixels: NDArray[Any]) -> NDArray[np.float64]:
    """Pixels without what old files keep in the bits above those stored (overlays)."""
    unused = 8 * pixels.itemsize - int(header.BitsStored)
    if unused < 0 or int(header.HighBit) != int(header.BitsStored) - 1:
        raise ValueError(f"it stores {header.BitsStored} bits up to bit {header.HighBit} in {pixels.itemsize} bytes")
    # Shifting back brings the sign of a signed number along.
    return np.asarray((pixels << unused) >> unused, dtype=np.float64)


def _file_window(
    header: Dataset, frame: int, values: NDArray[np.float64], padding: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Values from 0 to 1 by the first VOI LUT of a file, else its first window, else from least to greatest."""
    if header.get("VOILUTSequence"):
        looked_up, top = _looked_up(header.VOILUTSequence[0], values)
        return looked_up / top
    center, width = (_first(_attribute(header, frame, keyword)) for keyword in ("WindowCenter", "WindowWidth"))
    if center is not None and width is not None:
        return windowed(values, Window(center, width, str(_attribute(header, frame, "VOILUTFunction") or "LINEAR")))
    inside = values[~padding]
    low, high = (float(inside.min()), float(inside.max())) if inside.size else (0.0, 0.0)
    return np.clip((values - low) / (high - low), 0, 1) if high > low else np.zeros_like(values)


def _several(value: Any) -> list[str]:
    """The texts of an element, which may have none, one or several."""
    if value is None:
        return []
    return [str(part).strip() for part in ([value] if isinstance(value, str) else value)]


def _first(value: Any) -> float | None:
    """The first of several values, which are alternatives."""
    if value is None:
        return None
    return float(value) if isinstance(value, str | int | float) else float(value[0])


def _looked_up(item: Any, values: NDArray[np.float64]) -> tuple[NDArray[np.float64], int]:
    """Values behind a lookup table (PS3.3 C.11.1, C.11.2), and the greatest value its bits allow."""
    entries, first, bits = (int(number) for number in item.LUTDescriptor)
    entries = entries or 2**16  # the standard's way to write what 16 bits cannot
    data = item.LUTData
    if isinstance(data, bytes):
        table = np.frombuffer(data, dtype="<u2" if len(data) >= 2 * entries else np.uint8)
    else:
        table = np.asarray(data)
    top = 2**bits - 1
    if len(table) < entries or not 8 <= bits <= 16 or int(table[:entries].max()) > top:
        raise ValueError(f"a lookup table of {entries} entries of {bits} bits does not hold what it says")
    places = np.clip(np.floor(values + 0.5) - first, 0, entries - 1).astype(np.int64)
    return table[places].astype(np.float64), top
