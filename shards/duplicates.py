"""Images of a shard set with the same bytes, found in little memory: about 90 bytes an image at most."""

from __future__ import annotations

from array import array
from dataclasses import dataclass

import numpy as np

_DIGEST_BYTES = 16  # of a SHA-256: enough to tell a billion images apart


@dataclass(frozen=True, kw_only=True, slots=True)
class Duplicates:
    """How often bytes stand in a set again.

    repeated: images that an earlier image equals. within: split → images that an earlier image of the split equals.
    across: different images (by content) that stand in more than one split. contradicting: different images that
    stand in more than one class. groups: places (counted in the order of `add`) of equal images, one of each split
    and class first; those across splits come first, then the contradicting ones.
    """

    repeated: int
    within: dict[str, int]
    across: int
    contradicting: int
    groups: tuple[tuple[int, ...], ...]


class DuplicateFinder:
    """Takes the images one by one, then tells which are equal."""

    def __init__(self) -> None:
        self._digests = bytearray()
        self._labels, self._splits = array("q"), array("b")
        self._names: list[str] = []

    def add(self, sha256: str, split: str, label: int) -> None:
        """Remember an image; sha256 in hexadecimal digits."""
        if split not in self._names:
            self._names.append(split)
        self._digests += bytes.fromhex(sha256)[:_DIGEST_BYTES]
        self._splits.append(self._names.index(split))
        self._labels.append(label)

    def result(self, most_groups: int) -> Duplicates:
        """All counts, and so many groups at most."""
        words = np.frombuffer(self._digests, dtype=np.uint64).reshape(-1, 2)
        order = np.lexsort((words[:, 1], words[:, 0]))  # stable: within a group by place
        ranked = words[order]
        starts = np.flatnonzero(np.r_[True, np.any(ranked[1:] != ranked[:-1], axis=1)]) if len(order) else order
        ends = np.r_[starts[1:], len(order)]
        within = dict.fromkeys(self._names, 0)
        ranked_groups: list[tuple[bool, bool, tuple[int, ...]]] = []
        for start, end in zip(starts[ends - starts > 1], ends[ends - starts > 1], strict=True):
            places = [int(place) for place in order[start:end]]
            splits = [self._splits[place] for place in places]
            for split in set(splits):
                within[self._names[split]] += splits.count(split) - 1
            labels = {self._labels[place] for place in places}
            ranked_groups.append((len(set(splits)) == 1, len(labels) == 1, self._telling_first(places)))
        ranked_groups.sort()
        return Duplicates(
            repeated=len(order) - len(starts),
            within=within,
            across=sum(not same_split for same_split, _, _ in ranked_groups),
            contradicting=sum(not same_class for _, same_class, _ in ranked_groups),
            groups=tuple(places for _, _, places in ranked_groups[:most_groups]),
        )

    def _telling_first(self, places: list[int]) -> tuple[int, ...]:
        """The first place of each split and class, then the others."""
        firsts: dict[tuple[int, int], int] = {}
        for place in places:
            firsts.setdefault((self._splits[place], self._labels[place]), place)
        told = set(firsts.values())
        return (*sorted(told), *(place for place in places if place not in told))
