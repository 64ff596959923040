"""The manifest of a shard set: what `dataset.json` holds and how it is read and written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any

from shards.errors import MstlError
from shards.files import write_atomic

SCHEMA_VERSION = 1
MANIFEST_NAME = "dataset.json"
SPLITS = ("train", "val", "test")
MAX_SEED = 2**31 - 1  # of anything seeded; the generators of all libraries take that much


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """One tar and its DALI index; paths are relative to the shard set, sizes in bytes."""

    path: str
    index: str
    samples: int
    first_id: int
    bytes: int
    sha256: str
    index_sha256: str
    class_counts: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """A finished shard set: its classes, its splits and how it was built.

    Sample ids are dense over the whole set: the sample at position p of a shard has id `shard.first_id + p`.
    """

    source: str
    modality: str
    classes: tuple[str, ...]
    splits: Mapping[str, tuple[Shard, ...]]
    options: Mapping[str, Any]
    seed: int
    tool_version: str
    refused: int

    def shards(self, split: str) -> tuple[Shard, ...]:
        """The shards of a split, in order; raises MstlError naming the splits there are."""
        if not self.splits.get(split):
            have = ", ".join(name for name, shards in self.splits.items() if shards)
            raise MstlError(
                f"split {split!r}", why=f"the shard set of {self.source} has only {have}", remedy="Name one of those"
            )
        return self.splits[split]

    def samples(self, split: str) -> int:
        """The number of samples of a split."""
        return sum(shard.samples for shard in self.shards(split))

    def class_counts(self, split: str) -> list[int]:
        """Samples per class of a split, in the order of `classes`."""
        return [sum(column) for column in zip(*(s.class_counts for s in self.shards(split)), strict=True)]

    def to_json(self) -> str:
        """The text of `dataset.json`: keys sorted, so that equal manifests are equal bytes."""
        body = {"schema_version": SCHEMA_VERSION, **{f.name: getattr(self, f.name) for f in fields(self)}}
        body["splits"] = {name: [asdict(shard) for shard in shards] for name, shards in self.splits.items()}
        body["totals"] = {
            name: {"samples": self.samples(name), "classes": self.class_counts(name)}
            for name, shards in self.splits.items()
            if shards
        }
        return json.dumps(body, indent=1, sort_keys=True) + "\n"

    def digest(self) -> str:
        """SHA-256 of the manifest text; it covers every shard, since the manifest holds their digests."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def save(self, folder: Path) -> None:
        """Write `dataset.json` into the folder atomically (last step of a build)."""
        write_atomic(folder / MANIFEST_NAME, self.to_json().encode())


def load_manifest(folder: Path) -> Manifest:
    """Read the manifest of a shard set; raises MstlError when it is missing, unreadable, of another version or holds
    values that no build writes.
    """
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise MstlError(
            f"shard set {folder}",
            why=f"it has no {MANIFEST_NAME}, so it is missing or was never finished",
            remedy=f"Make it with: mstl shard --src SOURCE --root RAW --out {folder}",
        )
    try:
        body = json.loads(path.read_text())
        if not isinstance(body, dict):
            raise ValueError("not a JSON object")
        version = body.pop("schema_version", None)
        if version != SCHEMA_VERSION:
            raise MstlError(
                str(path),
                why=f"it has schema version {version!r}, this program reads {SCHEMA_VERSION}",
                remedy="Convert the data again with mstl shard --force, or use the version of MSTL that wrote it",
            )
        body.pop("totals", None)
        return _manifest(body)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise MstlError(
            str(path), why=f"it cannot be read ({error})", remedy="Convert the data again with mstl shard --force"
        ) from error


def _manifest(body: dict[str, Any]) -> Manifest:
    """The manifest in a JSON object; raises ValueError for wrong values, TypeError and KeyError for wrong fields."""
    classes = body["classes"]
    _need(isinstance(classes, list) and bool(classes), "classes is no list of names")
    _need(all(isinstance(name, str) for name in classes), "classes is no list of names")
    for name in ("source", "modality", "tool_version"):
        _need(isinstance(body[name], str), f"{name} is no text")
    for name in ("seed", "refused"):
        _need(_is_count(body[name]), f"{name} is no whole number of 0 or more")
    _need(isinstance(body["options"], dict), "options is no mapping")
    splits = body["splits"]
    _need(isinstance(splits, dict) and splits.keys() <= set(SPLITS), f"splits is no mapping of {', '.join(SPLITS)}")
    _need(all(isinstance(shards, list) for shards in splits.values()), "a split is no list of shards")
    parts = {name: tuple(_shard(shard, len(classes)) for shard in shards) for name, shards in splits.items()}
    return Manifest(**{**body, "classes": tuple(classes), "splits": parts})


def _shard(body: Any, classes: int) -> Shard:
    _need(isinstance(body, dict), "a shard is no mapping")
    for name in ("path", "index"):
        _need(_is_inside(body[name]), f"{name} {body[name]!r} of a shard is no relative path inside the set")
    where = f"shard {body['path']}"
    for name in ("samples", "first_id", "bytes"):
        _need(_is_count(body[name]), f"{name} of {where} is no whole number of 0 or more")
    for name in ("sha256", "index_sha256"):
        _need(isinstance(body[name], str) and len(body[name]) == 64, f"{name} of {where} is no SHA-256")
    counts = body["class_counts"]
    _need(isinstance(counts, list) and all(map(_is_count, counts)), f"class_counts of {where} are no counts")
    _need(len(counts) == classes, f"class_counts of {where} has {len(counts)} numbers for {classes} classes")
    _need(sum(counts) == body["samples"], f"class_counts of {where} add up to {sum(counts)}, not {body['samples']}")
    return Shard(**{**body, "class_counts": tuple(counts)})


def _need(good: bool, message: str) -> None:
    if not good:
        raise ValueError(message)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_inside(path: Any) -> bool:
    if not isinstance(path, str) or not path or "\0" in path:
        return False
    return not PurePosixPath(path).is_absolute() and ".." not in PurePosixPath(path).parts
