"""Building a shard set: check every image, shuffle, write tars with their indexes, publish the whole at once."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from shards import building
from shards.check import Refused, check_all
from shards.errors import MstlError
from shards.files import write_atomic
from shards.job import RECORDS_NAME, Entry, ShardJob, write_shard
from shards.keys import unique_keys
from shards.parallel import ordered_map
from shards.progress import QUIET, Progress
from shards.schema import MANIFEST_NAME, MAX_SEED, SPLITS, Manifest, Shard, load_manifest
from shards.sources.carve import carve_validation
from shards.sources.listing import Listing
from shards.verify import check_files

QUARANTINE_NAME = "quarantine.jsonl"


@dataclass(frozen=True, kw_only=True, slots=True)
class WriteOptions:
    """How to build a shard set.

    resize: bring shorter sides above this many pixels down to it, or None to keep the original bytes. quality: of
    re-encoded JPEG. val_fraction: part of the training patients that becomes val where the source has no val.
    max_bad: fraction of images that may be refused. workers: processes; above 1 they are spawned.
    Raises MstlError for values out of range.
    """

    seed: int = 0
    samples_per_shard: int = 1000
    resize: int | None = None
    quality: int = 90
    val_fraction: float = 0.1
    max_bad: float = 0.01
    workers: int = 1

    def __post_init__(self) -> None:
        for name, good, allowed in (
            ("seed", 0 <= self.seed <= MAX_SEED, f"0 to {MAX_SEED}"),
            ("samples-per-shard", self.samples_per_shard >= 1, "at least 1"),
            ("resize", self.resize is None or self.resize >= 16, "at least 16 pixels"),
            ("quality", 1 <= self.quality <= 100, "1 to 100"),
            ("val-fraction", 0 <= self.val_fraction < 1, "at least 0 and below 1"),
            ("max-bad", 0 <= self.max_bad <= 1, "0 to 1"),
            ("workers", self.workers >= 1, "at least 1"),
        ):
            if not good:
                raise MstlError(f"option {name}", why=f"it must be {allowed}", remedy=f"Give --{name} such a value")

    def recorded(self, listing: Listing) -> dict[str, Any]:
        """What the manifest keeps: all that, with the seed, decides the bytes of the set."""
        return {
            "listing_digest": listing.digest(),
            "samples_per_shard": self.samples_per_shard,
            "resize": self.resize,
            "quality": self.quality,
            "val_fraction": self.val_fraction,
        }


def find_built(listing: Listing, out: Path, options: WriteOptions) -> Manifest | None:
    """The manifest of a finished set at `out` with this listing and these options; None when nothing is there.

    Raises MstlError when something else is there, and when a file of the set is missing or cut off.
    """
    return _find_built(out, {**options.recorded(listing), "seed": options.seed})


def _find_built(out: Path, asked: dict[str, Any]) -> Manifest | None:
    if not building.occupied(out):
        return None
    manifest = load_manifest(out)
    built = {**manifest.options, "seed": manifest.seed}
    changed = [f"{name} {built.get(name)}, not {asked[name]}" for name in asked if built.get(name) != asked[name]]
    if changed:
        same_source = built.get("listing_digest") == asked["listing_digest"]
        why = f"it was built with {', '.join(changed)}" if same_source else "it was built from other source files"
        raise MstlError(f"shard set {out}", why=why, remedy="Replace it with --force, or choose another --out")
    check_files(out, manifest)
    building.tidy(out)
    return manifest


def write_shards(
    listing: Listing, out: Path, options: WriteOptions, progress: Progress = QUIET, *, force: bool = False
) -> Manifest:
    """Build the shard set of a listing at `out` and return its manifest.

    The build happens in `<out>.building` and is renamed when whole; run again after an interruption it goes on where
    it stopped, with the same bytes in the end. A set that is already there with the same listing and options is
    returned as it is (`find_built` tells beforehand), another one is refused. With `force` everything is built anew,
    and what is there is replaced once the new set is complete. Order within a split, and so every sample id, follows
    from the seed and the keys alone.
    Raises MstlError for too many bad images, a source that changes underneath, and an unusable `out`.
    """
    out = out.resolve()
    asked = {**options.recorded(listing), "seed": options.seed}
    built = None if force else _find_built(out, asked)
    if built is not None:
        return built
    with building.workspace(out, asked, fresh=force) as folder:
        built = None if force else _find_built(out, asked)
        if built is not None:  # another process has published it since
            shutil.rmtree(folder)
            return built
        if not (folder / MANIFEST_NAME).exists():
            carved = carve_validation(listing, fraction=options.val_fraction, seed=options.seed)
            _build(carved, folder, options, asked, progress)
        manifest = load_manifest(folder)
        building.publish(folder, out)
    return manifest


def _build(listing: Listing, folder: Path, options: WriteOptions, asked: dict[str, Any], progress: Progress) -> None:
    keys = unique_keys(listing.items)
    checked = check_all(
        [item.blob for item in listing.items],
        log=folder / building.CHECKS_NAME,
        max_bad=options.max_bad,
        workers=options.workers,
        progress=progress,
    )
    entries: list[Entry] = []
    refused: list[dict[str, str]] = []
    for item, key, result in zip(listing.items, keys, checked, strict=True):
        if isinstance(result, Refused):
            refused.append({"key": key, "origin": item.origin, "reason": result.reason})
        else:
            entries.append(Entry(item=item, key=key, checked=result))
    if not any(entry.item.split == "train" for entry in entries):
        raise MstlError(
            f"source {listing.source}",
            why=f"no training image is left after {len(refused)} were refused, first {refused[0]['origin']}: "
            f"{refused[0]['reason']}",
            remedy="Mend the images",
        )
    jobs = _plan_jobs(listing, folder, options, entries)
    shards = _write_all(jobs, options.workers, progress)
    refused.sort(key=lambda line: line["key"])
    quarantine = "".join(json.dumps(line) + "\n" for line in refused)
    write_atomic(folder / QUARANTINE_NAME, quarantine.encode())
    Manifest(
        source=listing.source,
        modality=listing.modality,
        classes=listing.classes,
        splits=shards,
        options={name: value for name, value in asked.items() if name != "seed"},
        seed=options.seed,
        tool_version=_tool_version(),
        refused=len(refused),
    ).save(folder)


def _plan_jobs(listing: Listing, folder: Path, options: WriteOptions, entries: Sequence[Entry]) -> list[ShardJob]:
    """The shards of all splits, in order; sample ids run through train, then val, then test."""
    jobs: list[ShardJob] = []
    first_id = 0
    for split in SPLITS:
        part = [entry for entry in entries if entry.item.split == split]
        part.sort(key=lambda entry: _shuffle_rank(options.seed, entry))
        for number, start in enumerate(range(0, len(part), options.samples_per_shard)):
            chosen = tuple(part[start : start + options.samples_per_shard])
            jobs.append(
                ShardJob(
                    folder=str(folder),
                    split=split,
                    number=number,
                    first_id=first_id,
                    entries=chosen,
                    source=listing.source,
                    modality=listing.modality,
                    classes=listing.classes,
                    resize=options.resize,
                    quality=options.quality,
                )
            )
            first_id += len(chosen)
    return jobs


def _shuffle_rank(seed: int, entry: Entry) -> bytes:
    # Sorting by a hash is a uniform shuffle that depends on no generator, on no order of files, and in which one
    # refused image leaves the order of the others alone.
    return hashlib.sha256(f"{seed}/order/{entry.key}".encode()).digest()


def _write_all(jobs: Sequence[ShardJob], workers: int, progress: Progress) -> dict[str, tuple[Shard, ...]]:
    for job in jobs:
        (Path(job.folder) / job.split).mkdir(exist_ok=True)
        (Path(job.folder) / RECORDS_NAME).mkdir(exist_ok=True)
    progress.start(sum(len(job.entries) for job in jobs), "writing shards")
    written: dict[str, list[Shard]] = {}
    with closing(ordered_map(write_shard, jobs, workers=workers)) as shards:
        for job, shard in zip(jobs, shards, strict=True):
            written.setdefault(job.split, []).append(shard)
            progress.advance(shard.samples)
    return {split: tuple(shards) for split, shards in written.items()}


def _tool_version() -> str:
    try:
        return metadata.version("mstl")
    except metadata.PackageNotFoundError:  # used from a source tree
        return "not installed"
