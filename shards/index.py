"""The DALI WebDataset index v1.2: where each component of each sample lies in a tar."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from shards.errors import MstlError

VERSION = "v1.2"


@dataclass(frozen=True, slots=True)
class Component:
    """One file of a sample: extension, offset and size in bytes of its data in the tar, and its name there."""

    ext: str
    offset: int
    size: int
    name: str


IndexedSample: TypeAlias = tuple[Component, ...]


def format_index(samples: Sequence[Iterable[Component]]) -> str:
    """The text of an index file, one line a sample; samples may stand in any order, be left out or be repeated."""
    lines = [f"{VERSION} {len(samples)}"]
    lines += [" ".join(f"{c.ext} {c.offset} {c.size} {c.name}" for c in sample) for sample in samples]
    return "\n".join(lines) + "\n"


def read_index(path: Path) -> list[IndexedSample]:
    """Read an index file; raises MstlError when it is missing, of another version, cut off or malformed."""
    try:
        return _parse(path.read_text())
    except FileNotFoundError as error:
        raise _unreadable(path, "the file is missing") from error
    except ValueError as error:
        raise _unreadable(path, f"it cannot be read ({error})") from error


def _parse(text: str) -> list[IndexedSample]:
    head, *lines = text.splitlines() or [""]
    version, _, count = head.partition(" ")
    if version != VERSION:
        raise ValueError(f"it starts with {version!r}, not {VERSION}")
    if len(lines) != int(count) or not text.endswith("\n"):
        raise ValueError(f"it should list {int(count)} samples and lists {len(lines)}")
    return [_parse_sample(line) for line in lines]


def _parse_sample(line: str) -> IndexedSample:
    words = line.split(" ")
    if len(words) % 4:
        raise ValueError(f"a sample has {len(words)} words, not four a component")
    return tuple(
        Component(words[at], int(words[at + 1]), int(words[at + 2]), words[at + 3]) for at in range(0, len(words), 4)
    )


def _unreadable(path: Path, why: str) -> MstlError:
    return MstlError(f"index {path}", why=why, remedy="Convert the data again with mstl shard --force")
