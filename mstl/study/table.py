"""A table of a study's report: rows of networks and settings, measured figures beside reported ones; and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Literal

from mstl.study.estimates import Estimate, Span
from mstl.study.reported import Reported
from mstl.study.study_files import Result
from mstl.study.study_parts import NodePart

Unit = Literal["percent", "points", "bits"]
FEW_SEEDS = 5  # below it an interval over seeds is a rough one (ours; the paper names no number of runs)
TRUSTED_LEAKAGE = ("checked", "nothing to compare")


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """The nodes whose figures stand in one place, and the results there are of them."""

    nodes: tuple[NodePart, ...] = ()
    results: tuple[Result, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One figure, measured and reported. gain: of the measured one over what the table says; also: in other units.

    marks: letters of the substitutions behind it. place: the nodes it comes from.
    """

    measured: Estimate | None = None
    gain: Estimate | None = None
    also: Estimate | None = None
    reported: Reported | None = None
    marks: str = ""
    place: Place = field(default_factory=Place)

    @property
    def anchor(self) -> str:
        """Where the page lists the runs behind it."""
        return anchor(self.place.nodes[0])


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """A group of columns, measured beside reported. name: in CSVs."""

    name: str
    title: str
    unit: Unit


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """network and setting as the page shows them, `column` as studies name it."""

    network: str
    column: str
    setting: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """name: of the CSV. gains: over what, empty where the table has none. substitutions: letter → what it marks."""

    name: str
    title: str
    about: str
    gains: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    substitutions: dict[str, str]

    @property
    def has_settings(self) -> bool:
        return any(row.setting for row in self.rows)

    @property
    def has_reported(self) -> bool:
        return any(cell.reported is not None for row in self.rows for cell in row.cells)

    @property
    def blocks(self) -> list[tuple[str, list[Row]]]:
        """The rows of each network, in order."""
        return [(network, list(rows)) for network, rows in groupby(self.rows, key=lambda row: row.network)]

    @property
    def misprints(self) -> list[str]:
        """What is wrong with printed figures of this table."""
        found = []
        for row in self.rows:
            for column, cell in zip(self.columns, row.cells, strict=True):
                if cell.reported is not None and cell.reported.misprint:
                    what = ", ".join(filter(None, (row.network, row.setting, column.title)))
                    found.append(f"{what}: {cell.reported.misprint}")
        return found


def anchor(node: NodePart) -> str:
    """The name of the place in the page that lists all seeds of a node and network."""
    return f"runs-{node.name}-{node.network}"


def letters(nodes: Sequence[NodePart]) -> dict[str, str]:
    """A letter for each substitution that stands behind some of these nodes: text → letter."""
    texts = dict.fromkeys(node.substitution for node in nodes if node.substitution)
    return {str(text): chr(ord("a") + number) if number < 26 else f"s{number}" for number, text in enumerate(texts)}


def marks_of(place: Place, known: dict[str, str]) -> str:
    """The letters of what stands behind a place's results."""
    return " ".join(sorted({known[r.node.substitution] for r in place.results if r.node.substitution}))


def notes_on(places: Sequence[Place]) -> list[str]:
    """What a reader must know of these figures: where measured, how independent, whether data were checked."""
    results = [result for place in places for result in place.results]
    notes = []
    images = list(dict.fromkeys((r.node.data.source, r.split, r.n) for r in results))
    if images:
        where = "; ".join(f"{split} split of {source}, n = {n:,}" for source, split, n in images)
        notes.append(f"Measured on: {where}.")
    if len({result.images for result in results}) > 1:
        notes.append("Not all rows were measured on the same images: do not compare those; no gain is taken of them.")
    seeds = [len({r.node.seed for r in place.results}) for place in places if place.results]
    if seeds and min(seeds) == 1:
        notes.append("Figures of one seed have no standard deviation; their interval is for other images only.")
    if any(1 < count < FEW_SEEDS for count in seeds):
        notes.append(f"With fewer than {FEW_SEEDS} seeds the standard deviation itself is uncertain.")
    shared = {parent.partition("/")[0] for place in places for parent in _shared_parents(place)}
    if shared:
        notes.append(
            f"The training behind some figures was run once for all of their seeds ({', '.join(sorted(shared))}): "
            "what another seed of it would change is in no interval."
        )
    doubtful = dict.fromkeys(f"{r.node.name} ({r.node.leakage})" for r in results
                             if r.node.leakage not in TRUSTED_LEAKAGE)  # fmt: skip
    if doubtful:
        notes.append(f"Leakage between data sets is not ruled out for {', '.join(doubtful)}.")
    return notes


def _shared_parents(place: Place) -> set[str]:
    if len({result.node.seed for result in place.results}) < 2:
        return set()
    parents = [parent for result in place.results for parent in result.node.parents]
    return {parent for parent in parents if parents.count(parent) > 1}


CSV_COLUMNS = (
    "table", "network", "column", "setting", "metric", "unit", "mean", "sd", "seeds", "low", "high", "seeds_low",
    "seeds_high", "images_low", "images_high", "gain_over", "gain_mean", "gain_sd", "gain_low", "gain_high",
    "reported", "reported_gain", "misprint", "substitution", "nodes", "digests", "paths",
)  # fmt: skip


def as_csv(table: Table) -> str:
    """The table in long form: a line for each figure; what was not measured or not printed is empty.

    Percentages and points are of 100, LEEP in bits and, as a line of its own, nats.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for row in table.rows:
        for column, cell in zip(table.columns, row.cells, strict=True):
            writer.writerow(_line(table, row, column.name, column.unit, cell))
            if cell.also is not None:
                also = Cell(measured=cell.also, marks=cell.marks, place=cell.place)
                writer.writerow(_line(table, row, column.name, "nats", also))
    return text.getvalue()


def _line(table: Table, row: Row, metric: str, unit: str, cell: Cell) -> list[str]:
    scale = 100.0 if unit in ("percent", "points") else 1.0
    measured, gain, printed = cell.measured, cell.gain, cell.reported
    nodes = [result.node for result in cell.place.results] if measured is not None else []
    texts = {letter: text for letter, text in table.substitutions.items() if letter in cell.marks.split()}

    def number(value: float | None) -> str:
        return "" if value is None else f"{scale * value:.10g}"

    def ends(span: Span | None) -> list[str]:
        return ["", ""] if span is None else [number(end) for end in span]

    figures = [""] * 9
    if measured is not None:
        seeds = " ".join(map(str, measured.seeds))
        figures = [number(measured.mean), number(measured.sd), seeds, *ends(measured.span)]
        figures += [*ends(measured.seeds_span), *ends(measured.images_span)]
    gains = [""] * 5
    if gain is not None:
        gains = [table.gains, number(gain.mean), number(gain.sd), *ends(gain.span)]
    shown = ["", "", ""]
    if printed is not None:
        shown = [str(printed.value), "" if printed.gain is None else str(printed.gain), printed.misprint or ""]
    about = [" ".join(getattr(node, key) for node in nodes) for key in ("id", "digest", "path")]
    head = [table.name, row.network, row.column, row.setting, metric, unit]
    return [*head, *figures, *gains, *shown, "; ".join(texts.values()), *about]
