"""Reading single samples of a shard set through its indexes, for reports and predictions (training uses DALI)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

from shards.errors import MstlError
from shards.index import Component, IndexedSample, read_index
from shards.schema import SPLITS, Shard, load_manifest

IMAGE_EXTENSIONS = ("jpg", "png")


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """What a shard set knows of a sample.

    sha256, width, height (pixels as shown), Pillow's mode and format are those of the source image, stored_sha256 that
    of the stored one: the same where it is stored as it came. The source image of a DICOM frame or NIfTI slice is the
    PNG made of it, so there sha256 says nothing of the file. source names the data set, origin the file in it; patient
    is None where unknown.
    """

    sample_id: int
    key: str
    split: str
    label: int
    class_name: str
    patient: str | None
    source: str
    origin: str
    sha256: str
    stored_sha256: str
    width: int
    height: int
    mode: str
    format: str


_FROM_JSON = tuple(field.name for field in fields(Record) if field.name != "sample_id")


def read_records(folder: Path, split: str) -> list[Record]:
    """The records of a split, by sample id; reads only the small JSON files. Raises MstlError for damaged shards."""
    return list(iter_records(folder, split))


def iter_records(folder: Path, split: str) -> Iterator[Record]:
    """What `read_records` returns, with the index of one shard in memory at a time."""
    for shard in load_manifest(folder).shards(split):
        yield from _shard_records(folder / shard.path, shard, _samples(folder, shard))


def read_image(folder: Path, sample_id: int) -> bytes:
    """The stored bytes of one image, the original ones unless the set was built with --resize.

    Raises MstlError when there is no such sample.
    """
    manifest = load_manifest(folder)
    for shard in (shard for split in SPLITS for shard in manifest.splits.get(split, ())):
        if shard.first_id <= sample_id < shard.first_id + shard.samples:
            sample = _samples(folder, shard)[sample_id - shard.first_id]
            component = next((c for c in sample if c.ext in IMAGE_EXTENSIONS), None)
            if component is None:
                raise _damaged(folder / shard.path, f"sample {sample_id} has no image")
            return next(_read(folder / shard.path, [component]))
    raise MstlError(
        f"sample {sample_id} of {folder}", why="there is no such sample id", remedy="See dataset.json for the ids"
    )


def iter_images(folder: Path, split: str) -> Iterator[tuple[Record, bytes]]:
    """Records and stored image bytes of a split, by sample id; each tar is read once. Raises MstlError for damage."""
    for shard in load_manifest(folder).shards(split):
        path, samples = folder / shard.path, _samples(folder, shard)
        images = [next((c for c in sample if c.ext in IMAGE_EXTENSIONS), None) for sample in samples]
        there = [component for component in images if component is not None]
        if len(there) != shard.samples:
            raise _damaged(path, f"{len(there)} of {shard.samples} samples have an image")
        yield from zip(_shard_records(path, shard, samples), _read(path, there), strict=True)


def _samples(folder: Path, shard: Shard) -> list[IndexedSample]:
    samples = read_index(folder / shard.index)
    if len(samples) != shard.samples:
        raise _damaged(folder / shard.index, f"it lists {len(samples)} samples, the manifest {shard.samples}")
    return samples


def _shard_records(path: Path, shard: Shard, samples: list[IndexedSample]) -> Iterator[Record]:
    about = [component for sample in samples for component in sample if component.ext == "json"]
    if len(about) != shard.samples:
        raise _damaged(path, f"{len(about)} of {shard.samples} samples have a json")
    for sample_id, data in enumerate(_read(path, about), start=shard.first_id):
        try:
            body = json.loads(data)
            yield Record(sample_id=sample_id, **{name: body[name] for name in _FROM_JSON})
        except (ValueError, KeyError, TypeError) as error:
            raise _damaged(path, f"the json of sample {sample_id} cannot be read ({error})") from error


def _read(path: Path, components: list[Component]) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            for component in components:
                file.seek(component.offset)
                data = file.read(component.size)
                if len(data) != component.size:
                    raise _damaged(path, f"it ends before {component.name}")
                yield data
    except OSError as error:
        raise _damaged(path, f"it cannot be read ({error.strerror})") from error


def _damaged(path: Path, why: str) -> MstlError:
    return MstlError(str(path), why=why, remedy="See what is damaged with mstl verify, and bring the file back")
