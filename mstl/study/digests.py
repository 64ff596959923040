"""What a node's digest is made of: canonical JSON, the code that can change a result, the content of shard sets."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mstl import __version__
from mstl.runs import git_revision
from shards.schema import SPLITS, Manifest

_PACKAGES = ("shards", "pipelines", "mstl", "launch")
# How runs are started, shown and reported changes no weight and no metric.
_WITHOUT_EFFECT = ("mstl/cli/", "mstl/doctor/", "mstl/watching/", "mstl/study/")


@dataclass(frozen=True, kw_only=True, slots=True)
class Code:
    """The code in use. revision: of its repository, None outside one. sha256: of the sources that shape results."""

    version: str
    revision: str | None
    dirty: bool
    sha256: str

    def to_dict(self) -> dict[str, Any]:
        """As study.json holds it."""
        return asdict(self)


def digest(value: Any) -> str:
    """SHA-256 of a JSON value in its one canonical form: sorted keys, no spaces."""
    return hashlib.sha256(
        json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    ).hexdigest()


def code_sha256() -> str:
    """SHA-256 of the sources that shape results, as they are on disk now."""
    sums = hashlib.sha256()
    for name, file in _sources():
        sums.update(f"{name}\0{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return sums.hexdigest()


def code_identity() -> Code:
    """The code in use, by its content: the same in a checkout, with changes in it, and installed."""
    revision = git_revision()
    return Code(
        version=__version__,
        revision=None if revision is None else revision.removesuffix("+"),
        dirty=bool(revision and revision.endswith("+")),
        sha256=code_sha256(),
    )


def split_facts(manifest: Manifest) -> dict[str, dict[str, Any]]:
    """Samples and content digest of each split that a shard set has."""
    return {
        split: {
            "samples": manifest.samples(split),
            "digest": digest([shard.sha256 for shard in manifest.shards(split)]),
        }
        for split in SPLITS
        if manifest.splits.get(split)
    }


def _sources() -> Iterator[tuple[str, Path]]:
    place = Path(__file__).parents[2]  # the four packages are installed beside each other
    for package in _PACKAGES:
        for file in sorted((place / package).rglob("*.py")):
            name = file.relative_to(place).as_posix()
            if not name.startswith(_WITHOUT_EFFECT):
                yield name, file
