"""Cutting a listing into shards: the order of the samples and which of them a shard holds, before any is read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace

from shards.job import ShardJob
from shards.keys import unique_keys
from shards.schema import SPLITS
from shards.sources.listing import Item, Listing


def cut_jobs(listing: Listing, like: ShardJob, *, seed: int, samples_per_shard: int) -> list[ShardJob]:
    """The shards of all splits, in order; those of `like` in all that is the same for every shard.

    Ids run through train, then val, then test. They are given out here, before any image is checked: a refused image
    leaves a gap at the end of its shard, so shards can be written in any order and by several hosts, and one image
    more or less does not change the others.
    """
    return list(_cut(listing, like, seed, samples_per_shard))


def _cut(listing: Listing, like: ShardJob, seed: int, samples_per_shard: int) -> Iterator[ShardJob]:
    entries = list(zip(unique_keys(listing.items), listing.items, strict=True))
    first_id = 0
    for split in SPLITS:
        part = [entry for entry in entries if entry[1].split == split]
        part.sort(key=lambda entry: _shuffle_rank(seed, entry))
        for number, start in enumerate(range(0, len(part), samples_per_shard)):
            chosen = tuple(part[start : start + samples_per_shard])
            names = {item.label: listing.classes[item.label] for _, item in chosen}
            yield replace(like, split=split, number=number, first_id=first_id, entries=chosen, classes=names)
            first_id += len(chosen)


def _shuffle_rank(seed: int, entry: tuple[str, Item]) -> bytes:
    # Sorting by a hash is a uniform shuffle that depends on no generator, on no order of files, and in which one
    # image more or less leaves the order of the others alone.
    return hashlib.sha256(f"{seed}/order/{entry[0]}".encode()).digest()
