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

SCHEMA_VERSION = 2
MANIFEST_NAME = "dataset.json"
QUARANTINE_NAME = "quarantine.jsonl"
SPLITS = ("train", "val", "test")
ALL = "all"  # every split, one behind the other, where a split is named to be read
_SEAL = '{{\n "sha256_of_the_rest": "{}",\n'
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """A finished shard set: its classes, its splits and how it was built.

    The sample at position p of a shard has id `shard.first_id + p`. Ids are unique and rise through the whole set;
    where images were refused they skip some, so that one bad image does not change the ids of all others.
    class_counts: samples per class of each split, in the order of `classes`. titles: what classes are called by people
    where their names are codes. refused: images left out. duplicates: images whose bytes an earlier one has too.
    """

    source: str
    modality: str
    classes: tuple[str, ...]
    splits: Mapping[str, tuple[Shard, ...]]
    options: Mapping[str, Any]
    seed: int
    tool_version: str
    refused: int
    duplicates: int
    class_counts: Mapping[str, tuple[int, ...]]
    titles: Mapping[str, str]
    deep: int = 0
    quarantine_sha256: str = hashlib.sha256(b"").hexdigest()  # an empty list

    def shards(self, split: str) -> tuple[Shard, ...]:
        """The shards of a split, or of ALL, in order; raises MstlError naming the splits there are."""
        if split == ALL:
            return tuple(shard for name in SPLITS for shard in self.splits.get(name, ()))
        if not self.splits.get(split):
            have = ", ".join(name for name, shards in self.splits.items() if shards)
            raise MstlError(
                f"split {split!r}", why=f"the shard set of {self.source} has only {have}", remedy="Name one of those"
            )
        return self.splits[split]

    def samples(self, split: str) -> int:
        """The number of samples of a split."""
        return sum(shard.samples for shard in self.shards(split))

    def counts(self, split: str) -> tuple[int, ...]:
        """Samples per class of a split, or of ALL."""
        rows = self.class_counts.values() if split == ALL else [self.class_counts[split]]
        return tuple(map(sum, zip(*rows, strict=True)))

    def to_json(self) -> str:
        """The text of `dataset.json`: keys sorted, so that equal manifests are equal bytes."""
        body = {"schema_version": SCHEMA_VERSION, **{f.name: getattr(self, f.name) for f in fields(self)}}
        body["splits"] = {name: [asdict(shard) for shard in shards] for name, shards in self.splits.items()}
        return json.dumps(body, indent=1, sort_keys=True) + "\n"

    def digest(self) -> str:
        """SHA-256 of the manifest text; it covers every shard, since the manifest holds their digests."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def save(self, folder: Path) -> None:
        """Write `dataset.json` into the folder atomically (last step of a build), its digest on the second line."""
        write_atomic(folder / MANIFEST_NAME, sealed(self.to_json()).encode())


def sealed(text: str) -> str:
    """The text of a manifest with its own SHA-256 as the first entry, so that a later change shows."""
    return _SEAL.format(hashlib.sha256(text.encode()).hexdigest()) + text.removeprefix("{\n")


def _unsealed(text: str) -> str:
    """The text that was sealed; raises ValueError when it is not that any more."""
    head, rest = text[: len(_SEAL.format("0" * 64))], text[len(_SEAL.format("0" * 64)) :]
    inner = "{\n" + rest
    if head != _SEAL.format(hashlib.sha256(inner.encode()).hexdigest()):
        raise ValueError("it was changed since it was written: its digest does not fit")
    return inner


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
        text = path.read_text()
        body = json.loads(text)
        if not isinstance(body, dict):
            raise ValueError("not a JSON object")
        version = body.pop("schema_version", None)
        if version != SCHEMA_VERSION:
            raise MstlError(
                str(path),
                why=f"it has schema version {version!r}, this program reads {SCHEMA_VERSION}",
                remedy="Convert the data again with mstl shard --force, or use the version of MSTL that wrote it",
            )
        _unsealed(text)
        del body["sha256_of_the_rest"]
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
    _need(_is_digest(body["quarantine_sha256"]), "quarantine_sha256 is no SHA-256")
    for name in ("seed", "refused", "duplicates", "deep"):
        _need(_is_count(body[name]), f"{name} is no whole number of 0 or more")
    _need(isinstance(body["options"], dict), "options is no mapping")
    splits = body["splits"]
    _need(isinstance(splits, dict) and splits.keys() <= set(SPLITS), f"splits is no mapping of {', '.join(SPLITS)}")
    _need(all(isinstance(shards, list) for shards in splits.values()), "a split is no list of shards")
    parts = {name: tuple(map(_shard, splits[name])) for name in SPLITS if name in splits}
    titles = body["titles"]
    _need(isinstance(titles, dict) and titles.keys() <= set(classes), "titles is no mapping of classes")
    _need(all(isinstance(title, str) for title in titles.values()), "titles holds something that is no text")
    counts = _class_counts(body["class_counts"], parts, len(classes))
    return Manifest(**{**body, "classes": tuple(classes), "splits": parts, "class_counts": counts})


def _class_counts(body: Any, parts: Mapping[str, tuple[Shard, ...]], classes: int) -> dict[str, tuple[int, ...]]:
    _need(isinstance(body, dict) and body.keys() == parts.keys(), "class_counts does not name the splits")
    for name, counts in body.items():
        _need(isinstance(counts, list) and all(map(_is_count, counts)), f"class_counts of {name} are no counts")
        _need(len(counts) == classes, f"class_counts of {name} has {len(counts)} numbers for {classes} classes")
        held = sum(shard.samples for shard in parts[name])
        _need(sum(counts) == held, f"class_counts of {name} add up to {sum(counts)}, its shards hold {held}")
    return {name: tuple(counts) for name, counts in body.items()}


def _shard(body: Any) -> Shard:
    _need(isinstance(body, dict), "a shard is no mapping")
    for name in ("path", "index"):
        _need(_is_inside(body[name]), f"{name} {body[name]!r} of a shard is no relative path inside the set")
    where = f"shard {body['path']}"
    for name in ("samples", "first_id", "bytes"):
        _need(_is_count(body[name]), f"{name} of {where} is no whole number of 0 or more")
    for name in ("sha256", "index_sha256"):
        _need(_is_digest(body[name]), f"{name} of {where} is no SHA-256")
    return Shard(**body)


def _need(good: bool, message: str) -> None:
    if not good:
        raise ValueError(message)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64


def _is_inside(path: Any) -> bool:
    """Whether it is a relative path that stays where it starts."""
    return isinstance(path, str) and bool(path) and "\0" not in path and path[0] != "/" and ".." not in path.split("/")
