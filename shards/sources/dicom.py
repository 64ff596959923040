"""DICOM: axial CT slices, and projection radiographs (CR, DX), as grey PNGs.

De-identification, said plainly. Of a header only the patient id goes on, as a pseudonym: the first 16 hexadecimal
digits of the SHA-256 of PatientID. It is the same in every set, so that leakage checks work across sets, and it is
not secret: who knows or tries possible ids finds the pseudonym again. Paths of files stay in the shards, as keys and
origins; where they hold names, rename the files first. Text burned into the pixels stays.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from shards.errors import MstlError
from shards.parallel import ordered_map
from shards.progress import QUIET, Progress
from shards.source_options import NO_OPTIONS, SourceOptions
from shards.sources.dicom_file import plain_dicom
from shards.sources.dicom_frame import DAMAGE, KINDS, DicomFrame, frame_count, why_not
from shards.sources.extras import need_extra
from shards.sources.labels import Row
from shards.sources.listing import Item, Listing, make_listing, need_folder
from shards.sources.placing import PLACES_LAYOUT, left_out_notes, place, refuse_empty, visible_files
from shards.sources.slices import WINDOWS, Window, checked_bits, parse_window, rendering

LAYOUT = f"DICOM files (with or without .dcm) in {PLACES_LAYOUT}"
_CHUNK = 64  # files a job
_FEW = 1000  # up to here, starting processes takes longer than they save
HEADER_TAGS = [
    "Modality", "ImageType", "SamplesPerPixel", "PhotometricInterpretation", "Rows", "Columns", "BitsAllocated",
    "NumberOfFrames", "RescaleSlope", "RescaleIntercept", "RescaleType", "ImageOrientationPatient",
    "PatientOrientation", "ViewPosition", "PresentationIntentType", "PatientID", "StudyInstanceUID",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Header:
    """What listing needs of a file. left_out: why it is not used, empty when it is."""

    left_out: str
    kind: str = ""
    frames: int = 0
    patient: str | None = None
    study: str = ""


def read(root: Path, options: SourceOptions = NO_OPTIONS, progress: Progress = QUIET) -> Listing:
    """List DICOM files by their headers, one item a frame; pixels are read when the items are.

    CT is shown in Hounsfield units through --window (lung unless said otherwise), radiographs through the VOI LUT or
    window of the file, else from least to greatest value, unless --window CENTER,WIDTH says otherwise; MONOCHROME1 is
    inverted and padding is black. Slices run to the patient's left and back, radiographs (where PatientOrientation is
    there) to the left and the feet. Left out, and noted: what is not axial, not frontal or not known to be, localizers,
    raw detector data, other modalities and colours, CT not in Hounsfield units.
    Raises MstlError for CT and radiographs mixed unless --modality chooses, and when nothing usable is left.
    """
    options.refuse_others("dicom", "labels", "modality", "window", "bits")
    need_extra("dicom", "pydicom")
    need_folder("dicom", root, LAYOUT)
    bits = checked_bits(options.bits)
    files, notes = visible_files(root)
    headers = dict(zip((origin for origin, _ in files), _headers([path for _, path in files], progress), strict=True))
    usable = {origin: header for origin, header in headers.items() if not header.left_out}
    notes += left_out_notes((origin, header.left_out) for origin, header in headers.items() if header.left_out)
    kind = _one_kind(root, list(usable.values()), options.modality, notes)
    chosen = {origin: header for origin, header in usable.items() if header.kind == kind}
    if len(chosen) < len(usable):
        notes.append(f"{len(usable) - len(chosen)} files are not {kind} and were left out, as --modality says")
    window = _window(kind, options.window)
    places = place(root, sorted(chosen), options.labels, headers.keys())
    items = [
        item
        for origin, path in files
        if origin in places.rows
        for item in _items(origin, path, chosen[origin], places.rows[origin], window, bits)
    ]
    return make_listing(
        source="dicom",
        root=root,
        layout=LAYOUT,
        modality=kind,
        classes=places.classes,
        items=items,
        notes=[*notes, *places.notes, *_patient_notes([chosen[origin] for origin in places.rows])],
        carve_val=places.carve_val,
        rendering=rendering(window, bits),
    )


def _items(origin: str, path: Path, header: Header, row: Row, window: Window | None, bits: int) -> Iterator[Item]:
    size = path.stat().st_size // header.frames
    for frame in range(header.frames):
        number = f"frame-{frame + 1:04d}"
        several = header.frames > 1
        yield Item(
            key=f"{path.stem}-{number}" if several else path.stem,
            split=row.split,
            label=row.label,
            patient=row.patient or header.patient,
            blob=DicomFrame(str(path), frame, size, header.kind, window, bits),
            origin=f"{origin}/{number}" if several else origin,
        )


def pseudonym(patient_id: str) -> str | None:
    """What stands for a PatientID in a shard set (see the head of this file); None for an empty one."""
    patient_id = patient_id.strip()
    return hashlib.sha256(patient_id.encode()).hexdigest()[:16] if patient_id else None


def _one_kind(root: Path, usable: Sequence[Header], wanted: str | None, notes: Sequence[str]) -> str:
    """ "ct" or "cxr": the only kind there is, or the one wanted."""
    counts = Counter(header.kind for header in usable)
    refuse_empty("dicom", root, counts[wanted] if wanted else len(usable), notes, LAYOUT)
    if wanted is None and len(counts) > 1:
        raise MstlError(
            f"source dicom in {root}",
            why=f"it holds {counts['ct']} CT and {counts['cxr']} radiography files, and a shard set holds one kind",
            remedy="Choose with --modality ct or --modality cxr",
        )
    return wanted or next(iter(counts))


def _window(kind: str, text: str | None) -> Window | None:
    if kind == "ct":
        return parse_window(text or "lung")
    if text in WINDOWS:
        raise MstlError(
            f"--window {text}",
            why="it is in Hounsfield units, and radiographs have none",
            remedy="Leave it out to use the windows of the files, or give CENTER,WIDTH in their units",
        )
    return parse_window(text) if text else None


def _patient_notes(headers: Sequence[Header]) -> list[str]:
    nameless = sum(header.patient is None for header in headers)
    patients, studies = {header.patient for header in headers}, {header.study for header in headers}
    notes = [f"{nameless} of {len(headers)} files have no PatientID, so their patient is unknown"] if nameless else []
    if len(patients) == 1 and not nameless and len(studies) > 1:
        notes.append(
            f"all {len(studies)} studies carry the same PatientID, as if one word had been put over all of them; if "
            "they are of several patients, name those in --labels"
        )
    return notes


def _headers(paths: Sequence[Path], progress: Progress) -> Iterator[Header]:
    progress.start(len(paths), "reading headers")
    chunks = [tuple(map(str, paths[at : at + _CHUNK])) for at in range(0, len(paths), _CHUNK)]
    workers = 1 if len(paths) <= _FEW else len(os.sched_getaffinity(0))
    with closing(ordered_map(_read_headers, chunks, workers=workers)) as results:
        for headers in results:
            yield from headers
            progress.advance(len(headers))


def _read_headers(paths: Sequence[str]) -> list[Header]:
    return [read_header(Path(path)) for path in paths]


def read_header(path: Path) -> Header:
    """What the header of a file says; of what is no DICOM file, that it is left out."""
    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError

    with path.open("rb") as file:
        if file.read(132)[128:] != b"DICM":
            return Header("are no DICOM files")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd values are no reason to leave a file out
            plain = plain_dicom(path)
            size = path.stat().st_size if isinstance(plain, Path) else len(plain.getbuffer())
            header = dcmread(plain, stop_before_pixels=True, specific_tags=list(HEADER_TAGS))
            if not 1 <= frame_count(header) <= size:  # before anything is done for every frame
                return Header("say that they have no frames, or more than bytes")
            left_out = why_not(header)
            if left_out:
                return Header(left_out)
            return Header(
                left_out="",
                kind=KINDS[str(header.Modality)],
                frames=frame_count(header),
                patient=pseudonym(str(header.get("PatientID") or "")),
                study=str(header.get("StudyInstanceUID") or ""),
            )
    except (InvalidDicomError, *DAMAGE):
        return Header("have a damaged header")
