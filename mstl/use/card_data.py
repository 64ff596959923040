"""What a model card says of the images a run was trained on: counts by split, class and patient."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from shards.errors import MstlError
from shards.read import iter_records
from shards.schema import SPLITS, Manifest

MOST_COUNTED = 50_000  # images; a file is read for each of them to count patients


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """One split. counts: images by class. patients: how many are known; unknown: images without one. None: not read."""

    split: str
    images: int
    counts: tuple[int, ...]
    patients: int | None
    unknown: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Counted:
    """A shard set as a card tells it."""

    modality: str
    splits: tuple[Split, ...]
    refused: int
    duplicates: int
    patients_note: str


def counted(folder: Path, manifest: Manifest) -> Counted:
    """Count images from the manifest, and patients from the records where they are there and not too many."""
    there = [split for split in SPLITS if manifest.splits.get(split)]
    few = sum(manifest.samples(split) for split in there) <= MOST_COUNTED
    note = "" if few else f"Patients of more than {MOST_COUNTED:,} images are not counted."
    splits = []
    for split in there:
        patients = unknown = None
        if few:
            try:
                found = [record.patient for record in iter_records(folder, split)]
                patients, unknown = len({patient for patient in found if patient is not None}), found.count(None)
            except MstlError as error:
                note = f"Patients are not counted where the shards cannot be read ({error.what})."
        splits.append(
            Split(
                split=split,
                images=manifest.samples(split),
                counts=manifest.class_counts[split],
                patients=patients,
                unknown=unknown,
            )
        )
    return Counted(
        modality=manifest.modality,
        splits=tuple(splits),
        refused=manifest.refused,
        duplicates=manifest.duplicates,
        patients_note=note,
    )
