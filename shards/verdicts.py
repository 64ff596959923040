"""The verdicts on what splits share, and `leakage.json`, which keeps them beside each shard set they are about."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from shards.errors import MstlError
from shards.files import locked, write_atomic
from shards.schema import MANIFEST_NAME

LEAKAGE_NAME = "leakage.json"
LEAKAGE_SCHEMA = 1

Check = Literal["patient", "content", "likeness"]
Outcome = Literal["found", "none", "unknown"]
CHECKS: tuple[Check, ...] = get_args(Check)


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A split of a shard set. name: the set's folder. digest: of its manifest, which binds a verdict to the content."""

    name: str
    source: str
    digest: str
    split: str
    images: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What one check says of two splits; b is the one that is measured on.

    affected: images of b that share something with a. unknown: images of both that could not be compared, and why.
    method: how a likeness was judged.
    """

    check: Check
    a: Part
    b: Part
    outcome: Outcome
    affected: int
    unknown: int
    why: str = ""
    method: str = ""

    @property
    def name(self) -> str:
        """What the table, a refusal and a waiver call it: "covid19-ct:train~val:likeness"."""
        return f"{pair_name(self.a, self.b)}:{self.check}"

    @property
    def identity(self) -> tuple[str, ...]:
        """Equal for verdicts on the same question about the same content."""
        return (self.check, self.a.digest, self.a.split, self.b.digest, self.b.split)

    def text(self) -> str:
        """The verdict in words; what is unknown is never left out."""
        images = self.a.images + self.b.images
        extent = "" if self.unknown == images else f" for {self.unknown:,} of {images:,} images"
        missing = f"unknown{extent} ({self.why})"
        if self.outcome == "found":
            found = f"found: {self.affected:,} of {self.b.images:,} {self.b.split} images"
            return f"{found}; {missing}" if self.unknown else found
        return missing if self.outcome == "unknown" else "none"


def pair_name(a: Part, b: Part) -> str:
    """ "covid19-ct:train~val" within a set, "covidx:train~covid19-ct:val" across two."""
    other = b.split if a.digest == b.digest else f"{b.name}:{b.split}"
    return f"{a.name}:{a.split}~{other}"


def read_verdicts(folder: Path, digest: str) -> list[Verdict]:
    """The verdicts that stand beside a shard set and are about the content with this digest; none where none were made.

    Raises MstlError when the file cannot be read: what it said must not be lost in silence.
    """
    path = folder / LEAKAGE_NAME
    return parse_verdicts(path.read_bytes(), digest, str(path), str(folder)) if path.is_file() else []


def parse_verdicts(text: bytes, digest: str, path: str, called: str) -> list[Verdict]:
    """The verdicts in the text of a leakage.json, at `path` beside the set `called` so, that are about this digest.

    Raises MstlError when it cannot be read.
    """
    try:
        body = json.loads(text)
        if body["schema"] != LEAKAGE_SCHEMA:
            raise ValueError(f"schema {body['schema']!r}, this program reads {LEAKAGE_SCHEMA}")
        verdicts = [_verdict(entry) for entry in body["verdicts"]]
    except (ValueError, KeyError, TypeError) as error:
        raise MstlError(
            path, why=f"it cannot be read ({error!r})", remedy=f"Remove it and run: mstl leakage {called}"
        ) from error
    return [verdict for verdict in verdicts if digest in (verdict.a.digest, verdict.b.digest)]


def save_verdicts(folder: Path, digest: str, verdicts: Iterable[Verdict]) -> None:
    """Write the verdicts that are about this shard set beside it, atomically and one process after the other.

    Earlier ones on other pairs stay; those on what the set held before it was rebuilt go. A set at the other end that
    was rebuilt keeps its earlier verdicts: networks may have been trained on it.
    """
    with locked(folder / MANIFEST_NAME, create=False):
        text = format_verdicts(digest, [*read_verdicts(folder, digest), *verdicts])
        write_atomic(folder / LEAKAGE_NAME, text)


def merge_verdicts(folder: Path, digest: str, text: bytes, named: str) -> None:
    """Add the verdicts in another copy's leakage.json (`named` in messages) to those beside a shard set.

    Of two on the same question the worse one stays: found, then unknown, then none.
    """
    theirs = parse_verdicts(text, digest, named, named.removesuffix(f"/{LEAKAGE_NAME}"))
    with locked(folder / MANIFEST_NAME, create=False):
        merged = format_verdicts(digest, worse_last([*theirs, *read_verdicts(folder, digest)]))
        path = folder / LEAKAGE_NAME
        if not path.is_file() or path.read_bytes() != merged:
            write_atomic(path, merged)


def worse_last(verdicts: Iterable[Verdict]) -> list[Verdict]:
    """The verdicts, of which `format_verdicts` keeps the last on each question, so that this is the worst."""
    return sorted(verdicts, key=lambda v: ("none", "unknown", "found").index(v.outcome))


def format_verdicts(digest: str, verdicts: Iterable[Verdict]) -> bytes:
    """The text of the leakage.json of a set with this digest: of the verdicts about it the last on each question."""
    kept = {v.identity: v for v in verdicts if digest in (v.a.digest, v.b.digest)}
    entries = [{"name": v.name, **asdict(v)} for v in sorted(kept.values(), key=lambda v: (v.name, v.identity))]
    return (json.dumps({"schema": LEAKAGE_SCHEMA, "digest": digest, "verdicts": entries}, indent=1) + "\n").encode()


def _verdict(entry: dict[str, Any]) -> Verdict:
    fields = {**entry, "a": Part(**entry["a"]), "b": Part(**entry["b"])}
    name = fields.pop("name")
    verdict = Verdict(**fields)
    known = verdict.check in CHECKS and verdict.outcome in get_args(Outcome)
    if not known or verdict.name != name:
        raise ValueError(f"no verdict that this program writes: {name!r}")
    return verdict
