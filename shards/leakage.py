"""The leakage gate's three checks: patient, content and likeness, for every two splits that must share nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path, PurePosixPath

import numpy as np

from shards.errors import MstlError
from shards.likeness import LEAST_CORRELATION, METHOD, correlation, find_candidates
from shards.progress import QUIET, Progress
from shards.schema import SPLITS, Manifest, load_manifest
from shards.split_images import Image, ShardSet, SplitImages, read_split, read_thumbnails
from shards.verdicts import Check, Outcome, Verdict


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """An image of split b and an image of split a that it shares something with; for likeness the nearest.

    bits and correlation say how alike they are; None in the other checks.
    """

    a: Image
    b: Image
    bits: int | None = None
    correlation: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """A verdict, with the folders of both sets and one pair for each affected image of split b."""

    verdict: Verdict
    folders: tuple[Path, Path]
    pairs: tuple[Pair, ...]


def open_sets(folders: Sequence[Path], called: Sequence[str] | None = None) -> list[ShardSet]:
    """The shard sets in these folders, named by the shortest ends of their paths that tell them apart.

    called: the paths or URLs the user knows them by, where those are not the folders.
    Raises MstlError for one that is missing or unreadable, and for the same content named twice.
    """
    places = [PurePosixPath(name).parts for name in called or [str(folder.resolve()) for folder in folders]]
    manifests = [load_manifest(folder) for folder in folders]
    digests = [manifest.digest() for manifest in manifests]
    for (one, first), (other, second) in combinations(zip(called or folders, digests, strict=True), 2):
        if first == second:
            raise MstlError(f"{one} and {other}", why="they are the same shard set", remedy="Name it once")
    depth = 1
    while len({place[-depth:] for place in places}) < len(places):
        depth += 1
    return [
        ShardSet(name="/".join(place[-depth:]), folder=folder, manifest=manifest, digest=digest)
        for place, folder, manifest, digest in zip(places, folders, manifests, digests, strict=True)
    ]


def forbidden_pairs(sets: Sequence[ShardSet]) -> list[tuple[tuple[ShardSet, str], tuple[ShardSet, str]]]:
    """Every two splits that must share nothing, the one that is measured on last.

    Within a set train and val, train and test, val and test; across sets the train split of one and the val and test
    splits of the other. Two train splits may share what they like.
    """
    within = [((s, a), (s, b)) for s in sets for a, b in combinations(_splits(s.manifest), 2)]
    across = [
        ((one, "train"), (other, split))
        for one in sets
        for other in sets
        for split in _splits(other.manifest)
        if one is not other and split != "train" and "train" in _splits(one.manifest)
    ]
    return within + across


def compare(
    sets: Sequence[ShardSet], *, same_patients: bool = False, workers: int = 1, progress: Progress = QUIET
) -> list[Finding]:
    """Check every two splits that must share nothing, in three ways each.

    same_patients: equal patient ids in any two sets name the same people. Raises MstlError for damaged sets.
    """
    pairs = forbidden_pairs(sets)
    needed = {(s.name, split): (s, split) for pair in pairs for s, split in pair}
    read = {key: read_split(s, split, workers, progress) for key, (s, split) in needed.items()}
    progress.start(sum(len(read[s.name, split].images) for _, (s, split) in pairs), "comparing splits")
    findings = []
    for (a_set, a_split), (b_set, b_split) in pairs:
        a, b = read[a_set.name, a_split], read[b_set.name, b_split]
        findings += [_by_patient(a, b, same_patients), _by_content(a, b), _by_likeness(a, b, workers, progress)]
    return findings


def _splits(manifest: Manifest) -> list[str]:
    return [split for split in SPLITS if manifest.splits.get(split) and manifest.samples(split)]


def _finding(
    check: Check,
    a: SplitImages,
    b: SplitImages,
    pairs: Sequence[Pair],
    unknown: int = 0,
    why: str = "",
    method: str = "",
) -> Finding:
    outcome: Outcome = "found" if pairs else "unknown" if unknown else "none"
    verdict = Verdict(
        check=check, a=a.part, b=b.part, outcome=outcome, affected=len(pairs), unknown=unknown,
        why=why if unknown else "", method=method,
    )  # fmt: skip
    return Finding(verdict=verdict, folders=(a.folder, b.folder), pairs=tuple(pairs))


def _by_patient(a: SplitImages, b: SplitImages, same_patients: bool) -> Finding:
    if a.people != b.people and not same_patients:
        everybody = a.part.images + b.part.images
        which = "unrelated sets" if a.part.source == b.part.source else "different sources"
        return _finding("patient", a, b, [], everybody, f"ids of {which}")
    first: dict[str, Image] = {}
    for image in a.images:
        if image.patient is not None:
            first.setdefault(image.patient, image)
    pairs = [
        Pair(a=first[image.patient], b=image)
        for image in b.images
        if image.patient is not None and image.patient in first
    ]
    unknown = sum(image.patient is None for image in a.images + b.images)
    return _finding("patient", a, b, pairs, unknown, "no patient id")


def _by_content(a: SplitImages, b: SplitImages) -> Finding:
    first: dict[bytes, Image] = {}
    for digest, image in zip(a.sha256, a.images, strict=True):
        first.setdefault(digest, image)
    pairs = [
        Pair(a=first[digest], b=image) for digest, image in zip(b.sha256, b.images, strict=True) if digest in first
    ]
    return _finding("content", a, b, pairs)


def _by_likeness(a: SplitImages, b: SplitImages, workers: int, progress: Progress) -> Finding:
    a_places, b_places = np.flatnonzero(a.structured), np.flatnonzero(b.structured)
    near = find_candidates(a.bits[a_places], b.bits[b_places], progress)
    candidates = list(zip(a_places[near.a].tolist(), b_places[near.b].tolist(), near.bits.tolist(), strict=True))
    a_small = read_thumbnails(a, {place for place, _, _ in candidates}, workers)
    b_small = read_thumbnails(b, {place for _, place, _ in candidates}, workers)
    pairs: dict[int, Pair] = {}
    for a_place, b_place, bits in candidates:
        if b_place in pairs:
            continue
        alike = correlation(a_small[a_place], b_small[b_place])
        if alike >= LEAST_CORRELATION:
            pairs[b_place] = Pair(a=a.images[a_place], b=b.images[b_place], bits=bits, correlation=alike)
    blank = a.part.images + b.part.images - len(a_places) - len(b_places)
    unsettled = sum(place not in pairs for place in b_places[near.cut].tolist())
    whys = [why for count, why in ((blank, "blank or not decodable"), (unsettled, "too many nearly alike")) if count]
    return _finding("likeness", a, b, list(pairs.values()), blank + unsettled, " or ".join(whys), METHOD)
