"""What the leakage checks remember of a split: its images' patients, digests and hashes, some 300 bytes each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from shards.likeness import WORDS, Bits, Thumbnail, hash_image, thumbnail
from shards.parallel import ordered_map
from shards.progress import Progress
from shards.read import iter_images
from shards.schema import Manifest
from shards.verdicts import Part

Result = TypeVar("Result")
Named = tuple[str, bytes]  # a key and the bytes of its image

_PUBLISHED = ("imagenet", "covidx", "covid19-ct")  # sources that are one data set, whoever has converted it
_CHUNK = 16  # images a job
_FEW = 500  # images that are done before worker processes have started


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardSet:
    """A shard set to compare: the name it goes by, its folder, manifest and the manifest's digest."""

    name: str
    folder: Path
    manifest: Manifest
    digest: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Image:
    """An image of a pair: sample id and key in its split."""

    sample_id: int
    key: str
    patient: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitImages:
    """What is remembered of a split's images, by place.

    people: the name space of the patient ids; in two sets with the same one equal ids are the same person.
    sha256: of the source bytes. bits: uint64 [N, WORDS]. structured: bool [N], False where there is no hash: of a blank
    image, or one that cannot be decoded.
    """

    part: Part
    people: str
    folder: Path
    images: list[Image]
    sha256: list[bytes]
    bits: Bits
    structured: NDArray[np.bool_]


def read_thumbnails(split: SplitImages, places: set[int], workers: int) -> dict[int, Thumbnail]:
    """The thumbnails of the images at some places; the set is read once more, since of most images nobody asks it."""
    if not places:
        return {}
    wanted = (
        (record.key, data)
        for place, (record, data) in enumerate(iter_images(split.folder, split.part.split))
        if place in places
    )
    thumbnails = _map_images(_thumbnails, wanted, 1 if len(places) < _FEW else workers)
    return dict(zip(sorted(places), thumbnails, strict=True))


def read_split(shard_set: ShardSet, split: str, workers: int, progress: Progress) -> SplitImages:
    """Read and hash every image of a split; raises MstlError for damaged shards."""
    count = shard_set.manifest.samples(split)
    images: list[Image] = []
    sha256: list[bytes] = []

    def stored() -> Iterator[Named]:
        for record, data in iter_images(shard_set.folder, split):
            images.append(Image(sample_id=record.sample_id, key=record.key, patient=record.patient))
            sha256.append(bytes.fromhex(record.sha256))
            yield record.key, data

    progress.start(count, f"hashing {shard_set.name}:{split}")
    bits = np.zeros((count, WORDS), dtype=np.uint64)
    structured = np.zeros(count, dtype=np.bool_)
    for place, found in enumerate(_map_images(_hashes, stored(), workers)):
        if found is not None:
            bits[place], structured[place] = found, True
        progress.advance()
    part = Part(
        name=shard_set.name, source=shard_set.manifest.source, digest=shard_set.digest, split=split, images=count
    )
    return SplitImages(
        part=part,
        people=_people(shard_set),
        folder=shard_set.folder,
        images=images,
        sha256=sha256,
        bits=bits,
        structured=structured,
    )


def _people(shard_set: ShardSet) -> str:
    """The published data set or, where a source is anybody's data, the very listing that the set was made of."""
    source = shard_set.manifest.source
    if source in _PUBLISHED:
        return source
    return f"{source} {shard_set.manifest.options.get('listing_digest') or shard_set.digest}"


def _map_images(
    function: Callable[[list[Named]], list[Result]], images: Iterator[Named], workers: int
) -> Iterator[Result]:
    chunks = iter(lambda: list(islice(images, _CHUNK)), [])
    with closing(ordered_map(function, chunks, workers=workers)) as results:
        for result in results:
            yield from result


def _hashes(images: list[Named]) -> list[Bits | None]:
    return [_hash(data) for _, data in images]


def _hash(data: bytes) -> Bits | None:
    """None for an image that cannot be decoded (a set may have been built by headers alone), as for a blank one."""
    try:
        return hash_image(data)
    except (OSError, ValueError, SyntaxError):
        return None


def _thumbnails(images: list[Named]) -> list[Thumbnail]:
    return [thumbnail(data) for _, data in images]
