"""The embedded sample: three synthetic sources in the layouts of the real ones, for demos and tests."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.errors import MstlError
from shards.progress import QUIET, Progress
from shards.sample.layouts import Advance, write_covid19_ct, write_covidx, write_imagenet

MARK_NAME = "sample.json"
VERSION = 1
"""Raised when the drawing changes, so that an older sample is not taken for a newer one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleSize:
    """Images per class in each split of each source; of ImageNet 1 to 6 classes, of the others all."""

    imagenet_classes: int = 6
    imagenet_train: int = 100
    imagenet_val: int = 25
    covidx_train: int = 80
    covidx_test: int = 20
    ct_train: int = 100
    ct_val: int = 30
    ct_test: int = 60


DEFAULT_SIZE = SampleSize()


@dataclass(frozen=True, slots=True)
class _Source:
    """One source to write: its folder's name, what decides its content, and how to write it."""

    name: str
    size: dict[str, int]
    images: int
    write: Callable[[Path, int, Advance], None]


def _sources(size: SampleSize) -> tuple[_Source, ...]:
    classes, natural = size.imagenet_classes, (size.imagenet_train, size.imagenet_val)
    cxr, ct = (size.covidx_train, size.covidx_test), (size.ct_train, size.ct_val, size.ct_test)
    return (
        _Source(
            "imagenet",
            {"classes": classes, "train": natural[0], "val": natural[1]},
            classes * sum(natural),
            lambda folder, seed, advance: write_imagenet(folder, seed, classes, natural, advance),
        ),
        _Source(
            "covidx",
            {"train": cxr[0], "test": cxr[1]},
            3 * sum(cxr),
            lambda folder, seed, advance: write_covidx(folder, seed, cxr, advance),
        ),
        _Source(
            "covid19-ct",
            {"train": ct[0], "val": ct[1], "test": ct[2]},
            2 * sum(ct),
            lambda folder, seed, advance: write_covid19_ct(folder, seed, ct, advance),
        ),
    )


def write_samples(out: Path, *, seed: int = 0, size: SampleSize = DEFAULT_SIZE, progress: Progress = QUIET) -> None:
    """Write `out/imagenet`, `out/covidx` and `out/covid19-ct`; sources already there with this seed and size are kept.

    Equal seeds and sizes give equal bytes, and a larger size holds the images of a smaller one. Each source appears
    whole or not at all. Raises MstlError before drawing anything when a folder holds something else, which is never
    touched, and for a size or seed out of range.
    """
    _check(seed, size)
    file = next((path for path in (out, *out.parents) if path.is_file()), None)
    if file is not None:
        raise MstlError(f"sample folder {out}", why=f"{file} is a file", remedy="Choose a folder, or a new name")
    waiting = [source for source in _sources(size) if not _is_there(out / source.name, _mark(source, seed))]
    for source in waiting:
        progress.start(source.images, f"drawing {source.name}")
        building = out / f".{source.name}.building"
        try:
            shutil.rmtree(building, ignore_errors=True)
            building.mkdir(parents=True)
            source.write(building, seed, progress.advance)
            (building / MARK_NAME).write_text(json.dumps(_mark(source, seed), indent=1) + "\n")
            building.rename(out / source.name)
        except OSError as error:
            raise MstlError(
                f"sample {out / source.name}",
                why=f"it cannot be written ({error.strerror or error})",
                remedy="Mend that or choose another folder, then run the same command again",
            ) from error


def _check(seed: int, size: SampleSize) -> None:
    """Refuse sizes and seeds that cannot be drawn."""
    if seed < 0:
        raise MstlError(f"sample seed {seed}", why="it is negative", remedy="Choose a seed of 0 or more")
    if not 1 <= size.imagenet_classes <= 6:
        raise MstlError(
            f"{size.imagenet_classes} sample classes",
            why="the sample draws six kinds of picture",
            remedy="Choose 1 to 6",
        )
    for source in _sources(size):
        for name, count in source.size.items():
            # Serial numbers of patients leave room for a thousand in each split.
            if not 1 <= count <= 1500:
                raise MstlError(
                    f"sample size {source.name} {name} {count}",
                    why="each split holds at least one image of every class and at most 1500",
                    remedy="Choose a number from 1 to 1500",
                )


def _mark(source: _Source, seed: int) -> dict[str, Any]:
    """What `sample.json` says of a source; two equal marks mean equal bytes."""
    return {
        "sample": "mstl",
        "version": VERSION,
        "source": source.name,
        "seed": seed,
        "images_per_class": source.size,
        "note": "Synthetic images for trying the software: they show no patient and prove nothing about medicine.",
    }


def _is_there(folder: Path, mark: dict[str, Any]) -> bool:
    """Whether the finished source stands there; raises MstlError when the folder holds anything else."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    found = _read_mark(folder / MARK_NAME)
    if found == mark:
        return True
    if found.get("sample") == "mstl":
        held = f"seed {found.get('seed')}, version {found.get('version')}, images {found.get('images_per_class')}"
        why = f"it holds another sample ({held})"
        remedy = "Remove that folder to draw it anew, or choose another folder for this sample"
    else:
        why, remedy = (
            "it exists and is not a sample of this program",
            "Choose another folder; this one is left as it is",
        )
    raise MstlError(f"sample folder {folder}", why=why, remedy=remedy)


def _read_mark(path: Path) -> dict[str, Any]:
    """The mark in a file, empty when there is none to read."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
