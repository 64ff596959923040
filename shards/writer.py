"""Building a shard set: shuffle, check and write shard by shard, publish the whole at once; alone or in parts."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import PIL
from PIL import features

from shards import building
from shards.cutting import cut_jobs
from shards.errors import MstlError
from shards.files import write_atomic
from shards.job import RECORDS_NAME, ShardJob, too_many, write_shard
from shards.parallel import ordered_map
from shards.progress import QUIET, Progress
from shards.result import Result
from shards.schema import MANIFEST_NAME, MAX_SEED, QUARANTINE_NAME, Manifest, load_manifest
from shards.sources.carve import carve_validation
from shards.sources.listing import Listing
from shards.verify import check_files

MIN_REFUSALS = 3  # a budget of 1 % would allow none in a small source


@dataclass(frozen=True, kw_only=True, slots=True)
class WriteOptions:
    """How to build a shard set.

    resize: bring shorter sides above this many pixels down to it, or None to keep the original bytes. quality: of
    re-encoded JPEG. val_fraction: part of the training patients that becomes val where the source has no val.
    decode: check every image by decoding it in full, else by its header alone. max_bad: fraction of images that may be
    refused. workers: processes; above 1 they are spawned.
    Raises MstlError for values out of range.
    """

    seed: int = 0
    samples_per_shard: int = 1000
    resize: int | None = None
    quality: int = 90
    val_fraction: float = 0.1
    decode: bool = True
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
            "listing_digest": listing.digest,
            "rendering": listing.rendering,
            "samples_per_shard": self.samples_per_shard,
            "resize": self.resize,
            "quality": self.quality,
            "val_fraction": self.val_fraction,
            "decode": self.decode,
        }

    def allowed(self, images: int) -> int:
        """How many of so many images may be refused; a fraction above 0 allows three at least."""
        return max(MIN_REFUSALS, int(self.max_bad * images)) if self.max_bad > 0 else 0


@dataclass(frozen=True, slots=True)
class Part:
    """The share of one of several processes that build a set together: shards number-1, number-1+of, …"""

    number: int
    of: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.of:
            raise MstlError(
                f"part {self.number}/{self.of}",
                why="the first number must be at least 1 and at most the second",
                remedy="Count the parts from 1: --part 1/8 to --part 8/8",
            )


def find_built(listing: Listing, out: Path, options: WriteOptions, *, other_welcome: bool = False) -> Manifest | None:
    """The manifest of a finished set at `out` with this listing and these options; None when nothing is there.

    Raises MstlError when another set is there (None if that is welcome), when a file of the set is missing or cut off,
    and when more of its images were refused than the options allow.
    """
    if not building.occupied(out):
        return None
    asked = {**options.recorded(listing), "seed": options.seed}
    manifest = load_manifest(out)
    built = {**manifest.options, "seed": manifest.seed}
    changed = [f"{name} {built.get(name)}, not {asked[name]}" for name in asked if built.get(name) != asked[name]]
    if changed and other_welcome:
        return None
    if changed:
        same_source = built.get("listing_digest") == asked["listing_digest"]
        why = f"it was built with {', '.join(changed)}" if same_source else "it was built from other source files"
        raise MstlError(f"shard set {out}", why=why, remedy="Replace it with --force, or choose another --out")
    check_files(out, manifest)
    allowed = options.allowed(len(listing.items))
    if manifest.refused > allowed:
        raise MstlError(
            f"shard set {out}",
            why=f"{manifest.refused} images were refused when it was built, {allowed} are allowed now",
            remedy="Mend them and build anew with --force, or allow more with --max-bad",
        )
    building.tidy(out)
    return manifest


def write_shards(
    listing: Listing, out: Path, options: WriteOptions, progress: Progress = QUIET, *, force: bool = False
) -> Manifest:
    """Build the shard set of a listing at `out` and return its manifest.

    The build happens in `<out>.building` and is renamed when whole; run again after an interruption it goes on with
    the shards that are missing, and ends with the same bytes. A set that is already there with the same listing and
    options is returned as it is (`find_built` tells beforehand), another one is refused. With `force` everything is
    built anew, and what is there is replaced once the new set is complete. Order within a split, and so every sample
    id, follows from the seed and the keys alone.
    Raises MstlError for too many bad images and an unusable `out`.
    """
    return _close(listing, out, options, progress, force=force, write=True)


def merge_parts(
    listing: Listing, out: Path, options: WriteOptions, progress: Progress = QUIET, *, force: bool = False
) -> Manifest:
    """Publish what `write_part` has written for all parts: the set `write_shards` would have built, byte for byte.

    With `force` it replaces a set that stands at `out`. Raises MstlError naming shards that no part has written.
    """
    return _close(listing, out, options, progress, force=force, write=False)


def write_part(
    listing: Listing, out: Path, options: WriteOptions, part: Part, progress: Progress = QUIET
) -> tuple[int, int]:
    """Write one part of a set into `<out>.building`, which all parts share; returns its shards and refused images.

    Parts may run at the same time, on several hosts that share the folder, and be repeated. Raises MstlError as
    `write_shards` does.
    """
    out = out.resolve()
    with building.workspace(out, _mark(listing, options), part=True) as folder:
        jobs = _jobs(listing, folder, options, progress, write=True)[part.number - 1 :: part.of]
        result = _run(jobs, options, progress, classes=len(listing.classes))
        return len(jobs), len(result.refused)


def _close(
    listing: Listing, out: Path, options: WriteOptions, progress: Progress, *, force: bool, write: bool
) -> Manifest:
    out = out.resolve()
    built = None if force else find_built(listing, out, options)
    if built is not None:
        return built
    if not write and not building.begun(out):
        raise MstlError(
            f"shard set {out}",
            why="no part of it has been written",
            remedy="Write the parts first, with the same options and --part 1/N to N/N in place of --merge",
        )
    with building.workspace(out, _mark(listing, options), fresh=force and write) as folder:
        built = None if force else find_built(listing, out, options)
        if built is not None:  # another process has published it since
            shutil.rmtree(folder)
            return built
        (folder / MANIFEST_NAME).unlink(missing_ok=True)  # of a build whose publication failed
        jobs = _jobs(listing, folder, options, progress, write=write)
        result = _run(jobs, options, progress, classes=len(listing.classes))
        manifest = _finish(listing, folder, options, result)
        building.publish(folder, out)
    return manifest


def _mark(listing: Listing, options: WriteOptions) -> dict[str, Any]:
    """What two builds in one workspace must agree on; which images are listed may change, shard by shard."""
    recorded = {**options.recorded(listing), "seed": options.seed, "source": listing.source, **_encoders()}
    del recorded["listing_digest"]
    return recorded


def _encoders() -> dict[str, str | None]:
    """Versions of what decides the bytes of images that are written anew."""
    return {
        "mstl": _tool_version(),
        "Pillow": PIL.__version__,
        **{name: features.version(name) for name in ("zlib", "jpg", "webp", "libtiff")},
    }


def _jobs(listing: Listing, folder: Path, options: WriteOptions, progress: Progress, *, write: bool) -> list[ShardJob]:
    if listing.unpack is not None:
        listing = replace(listing, items=listing.unpack(folder / building.UNPACKED_NAME, options.workers, progress))
    listing = carve_validation(listing, fraction=options.val_fraction, seed=options.seed)
    like = ShardJob(
        folder=str(folder), split="", number=0, first_id=0, entries=(), source=listing.source,
        modality=listing.modality, classes={}, resize=options.resize, quality=options.quality,
        decode=options.decode, allowed=options.allowed(len(listing.items)), write=write,
    )  # fmt: skip
    return cut_jobs(listing, like, seed=options.seed, samples_per_shard=options.samples_per_shard)


def _run(jobs: Sequence[ShardJob], options: WriteOptions, progress: Progress, *, classes: int) -> Result:
    result, missing = Result(classes), []
    for place in {Path(job.folder) / name for job in jobs for name in (job.split, RECORDS_NAME)}:
        place.mkdir(exist_ok=True)
    progress.start(sum(len(job.entries) for job in jobs), "converting images")
    with closing(ordered_map(write_shard, jobs, workers=options.workers, progress=progress)) as written:
        for job, done in zip(jobs, written, strict=True):
            if done is None:
                missing.append(job.name)
                continue
            result.add(job.split, done)
            if len(result.refused) > job.allowed:
                raise too_many(result.refused, job.allowed)
    if missing:
        raise MstlError(
            f"{len(missing)} of {len(jobs)} shards",
            why=f"no part has written them from these files with these options, first {missing[0]}",
            remedy="Run the parts that are missing, or the same command without --merge, which writes the rest here",
        )
    return result


def _finish(listing: Listing, folder: Path, options: WriteOptions, result: Result) -> Manifest:
    """Write quarantine and manifest, and remove whatever belongs to no shard."""
    if not result.shards.get("train"):
        raise MstlError(
            f"source {listing.source}",
            why=f"no training image is left after {len(result.refused)} were refused, first "
            f"{result.refused[0]['origin']}: {result.refused[0]['reason']}",
            remedy="Mend the images",
        )
    refused = sorted(result.refused, key=lambda line: line["key"])
    quarantine = "".join(json.dumps(line) + "\n" for line in refused).encode()
    write_atomic(folder / QUARANTINE_NAME, quarantine)
    splits = {split: tuple(shards) for split, shards in result.shards.items()}
    manifest = Manifest(
        source=listing.source,
        modality=listing.modality,
        classes=listing.classes,
        splits=splits,
        options=options.recorded(listing),
        seed=options.seed,
        tool_version=_tool_version(),
        refused=len(refused),
        quarantine_sha256=hashlib.sha256(quarantine).hexdigest(),
        duplicates=result.duplicates(),
        class_counts={split: tuple(result.class_counts[split]) for split in splits},
        titles=dict(listing.titles),
        deep=result.deep,
    )
    shards = [shard for part in splits.values() for shard in part]
    building.remove_strays(folder, {path for shard in shards for path in (shard.path, shard.index)})
    manifest.save(folder)
    return manifest


def _tool_version() -> str:
    try:
        return metadata.version("mstl")
    except metadata.PackageNotFoundError:  # used from a source tree
        return "not installed"
