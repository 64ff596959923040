"""What is in a shard set, counted from its manifest and the small JSON parts of its samples; no image is read."""

from __future__ import annotations

import json
import re
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from shards.duplicates import DuplicateFinder
from shards.errors import MstlError
from shards.index import read_index
from shards.progress import QUIET, Progress
from shards.read import iter_records
from shards.schema import QUARANTINE_NAME, Manifest, Shard, load_manifest
from shards.verdicts import read_verdicts

MOST_GROUPS, MOST_KEYS = 10, 5  # of equal images that are named, and of each that are
_EVERY = 1000  # records between two steps of the progress


@dataclass(frozen=True, slots=True)
class Spread:
    """Least, median (the lower one of two) and most of some numbers."""

    least: int
    median: int
    most: int


@dataclass(frozen=True, slots=True)
class Equal:
    """Images with the same bytes: how many, and the keys ("train/KEY") of some, one of each split and class first."""

    images: int
    keys: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitFacts:
    """A split: sizes in bytes; width and height in pixels as shown, modes and formats of the source images.

    class_counts: samples per class, in the order of the classes. as_they_came: images stored without a change.
    patients: different ones that are known. patient_unknown: images without one.
    """

    samples: int
    shards: int
    bytes: int
    shard_bytes: Spread
    shard_samples: Spread
    class_counts: tuple[int, ...]
    width: Spread
    height: Spread
    modes: Mapping[str, int]
    formats: Mapping[str, int]
    as_they_came: int
    patients: int
    patient_unknown: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SetFacts:
    """A shard set, or some of its splits.

    straddling: known patients in more than one of the splits. reasons: why images were refused, most frequent first,
    numbers in them left out. duplicates: split → images that an earlier image of the split equals, byte for byte;
    duplicates_across: different images in more than one split; contradicting: different images in more than one class;
    equal_images: some of them, across splits first. leakage: name → verdict, empty when never checked.
    """

    folder: str
    source: str
    modality: str
    classes: tuple[str, ...]
    titles: Mapping[str, str]
    splits: Mapping[str, SplitFacts]
    straddling: int
    refused: int
    reasons: tuple[tuple[str, int], ...]
    duplicates: Mapping[str, int]
    duplicates_across: int
    contradicting: int
    equal_images: tuple[Equal, ...]
    options: Mapping[str, Any]
    seed: int
    tool_version: str
    digest: str
    leakage: Mapping[str, str]


def inspect_set(folder: Path, split: str | None = None, progress: Progress = QUIET) -> SetFacts:
    """Count what is in a shard set, or in one split of it.

    Memory: about 90 bytes an image, and the patient ids. Raises MstlError when there is no set, no such split, or a
    file of it cannot be read.
    """
    manifest = load_manifest(folder)
    splits = list(manifest.splits) if split is None else [split]
    shards = {name: manifest.shards(name) for name in splits}
    progress.start(sum(manifest.samples(name) for name in splits), "reading records")
    equal, patients = DuplicateFinder(), dict[str, int]()
    facts = {
        name: _split_facts(folder, manifest, name, number, equal, patients, progress)
        for number, name in enumerate(splits)
    }
    found, digest = equal.result(MOST_GROUPS), manifest.digest()
    return SetFacts(
        folder=str(folder),
        source=manifest.source,
        modality=manifest.modality,
        classes=manifest.classes,
        titles=manifest.titles,
        splits=facts,
        straddling=sum(splits.bit_count() > 1 for splits in patients.values()),
        refused=manifest.refused,
        reasons=_reasons(folder / QUARANTINE_NAME),
        duplicates=found.within,
        duplicates_across=found.across,
        contradicting=found.contradicting,
        equal_images=tuple(Equal(len(places), _keys(folder, shards, places[:MOST_KEYS])) for places in found.groups),
        options=manifest.options,
        seed=manifest.seed,
        tool_version=manifest.tool_version,
        digest=digest,
        leakage={verdict.name: verdict.text() for verdict in read_verdicts(folder, digest)},
    )


def _split_facts(
    folder: Path,
    manifest: Manifest,
    split: str,
    number: int,
    equal: DuplicateFinder,
    patients: dict[str, int],
    progress: Progress,
) -> SplitFacts:
    """Read a split; patients: each known one with a bit for every split (by number) that it stands in."""
    widths, heights, modes, formats = Counter[int](), Counter[int](), Counter[str](), Counter[str]()
    as_they_came = unknown = 0
    shards = manifest.shards(split)
    for place, record in enumerate(iter_records(folder, split), start=1):
        equal.add(record.sha256, split, record.label)
        widths[record.width] += 1
        heights[record.height] += 1
        modes[record.mode] += 1
        formats[record.format] += 1
        as_they_came += record.sha256 == record.stored_sha256
        if record.patient is None:
            unknown += 1
        else:
            patients[record.patient] = patients.get(record.patient, 0) | 1 << number
        if place % _EVERY == 0:
            progress.advance(_EVERY)
    samples = manifest.samples(split)
    progress.advance(samples % _EVERY)
    return SplitFacts(
        samples=samples,
        shards=len(shards),
        bytes=sum(shard.bytes for shard in shards),
        shard_bytes=_spread(Counter(shard.bytes for shard in shards)),
        shard_samples=_spread(Counter(shard.samples for shard in shards)),
        class_counts=manifest.class_counts[split],
        width=_spread(widths),
        height=_spread(heights),
        modes=dict(modes.most_common()),
        formats=dict(formats.most_common()),
        as_they_came=as_they_came,
        patients=sum(splits >> number & 1 for splits in patients.values()),
        patient_unknown=unknown,
    )  # fmt: skip


def _spread(counts: Counter[int]) -> Spread:
    values = sorted(counts)
    ranks = list(accumulate(counts[value] for value in values))
    return Spread(values[0], values[bisect_left(ranks, (ranks[-1] + 1) // 2)], values[-1])


def _keys(folder: Path, shards: Mapping[str, Sequence[Shard]], places: Sequence[int]) -> tuple[str, ...]:
    """The keys of samples that are counted through all these shards."""
    ends = list(accumulate(shard.samples for part in shards.values() for shard in part))
    named = [(split, shard) for split, part in shards.items() for shard in part]
    keys = []
    for place in places:
        at = bisect_right(ends, place)
        split, shard = named[at]
        first = ends[at] - shard.samples
        name = read_index(folder / shard.index)[place - first][0].name
        keys.append(f"{split}/{name.rpartition('.')[0]}")
    return tuple(keys)


def _reasons(path: Path) -> tuple[tuple[str, int], ...]:
    if not path.is_file():
        return ()
    counts: Counter[str] = Counter()
    try:
        for line in path.read_text().splitlines():
            counts[re.sub(r"\d+", "#", json.loads(line)["reason"])] += 1
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise MstlError(
            str(path), why=f"it cannot be read ({error!r})", remedy="Convert the data again with mstl shard --force"
        ) from error
    return tuple(counts.most_common())
