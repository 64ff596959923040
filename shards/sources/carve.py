"""Carving a validation part out of train, patient by patient, for sources that come without one."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from dataclasses import replace

from shards.sources.listing import Item, Listing


def carve_validation(listing: Listing, *, fraction: float, seed: int) -> Listing:
    """Move about `fraction` of the training patients to `val`, class by class; a listing that has its own is returned.

    A patient never straddles the two; an image without patient id counts as a patient of its own. The choice hangs
    on the seed and the patient id alone, so it does not depend on the order of files. Each group of patients with the
    same classes gives at least one when it has two or more. Ours: COVIDx has no validation list.
    """
    if not listing.carve_val or fraction == 0:
        return listing
    labels: dict[str, set[int]] = defaultdict(set)
    for item in listing.items:
        if item.split == "train":
            labels[_patient(item)].add(item.label)
    groups: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for patient, seen in labels.items():
        groups[tuple(sorted(seen))].append(patient)
    chosen: set[str] = set()
    for patients in groups.values():
        count = min(max(1, round(fraction * len(patients))), len(patients) - 1)
        chosen.update(sorted(patients, key=lambda patient: _rank(seed, patient))[:count])
    items = tuple(
        replace(item, split="val") if item.split == "train" and _patient(item) in chosen else item
        for item in listing.items
    )
    return replace(listing, items=items)


def _patient(item: Item) -> str:
    # The prefixes keep a patient id from meeting a file of the same name.
    return f"image:{item.origin}" if item.patient is None else f"patient:{item.patient}"


def _rank(seed: int, patient: str) -> bytes:
    return hashlib.sha256(os.fsencode(f"{seed}/val/{patient}")).digest()
