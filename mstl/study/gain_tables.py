"""What each stage adds and what attention adds to that: differences of means, paired over seeds and images."""

from __future__ import annotations

from mstl.study.estimates import contrast
from mstl.study.paper_tables import SETTINGS, THREE, Pair, Shelf, baseline_of, networks_of, shelf, tuned_column
from mstl.study.reported import Reported, reported_difference
from mstl.study.study_files import StudyFacts
from mstl.study.table import Cell, Column, Place, Row, Table, letters, marks_of, notes_on

# What is measured over what: the gain of each stage or chain over none, and of our method over the others.
_OVER = (
    ("stl_n", "no_tl"), ("stl_m", "no_tl"), ("moco", "no_tl"), ("simclr", "no_tl"), ("full", "no_tl"),
    ("full", "stl_n"), ("full", "moco"), ("full", "simclr"),
)  # fmt: skip
_POINTS = tuple(Column(name=name, title=title, unit="points") for name, title in THREE)
_ABOUT = (
    "In points. Measured: differences of means over the seeds that both sides have, intervals for other seeds and "
    "other images, both sides in the same resamples. Reported: differences of the printed values."
)


def gain_tables(facts: StudyFacts) -> list[Table]:
    """The gains of stages, and the benefit of attention: a network's gain less that of its baseline (section 6.5)."""
    places = shelf(facts, tuned_column)
    pairs = [*_OVER, *((column, "no_tl") for column in dict.fromkeys(column for _, column in places)
                       if column not in SETTINGS)]  # fmt: skip
    return [_gains(facts, places, pairs), _benefits(facts, places, pairs[:5])]


def _gains(facts: StudyFacts, places: Shelf, pairs: list[Pair]) -> Table:
    known = letters([node for place in places.values() for node in place.nodes])
    rows = []
    for network in networks_of(facts):
        for column, base in pairs:
            sides = [places.get((network, one), Place()) for one in (column, base)]
            cells = [_cell(sides, (1, -1), name, _printed(network, column, base, name), known) for name, _ in THREE]
            rows += _row(network, column, base, sides, cells)
    return _table("gains", "Gains by transfer", _ABOUT, rows, places, known)


def _benefits(facts: StudyFacts, places: Shelf, pairs: list[Pair]) -> Table:
    known = letters([node for place in places.values() for node in place.nodes])
    rows = []
    for network in networks_of(facts):
        other = baseline_of(network)
        if network == other:
            continue
        for column, base in pairs:
            keys = [(network, column), (network, base), (other, column), (other, base)]
            sides = [places.get(key, Place()) for key in keys]
            cells = []
            for name, _ in THREE:
                printed = [_printed(one, column, base, name) for one in (network, other)]
                value = None if printed[0] is None or printed[1] is None else printed[0] - printed[1]
                cells.append(_cell(sides, (1, -1, -1, 1), name, value, known))
            rows += _row(network, column, base, sides, cells)
    about = "The gain of a network with attention less that of the baseline of the same depth. " + _ABOUT
    return _table("benefits", "Benefit of attention", about, rows, places, known)


def _row(network: str, column: str, base: str, sides: list[Place], cells: list[Cell]) -> list[Row]:
    """One row, or none where the paper prints nothing and the study has not all sides."""
    if not all(side.nodes for side in sides) and all(cell.reported is None for cell in cells):
        return []
    setting = f"{SETTINGS.get(column, column)} − {SETTINGS.get(base, base)}"
    return [Row(network=network, column=f"{column}-{base}", setting=setting, cells=tuple(cells))]


def _cell(
    sides: list[Place], signs: tuple[int, ...], metric: str, printed: float | None, known: dict[str, str]
) -> Cell:
    measured = contrast([(sign, side.results) for sign, side in zip(signs, sides, strict=True)], metric)
    place = Place(
        nodes=tuple(node for side in sides for node in side.nodes),
        results=tuple(result for side in sides for result in side.results),
    )
    return Cell(
        measured=measured,
        reported=None if printed is None else Reported(value=round(printed, 1)),
        marks=marks_of(place, known),
        place=place,
    )


def _printed(network: str, column: str, base: str, metric: str) -> float | None:
    return reported_difference((network, column), (network, base), metric)


def _table(name: str, title: str, about: str, rows: list[Row], places: Shelf, known: dict[str, str]) -> Table:
    return Table(
        name=name,
        title=title,
        about=about,
        gains="",
        columns=_POINTS,
        rows=tuple(rows),
        notes=tuple(notes_on(list(places.values()))),
        substitutions={letter: text for text, letter in known.items()},
    )
