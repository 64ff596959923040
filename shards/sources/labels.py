"""The table of --labels: which file has which label, patient and split."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from shards.errors import MstlError
from shards.schema import SPLITS
from shards.sources.listing import refuse_unprintable

NEEDED, OPTIONAL = ("path", "label"), ("patient", "split")
LABELS_LAYOUT = "a header line path,label[,patient,split] and a line per image, paths relative to the root"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: label is a place in the classes, patient None where the table does not tell."""

    label: int
    patient: str | None
    split: str


@dataclass(frozen=True, slots=True)
class Labels:
    """A table of labels. rows: normalised path → row. carve_val: no row is of val, so some of train may become it."""

    path: Path
    classes: tuple[str, ...]
    rows: Mapping[str, Row]
    carve_val: bool

    def find(self, origin: str) -> str | None:
        """The path in the table that holds for a file: its own, else that of the nearest folder around it."""
        place = PurePosixPath(origin)
        return next((str(path) for path in (place, *place.parents) if str(path) in self.rows), None)


def read_labels(path: Path) -> Labels:
    """Read a table with the columns path, label and, if wanted, patient and split, in any order.

    Classes are the labels, sorted (as numbers when all are numbers). Without a split column every row is of train.
    Raises MstlError, with the line, for other columns, empty cells, absolute paths or paths with `..`, a path that
    stands twice, unknown splits, and control characters.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            lines = [(reader.line_num, line) for line in reader if line]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise MstlError(
            f"--labels {path}", why=f"it cannot be read as CSV in UTF-8 ({error})", remedy=f"Expected: {LABELS_LAYOUT}"
        ) from error
    columns = [name.strip().lower() for name in lines[0][1]] if lines else []
    unknown = sorted(set(columns) - {*NEEDED, *OPTIONAL})
    if not set(NEEDED) <= set(columns) or unknown or len(set(columns)) < len(columns) or len(lines) < 2:
        raise MstlError(
            f"--labels {path}",
            why=f"its columns are {', '.join(columns) or 'none'}" if len(lines) != 1 else "it has a header line only",
            remedy=f"Expected: {LABELS_LAYOUT}",
        )
    cells: dict[str, dict[str, str]] = {}
    for number, line in lines[1:]:
        if len(line) != len(columns):
            raise _wrong(path, number, f"it has {len(line)} cells, the header has {len(columns)}")
        row = dict(zip(columns, (cell.strip() for cell in line), strict=True))
        for name, cell in row.items():
            refuse_unprintable(f"--labels {path}, line {number}", name, cell)
        place = _inside(path, number, row["path"])
        if place in cells:
            raise _wrong(path, number, f"{place} stands in an earlier line too")
        if not row["label"]:
            raise _wrong(path, number, "it has no label")
        if row.get("split", "train") not in SPLITS:
            raise _wrong(path, number, f"split {row['split']!r} is none of {', '.join(SPLITS)}")
        cells[place] = row
    classes = sorted_labels(row["label"] for row in cells.values())
    label_of = {name: label for label, name in enumerate(classes)}
    rows = {
        place: Row(label_of[row["label"]], row.get("patient") or None, row.get("split", "train"))
        for place, row in cells.items()
    }
    return Labels(path, classes, rows, carve_val=all(row.split != "val" for row in rows.values()))


def sorted_labels(names: Iterable[str]) -> tuple[str, ...]:
    """The different names in order, as numbers when all are whole numbers."""
    different = set(names)
    if all(re.fullmatch(r"-?[0-9]{1,18}", name) for name in different):
        return tuple(sorted(different, key=lambda name: (int(name), name)))
    return tuple(sorted(different))


def _inside(path: Path, number: int, text: str) -> str:
    place = PurePosixPath(text)
    if not text or place.is_absolute() or ".." in place.parts or "\\" in text or re.match(r"[A-Za-z]:", text):
        raise _wrong(path, number, f"path {text!r} is not a path inside the root, written with /")
    return str(place)


def _wrong(path: Path, number: int, why: str) -> MstlError:
    return MstlError(f"--labels {path}, line {number}", why=why, remedy=f"Expected: {LABELS_LAYOUT}")
