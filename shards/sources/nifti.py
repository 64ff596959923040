"""NIfTI volumes (.nii, .nii.gz) as axial CT slices.

A NIfTI header says neither what was measured nor who was: values (scaled by the header's slope and intercept) are
taken for Hounsfield units, and the patient is the file name without its ending, one volume one patient, unless a table
of labels says otherwise. So keep masks and other modalities out of the root.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path

from shards.errors import MstlError
from shards.progress import QUIET, Progress
from shards.source_options import NO_OPTIONS, SourceOptions
from shards.sources.extras import need_extra
from shards.sources.listing import Item, Listing, first_few, make_listing, need_folder
from shards.sources.nifti_slice import NiftiSlice, Volume, read_volume
from shards.sources.nifti_unpack import unpack
from shards.sources.placing import PLACES_LAYOUT, left_out_notes, place, refuse_empty, visible_files
from shards.sources.slices import checked_bits, parse_window, rendering

LAYOUT = f"NIfTI volumes (.nii, .nii.gz) in {PLACES_LAYOUT}"
ENDINGS = (".nii.gz", ".nii")


def read(root: Path, options: SourceOptions = NO_OPTIONS, progress: Progress = QUIET) -> Listing:
    """List the axial slices of volumes by their headers, from the feet up; pixels are read when the items are.

    Slices are shown through --window (lung unless said otherwise), turned so that they run to the patient's left and
    back. Left out, and noted: volumes of other than three dimensions, in colour or complex, without a stated
    orientation (sform and qform both unset), or not within 40° of the axes. A slice with values that are not finite
    is refused when it is read. Raises MstlError when nothing usable is left, and for a modality other than ct.
    """
    options.refuse_others("nifti", "labels", "modality", "window", "bits")
    if options.modality not in (None, "ct"):
        raise MstlError(
            f"--modality {options.modality}", why="volumes are listed as CT slices", remedy="Leave it out, or say ct"
        )
    need_extra("nifti", "nibabel")
    need_folder("nifti", root, LAYOUT)
    window, bits = parse_window(options.window or "lung"), checked_bits(options.bits)
    listed, notes = visible_files(root)
    files = dict(listed)
    volumes: dict[str, Volume] = {}
    left_out: list[tuple[str, str]] = []
    progress.start(len(files), "reading headers")
    for origin, path in files.items():
        found = read_volume(path) if path.name.lower().endswith(ENDINGS) else "are no NIfTI volumes"
        if isinstance(found, str):
            left_out.append((origin, found))
        else:
            volumes[origin] = found
        progress.advance()
    notes += left_out_notes(left_out)
    refuse_empty("nifti", root, len(volumes), notes, LAYOUT)
    places = place(root, sorted(volumes), options.labels, files.keys())
    items = []
    for origin, row in places.rows.items():
        path, volume = files[origin], volumes[origin]
        for number in range(volume.slices):
            blob = NiftiSlice(str(path), number, volume.slice_bytes, window, bits)
            items.append(
                Item(
                    key=f"{stem(path)}-{number + 1:04d}", split=row.split, label=row.label,
                    patient=row.patient or stem(path), blob=blob, origin=f"{origin}/slice-{number + 1:04d}",
                )
            )  # fmt: skip
    packed = any(Path(origin).suffix.lower() == ".gz" for origin in places.rows)
    return make_listing(
        source="nifti",
        root=root,
        layout=LAYOUT,
        modality="ct",
        classes=places.classes,
        items=items,
        notes=[*notes, *places.notes, *_same_names([files[origin] for origin in places.rows])],
        carve_val=places.carve_val,
        rendering=rendering(window, bits),
        unpack=partial(unpack, tuple(items)) if packed else None,
    )


def stem(path: Path) -> str:
    """The name of a volume without its ending; it stands for the patient."""
    ending = next(ending for ending in ENDINGS if path.name.lower().endswith(ending))
    return path.name[: -len(ending)]


def _same_names(paths: list[Path]) -> list[str]:
    again = sorted(name for name, count in Counter(map(stem, paths)).items() if count > 1)
    if not again:
        return []
    return [
        f"{len(again)} names are those of several volumes, which count as one patient each: {first_few(again)}; if "
        "they are different patients, name them in --labels"
    ]
