"""The manifest of a shard set: what `dataset.json` holds and how it is read and written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from shards.errors import MstlError
from shards.files import write_atomic

SCHEMA_VERSION = 1
MANIFEST_NAME = "dataset.json"
SPLITS = ("train", "val", "test")


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
    """Read the manifest of a shard set; raises MstlError when it is missing, unreadable or of another version."""
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
        splits = {
            name: tuple(Shard(**{**shard, "class_counts": tuple(shard["class_counts"])}) for shard in shards)
            for name, shards in body.pop("splits").items()
        }
        return Manifest(**{**body, "classes": tuple(body["classes"]), "splits": splits})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise MstlError(
            str(path), why=f"it cannot be read ({error})", remedy="Convert the data again with mstl shard --force"
        ) from error
