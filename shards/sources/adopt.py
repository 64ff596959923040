"""WebDataset tars as others made them: images, labels and patients out of tars that are there already."""

from __future__ import annotations

import json
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from shards.errors import MstlError
from shards.progress import QUIET, Progress
from shards.source_options import MODALITIES, NO_OPTIONS, SourceOptions
from shards.sources.archives import TarMember, tar_members
from shards.sources.blob import Blob
from shards.sources.class_names import name_classes
from shards.sources.listing import (
    IMAGE_SUFFIXES,
    Item,
    Listing,
    first_few,
    make_listing,
    need_folder,
    refuse_unprintable,
)
from shards.sources.placing import visible_files

LAYOUT = "*.tar with NAME.jpg (or png, ...) and NAME.cls or NAME.json, in train/, val/, test/ or named so"
_SPLIT_WORDS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test",
    "testing": "test",
}  # fmt: skip
_UNFINISHED = ".building"  # how the folder of a shard set ends that is being written
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


@dataclass(frozen=True, slots=True)
class _Sample:
    origin: str
    split: str
    blob: Blob
    label: str
    class_name: str | None
    patient: str | None
    modality: str | None


def read(root: Path, options: SourceOptions = NO_OPTIONS, progress: Progress = QUIET) -> Listing:
    """List WebDataset tars, read in place.

    A sample is the members of a tar whose names are equal up to the first dot. Its image is the one member named like
    an image (of several, the one with a plain ending: `1.jpg`, not `1.mask.png`). Its label stands in `cls` (a number
    or a text), else in `json` (label, cls or class_name); its patient in `json` (patient). The split is that of the
    nearest folder named train, val or test, else of such a word in the name of the tar, else train. Class names:
    of an MSTL shard set, its own; else classes.txt or classnames.txt at the root, a line per label; else class_name of
    the samples; else the numbers.
    Raises MstlError for compressed, damaged or unsafe tars, for texts that
    hold control characters, and when no sample has both image and label.
    """
    options.refuse_others("webdataset", "modality")
    need_folder("webdataset", root, LAYOUT)
    everything, notes = visible_files(root)
    files = [(origin, path) for origin, path in everything if not _is_unfinished(origin)]
    if len(files) < len(everything):
        notes.append(f"{len(everything) - len(files)} files of unfinished shard sets (*{_UNFINISHED}) were left out")
    compressed = [origin for origin, path in files if path.name.lower().endswith(_COMPRESSED)]
    if compressed:
        raise MstlError(
            f"source webdataset in {root}",
            why=f"{len(compressed)} tars are compressed, first {compressed[0]}; images cannot be read in place there",
            remedy="Uncompress them (gunzip for .gz), or move them away",
        )
    tars = [(origin, path) for origin, path in files if path.suffix == ".tar"]
    samples: list[_Sample] = []
    lacking: dict[str, list[str]] = defaultdict(list)
    progress.start(len(tars), "listing tars")
    for origin, path in tars:
        samples += _samples(origin, path, lacking)
        progress.advance()
    notes += [f"{len(keys)} samples {why} were left out: {first_few(keys)}" for why, keys in sorted(lacking.items())]
    if not samples:
        raise MstlError(
            f"source webdataset in {root}",
            why=f"{len(tars)} tars hold no sample with both an image and a label; " + ("; ".join(notes) or "none"),
            remedy=f"Expected: {LAYOUT}",
        )
    notes += _split_notes(tars)
    classes, labels = name_classes(root, [(sample.label, sample.class_name) for sample in samples])
    carve = all(sample.split != "val" for sample in samples)
    return make_listing(
        source="webdataset",
        root=root,
        layout=LAYOUT,
        modality=options.modality or _modality(samples),
        classes=classes,
        items=[
            Item(
                key=PurePosixPath(sample.origin).name.split(".", 1)[0], split=sample.split, label=label,
                patient=sample.patient, blob=sample.blob, origin=sample.origin,
            )
            for sample, label in zip(samples, labels, strict=True)
        ],
        notes=notes,
        carve_val=carve,
    )  # fmt: skip


def _is_unfinished(origin: str) -> bool:
    return any(folder.endswith(_UNFINISHED) for folder in PurePosixPath(origin).parts[:-1])


def _samples(origin: str, path: Path, lacking: dict[str, list[str]]) -> Iterator[_Sample]:
    """The usable samples of a tar; the keys of the others go into `lacking`, by what they lack."""
    split = split_of(origin) or "train"
    with path.open("rb") as file:
        for key, members in _grouped(path).items():
            image = _image(members)
            about = _json(file.fileno(), members.get("json"))
            label = _label(file.fileno(), members.get("cls"), about)
            if image is None or label is None:
                why = "without an image" if image is None else "without a label"
                lacking[why].append(f"{origin}/{key}")
                continue
            class_name, patient = (_text(about.get(name)) for name in ("class_name", "patient"))
            for what, text in (("label", label), ("class_name", class_name), ("patient", patient)):
                refuse_unprintable(f"sample {origin}/{key}", what, text or "")
            yield _Sample(
                origin=f"{origin}/{image.name}",
                split=split,
                blob=Blob(str(path), image.size, image.name, image.offset),
                label=label,
                class_name=class_name,
                patient=patient,
                modality=_text(about.get("modality")),
            )


def _grouped(path: Path) -> dict[str, dict[str, TarMember]]:
    """Key → ending → member, by the convention of WebDataset: a name is cut at the first dot of its last part."""
    groups: dict[str, dict[str, TarMember]] = {}
    for member in tar_members(path):
        folder, _, base = member.name.removeprefix("./").rpartition("/")
        stem, _, ending = base.partition(".")
        if not stem or not ending or stem.startswith("__"):  # hidden; or about the tar, such as __meta__
            continue
        group = groups.setdefault(f"{folder}/{stem}" if folder else stem, {})
        if ending.lower() in group:
            raise MstlError(
                str(path),
                why=f"{member.name} stands in it twice, so samples cannot be told apart",
                remedy="Write the tar again with one name per sample",
            )
        group[ending.lower()] = member
    return groups


def _image(members: Mapping[str, TarMember]) -> TarMember | None:
    """The image of a sample, where it is plain which one that is."""
    endings = [ending for ending in members if f".{ending.rpartition('.')[2]}" in IMAGE_SUFFIXES]
    plain = [ending for ending in endings if "." not in ending]
    chosen = plain or endings
    return members[chosen[0]] if len(chosen) == 1 else None


def _label(descriptor: int, member: TarMember | None, about: Mapping[str, Any]) -> str | None:
    if member is not None:
        text = _bytes(descriptor, member).decode("utf-8", "replace").strip()
        if text:
            return text
    said = (_text(about.get(name)) for name in ("label", "cls", "class_name"))
    return next((text for text in said if text is not None), None)


def _json(descriptor: int, member: TarMember | None) -> Mapping[str, Any]:
    """What the JSON of a sample says; nothing where there is none, or no object."""
    if member is None:
        return {}
    try:
        about = json.loads(_bytes(descriptor, member))
    except (ValueError, RecursionError):
        return {}
    return about if isinstance(about, dict) else {}


def _text(value: object) -> str | None:
    """A text or a whole number as text; None for anything else."""
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) and value != "" else None


def _bytes(descriptor: int, member: TarMember) -> bytes:
    return os.pread(descriptor, member.size, member.offset)


def split_of(origin: str) -> str | None:
    """The split that a path names: by its nearest folder that does, else by a word of its file name."""
    *folders, name = PurePosixPath(origin.lower()).parts
    words = [*reversed(folders), *re.split(r"[^a-z]+", name)]
    return next((_SPLIT_WORDS[word] for word in words if word in _SPLIT_WORDS), None)


def _split_notes(tars: list[tuple[str, Path]]) -> list[str]:
    splits = {origin: split_of(origin) for origin, _ in tars}
    nameless = [origin for origin, split in splits.items() if split is None]
    if len(nameless) in (0, len(tars)):
        return []
    return [f"{len(nameless)} tars name no split and count as train: {first_few(nameless)}"]


def _modality(samples: list[_Sample]) -> str:
    """What all samples say they are, as those of an MSTL shard set do; else natural."""
    said: set[str | None] = {sample.modality for sample in samples}
    return next((name for name in MODALITIES if said == {name}), "natural")
