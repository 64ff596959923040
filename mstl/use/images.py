"""Finding the images that a run is asked about, and what to say of those that it was hardly trained for."""

from __future__ import annotations

import glob
import io
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from mstl.evaluation.explain_files import MASK_ENDING
from mstl.use.network import Network
from shards.check import Checked, Refused, read_and_check
from shards.errors import MstlError
from shards.progress import Progress
from shards.sources.blob import Readable
from shards.sources.dicom import read_header
from shards.sources.dicom_frame import DicomFrame
from shards.sources.extras import need_extra
from shards.sources.listing import file_blob, named_like_image
from shards.sources.slices import WINDOWS, Window, parse_window

_KINDS = {"ct": "CT slice", "cxr": "radiograph", "natural": "natural image"}
_PATCHES = 64  # across and down, of which each counts as coloured or grey
_COLOURED = 32  # difference of the largest and smallest channel of a patch, of 255
_COLOURED_SHARE = 0.1
_RENDERED = re.compile(r"window (?:of the file|(?P<window>[^ ]+)), (?P<bits>\d+) bits")


@dataclass(frozen=True, kw_only=True, slots=True)
class Named:
    """An image that was asked about, not read yet. name: its path, and the frame of several.

    kind: "ct" or "cxr" of DICOM, else empty. window: how DICOM values become greys, in words.
    """

    name: str
    path: Path
    blob: Readable
    kind: str = ""
    window: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Sound:
    """An image that can be read, in pixels as shown. cautions: why its probability may mean less than others."""

    named: Named
    width: int
    height: int
    cautions: tuple[str, ...]


Bad = tuple[str, str]  # name and reason of what cannot be used


def find(paths: Sequence[Path], network: Network, *, window: str | None) -> tuple[list[Named], list[Bad]]:
    """The images that files, folders and patterns name, each once and in order, and what is named in vain.

    In folders and below: what ends like an image or is a DICOM file, hidden ones and NAME_mask.png beside NAME left
    out. window: of DICOM values (`parse_window`); by default that of the run's shard set, else of the CT the lung
    window and of radiographs the file's own. Raises MstlError for a window that is none, and for DICOM without pydicom.
    """
    asked = None if window is None else parse_window(window)
    found: dict[str, Named] = {}
    bad: list[Bad] = []
    for path in paths:
        files, why = _files(path)
        if why:
            bad.append((str(path), why))
        for file in files:
            try:
                for named in _named(file, network, asked):
                    found.setdefault(named.name, named)
            except OSError as error:
                bad.append((str(file), error.strerror or str(error)))
    return list(found.values()), bad


def look(found: Sequence[Named], network: Network, progress: Progress) -> tuple[list[Sound], list[Bad]]:
    """Decode every image in full: those that are sound, and the others with the reason."""
    sound: list[Sound] = []
    bad: list[Bad] = []
    progress.start(len(found), "reading images")
    for named in found:
        data, checked = read_and_check(named.blob)
        if isinstance(checked, Refused):
            bad.append((named.name, checked.reason))
        else:
            cautions = tuple(_cautions(data, checked, named, network))
            sound.append(Sound(named=named, width=checked.width, height=checked.height, cautions=cautions))
        progress.advance(refused=int(isinstance(checked, Refused)))
    return sound, bad


def _files(path: Path) -> tuple[list[Path], str]:
    """The files that a path names, and why there are none."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and _wanted(file, path))
        names = {file.with_suffix("") for file in files}
        files = [file for file in files if not _is_mask(file, names)]
        return files, "" if files else "no images are there"
    if path.exists():
        return [path], ""
    if not glob.has_magic(str(path)):
        return [], "there is no such file or folder"
    files = [Path(name) for name in sorted(glob.glob(str(path), recursive=True)) if Path(name).is_file()]  # noqa: PTH207
    return files, "" if files else "no file is named so"


def _wanted(file: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    return not hidden and (named_like_image(file.name) or _is_dicom(file))


def _is_mask(file: Path, names: set[Path]) -> bool:
    plain = file.with_name(file.stem.removesuffix(MASK_ENDING))
    return file.stem.endswith(MASK_ENDING) and plain in names


def _is_dicom(file: Path) -> bool:
    try:
        with file.open("rb") as opened:
            return opened.read(132)[128:] == b"DICM"
    except OSError:
        return False  # it is told when it is read, where it is named like an image


def _named(file: Path, network: Network, asked: Window | None) -> Iterator[Named]:
    """The image of a file, or the frames of a DICOM file; raises OSError where there is none to use."""
    if not _is_dicom(file):
        yield Named(name=str(file), path=file, blob=file_blob(file))
        return
    need_extra("dicom", "pydicom")
    header = read_header(file)
    if header.left_out:
        raise OSError(f"DICOM files that {header.left_out} are not used")
    shown, bits, text = _rendering(header.kind, network, asked)
    size = file.stat().st_size // header.frames
    for frame in range(header.frames):
        blob = DicomFrame(str(file), frame, size, header.kind, shown, bits)
        name = f"{file}, frame {frame + 1}" if header.frames > 1 else str(file)
        yield Named(name=name, path=file, blob=blob, kind=header.kind, window=text)


def _rendering(kind: str, network: Network, asked: Window | None) -> tuple[Window | None, int, str]:
    """Window and bits of DICOM values, and where they come from, in words."""
    trained = network.trained
    made = None
    if trained is not None and trained.modality == kind:
        made = _RENDERED.fullmatch(str(trained.options.get("rendering") or ""))
    bits = network.inputs.bits if made is None else int(made["bits"])
    if asked is not None:
        return asked, bits, f"{_text(asked)} (as asked)"
    if made is not None:
        own = None if made["window"] is None else parse_window(made["window"])
        return own, bits, f"{_text(own)} (as the run's shard set was made)"
    own = WINDOWS["lung"] if kind == "ct" else None
    return own, bits, f"{_text(own)} (by default: how the run's images were windowed is not known)"


def _text(window: Window | None) -> str:
    return "the file's own window" if window is None else f"window {window.center:g},{window.width:g}"


def _cautions(data: bytes, checked: Checked, named: Named, network: Network) -> Iterator[str]:
    """Plain rules for images unlike those that a network was trained on (ours); silence is no proof of likeness."""
    if named.kind and network.modality is not None and named.kind != network.modality:
        yield f"it is a {_KINDS[named.kind]}, and the network was trained on {_KINDS[network.modality]}s"
    side = network.inputs.resize
    if 2 * min(checked.width, checked.height) < side:
        yield f"its {checked.width} × {checked.height} pixels are enlarged more than twice, to {side} × {side}"
    coloured, flat = _looks(data)
    if network.inputs.is_grey and coloured > _COLOURED_SHARE:
        yield f"{coloured:.0%} of it is in colour, and the network was trained on images taken as grey"
    if flat:
        yield "it shows nothing: all its pixels are equal"


def _looks(data: bytes) -> tuple[float, bool]:
    """The share of an image's patches that are in colour, and whether all its pixels are equal."""
    with warnings.catch_warnings(), Image.open(io.BytesIO(data)) as image:
        warnings.simplefilter("ignore")  # it was checked
        if image.mode.startswith("I"):  # 16 bits of grey
            values = np.asarray(image)
            return 0.0, bool(values.min() == values.max())
        plain = image.convert("RGB")
    flat = all(low == high for low, high in plain.getextrema())  # type: ignore[misc]  # of three channels: pairs
    patches = np.asarray(plain.resize((_PATCHES, _PATCHES), Image.Resampling.BOX)).astype(int)
    return float(np.mean(patches.max(2) - patches.min(2) > _COLOURED)), flat


def none_left(bad: Sequence[Bad], of: int) -> MstlError:
    """What is said at the end where images could not be used."""
    name, reason = bad[0]
    more = f", and {len(bad) - 1} more" if len(bad) > 1 else ""
    return MstlError(
        f"{len(bad)} of {of} images",
        why=f"they cannot be used: {name} ({reason}){more}",
        remedy="Name PNG, JPEG, TIFF, BMP, GIF, WebP or DICOM images that are whole",
    )
