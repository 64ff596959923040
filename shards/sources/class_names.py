"""What the classes of adopted samples are called: by a list at the root, by the samples, or by their numbers."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from shards.errors import MstlError
from shards.schema import MANIFEST_NAME
from shards.sources.labels import sorted_labels
from shards.sources.listing import first_few

CLASS_LISTS = ("classes.txt", "classnames.txt")
_INTEGER = re.compile(r"-?[0-9]{1,18}")


def name_classes(root: Path, samples: Sequence[tuple[str, str | None]]) -> tuple[tuple[str, ...], list[int]]:
    """The class names, and the label of every sample, from pairs of what it says: a number or a text, and a name.

    Numbers count from 0 in the class list of an MSTL shard set, classes.txt or classnames.txt at the root. Without a
    list, numbers are called as their samples say when these agree, else by themselves, and texts are the names.
    Raises MstlError for samples of a class that the list does not have, and for a list with a blank line.
    """
    values = [value for value, _ in samples]
    numeric = all(_INTEGER.fullmatch(value) for value in values)
    if numeric:
        values = [str(int(value)) for value in values]  # 007 is 7
    listed, where = _listed(root)
    if not listed and not numeric:
        listed = sorted_labels(values)
    if not listed:
        numbers = sorted({int(value) for value in values})
        place = {number: label for label, number in enumerate(numbers)}
        return _names(samples, numbers), [place[int(value)] for value in values]
    place_of = {str(label): label for label in range(len(listed))} if numeric else {}
    once = {name for name, count in Counter(listed).items() if count == 1}  # a name of two classes tells nothing
    place_of |= {name: label for label, name in enumerate(listed) if name in once and name not in place_of}
    unknown = sorted({value for value in values if value not in place_of})
    if unknown:
        raise MstlError(
            f"classes in {root}",
            why=f"{where} has {len(listed)} names, counted from 0, and the samples have also {first_few(unknown)}",
            remedy=f"Correct {where} or the labels",
        )
    return listed, [place_of[value] for value in values]


def _listed(root: Path) -> tuple[tuple[str, ...], str]:
    """The class names that a file at the root lists, and that file's name."""
    try:
        manifest = json.loads((root / MANIFEST_NAME).read_bytes()) if (root / MANIFEST_NAME).is_file() else {}
    except ValueError:
        manifest = {}
    names = manifest.get("classes") if isinstance(manifest, dict) else None
    if isinstance(names, list) and names and all(isinstance(name, str) for name in names):
        return tuple(names), MANIFEST_NAME
    for where in CLASS_LISTS:
        if (root / where).is_file():
            return _lines(root / where), where
    return (), ""


def _lines(path: Path) -> tuple[str, ...]:
    """The names in a list, a line each. A blank line between them is refused: a label more or less, who knows."""
    names = [line.strip() for line in path.read_text(encoding="utf-8-sig").rstrip().split("\n")]
    for number, name in enumerate(names, start=1):
        if not name and len(names) > 1:
            raise MstlError(
                f"{path}, line {number}",
                why="it is blank, and labels are told by counting lines",
                remedy="Name the class there, or take the line out if no label is missing",
            )
    return tuple(name for name in names if name)


def _names(samples: Sequence[tuple[str, str | None]], numbers: list[int]) -> tuple[str, ...]:
    """A name per number: the one its samples agree on, when all numbers have one and no two the same."""
    names: dict[int, set[str | None]] = defaultdict(set)
    for value, name in samples:
        names[int(value)].add(name)
    agreed = [name for number in numbers if len(names[number]) == 1 for name in names[number] if name is not None]
    if len(agreed) == len(numbers) and max(Counter(agreed).values()) == 1:
        return tuple(agreed)
    return tuple(map(str, numbers))
