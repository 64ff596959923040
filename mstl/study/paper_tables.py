"""A study's figures in the shape of the paper's Tables 1 to 6, beside the printed ones; and what fits none of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from mstl.study.estimates import contrast, level
from mstl.study.reported import PAPER_NETWORKS, reported
from mstl.study.study_files import StudyFacts
from mstl.study.study_parts import NodePart
from mstl.study.table import Cell, Column, Place, Row, Table, Unit, letters, marks_of, notes_on

Shelf = Mapping[tuple[str, str], Place]  # network, column
Pair = tuple[str, str]
SHARE, LEEP_RANGE = (0.0, 1.0), (float("-inf"), 0.0)
THREE = (("accuracy", "Accuracy"), ("f1", "F1"), ("auc", "AUC"))
SETTINGS = {
    "no_tl": "w/o TL", "stl_n": "STL-N", "stl_m": "STL-M", "moco": "MoCo", "simclr": "SimCLR", "full": "Ours",
    "stl_n+stl_m": "STL-N+STL-M",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """A table of the paper. columns: of studies, and what the paper calls them. over: what gains are over, if any."""

    number: int
    title: str
    about: str
    columns: tuple[Pair, ...]
    metrics: tuple[Pair, ...] = THREE
    over: str = ""


_TABLE1 = Shape(
    number=1,
    title="Supervised learning on natural images",
    about="Top-1 and top-5 accuracy after STL-N. Gains have an interval for other seeds only.",
    columns=(("", ""),),
    metrics=(("accuracy", "Top-1 accuracy"), ("top5_accuracy", "Top-5 accuracy")),
    over="baseline",
)
_TUNED = (
    Shape(
        number=2,
        title="Attention, after all stages",
        about="Fine-tuned on CT after STL-N, STL-M and SSTL-M.",
        columns=(("full", ""),),
        over="baseline",
    ),
    Shape(
        number=3,
        title="Self-supervised methods",
        about="Fine-tuned on CT after STL-N, STL-M and SSTL-M by each method.",
        columns=(("moco", "MoCo"), ("simclr", "SimCLR"), ("full", "Ours")),
    ),
    Shape(
        number=4,
        title="With and without transfer",
        about="Fine-tuned on CT after all stages, and trained on it from random weights.",
        columns=(("no_tl", "w/o TL"), ("full", "w TL")),
        over="no_tl",
    ),
    Shape(
        number=5,
        title="Single supervised stages",
        about="Fine-tuned on CT after STL-N alone and after STL-M alone.",
        columns=(("no_tl", "w/o TL"), ("stl_n", "STL-N"), ("stl_m", "STL-M")),
        over="no_tl",
    ),
)
_LEEP_COLUMNS = ("no_tl", "stl_n", "stl_n+stl_m")
GAIN_TITLES = {"": "", "baseline": "the baseline of the same depth", "no_tl": "the same network without transfer"}


def networks_of(facts: StudyFacts) -> list[str]:
    """The paper's networks, then the others of the study, as they stand there."""
    return list(dict.fromkeys([*PAPER_NETWORKS, *(node.network for node in facts.study.nodes)]))


def baseline_of(network: str) -> str:
    """The network of the same depth without attention."""
    return f"{network.partition('-')[0]}-attn0"


def tuned_column(node: NodePart) -> str | None:
    """The column that a node of fine-tuning names; None for other nodes."""
    return node.column if node.stage == "finetune" and node.evaluate else None


def shelf(facts: StudyFacts, column_of: Callable[[NodePart], str | None]) -> Shelf:
    """The places of a study's figures. Where two nodes name one column, the first of them has it."""
    owners: dict[str, str] = {}
    nodes: dict[tuple[str, str], list[NodePart]] = {}
    for node in facts.study.nodes:
        column = column_of(node)
        if column is not None and owners.setdefault(column, node.name) == node.name:
            nodes.setdefault((node.network, column), []).append(node)
    return {
        key: Place(
            nodes=tuple(found), results=tuple(facts.results[node.id] for node in found if node.id in facts.results)
        )
        for key, found in nodes.items()
    }


def paper_tables(facts: StudyFacts) -> list[Table]:
    """Tables 1 to 6, and one of the results that none of them has, where there are any."""
    first = shelf(facts, _natural)
    tuned = shelf(facts, tuned_column)
    scores = shelf(facts, _leep_column)
    tables = [_classification(facts, _TABLE1, first)]
    tables += [_classification(facts, shape, tuned) for shape in _TUNED]
    tables.append(_leep_table(facts, scores))
    further = _further(facts, [first, tuned])
    return [*tables, further] if further is not None else tables


def leep_places(facts: StudyFacts) -> Shelf:
    """The LEEP scores of a study by network and column."""
    return shelf(facts, _leep_column)


def _natural(node: NodePart) -> str | None:
    return "" if node.stage == "stl_n" and node.evaluate else None


def _leep_column(node: NodePart) -> str | None:
    return (node.column or node.name) if node.kind == "leep" else None


def _classification(facts: StudyFacts, shape: Shape, places: Shelf) -> Table:
    columns = [column for column, _ in shape.columns]
    mine = {key: place for key, place in places.items() if key[1] in columns}
    known = letters([node for place in mine.values() for node in place.nodes])
    rows = []
    for network in networks_of(facts):
        for column, setting in shape.columns:
            place = mine.get((network, column), Place())
            if not place.nodes and network not in PAPER_NETWORKS:
                continue
            base = _base(shape.over, network, column)
            cells = tuple(
                _cell(shape.number, network, column, name, place, mine.get(base) if base else None, known)
                for name, _ in shape.metrics
            )
            rows.append(Row(network=network, column=column, setting=setting, cells=cells))
    return Table(
        name=f"table{shape.number}",
        title=f"Table {shape.number}. {shape.title}",
        about=shape.about,
        gains=GAIN_TITLES[shape.over],
        columns=tuple(Column(name=name, title=title, unit="percent") for name, title in shape.metrics),
        rows=tuple(rows),
        notes=tuple(notes_on(list(mine.values()))),
        substitutions={letter: text for text, letter in known.items()},
    )


def _base(over: str, network: str, column: str) -> Pair | None:
    """What a gain is over; None for what is the base itself."""
    base = {"baseline": (baseline_of(network), column), "no_tl": (network, "no_tl")}.get(over)
    return None if base == (network, column) else base


def _cell(
    table: int, network: str, column: str, metric: str, place: Place, base: Place | None, known: dict[str, str]
) -> Cell:
    return Cell(
        measured=level(place.results, metric, SHARE),
        gain=None if base is None else contrast([(1, place.results), (-1, base.results)], metric),
        reported=reported().get((table, network, column or None, metric)),
        marks=marks_of(place, known),
        place=place,
    )


def _leep_table(facts: StudyFacts, places: Shelf) -> Table:
    columns = list(dict.fromkeys([*_LEEP_COLUMNS, *(column for _, column in places)]))
    known = letters([node for place in places.values() for node in place.nodes])
    rows = []
    for network in networks_of(facts):
        mine = [places.get((network, column), Place()) for column in columns]
        if network not in PAPER_NETWORKS and not any(place.nodes for place in mine):
            continue
        cells = tuple(
            Cell(
                measured=level(place.results, "bits", LEEP_RANGE),
                also=level(place.results, "nats", LEEP_RANGE),
                reported=reported().get((6, network, column, "bits")),
                marks=marks_of(place, known),
                place=place,
            )
            for column, place in zip(columns, mine, strict=True)
        )
        rows.append(Row(network=network, column="", setting="", cells=cells))
    notes = [note for note in notes_on(list(places.values())) if "standard deviation" not in note]
    notes += list(dict.fromkeys(f"{SETTINGS.get(column, column)}: {text}." for (_, column), place in places.items()
                                for r in place.results if r.leep for text in r.leep.sources[0].notes))  # fmt: skip
    return Table(
        name="table6",
        title="Table 6. Transferability (LEEP)",
        about="In bits, below them nats. The paper prints no unit; in nats its figures would lie below −H(Y) of its "
        "data, which no LEEP can, so they are read as bits.",
        gains="",
        columns=tuple(Column(name=name, title=SETTINGS.get(name, name), unit="bits") for name in columns),
        rows=tuple(rows),
        notes=tuple(notes),
        substitutions={letter: text for text, letter in known.items()},
    )


def _further(facts: StudyFacts, shelves: Sequence[Shelf]) -> Table | None:
    """Measured nodes that stand in none of the paper's tables: other stages, other columns, columns taken twice."""
    shown = {column for shape in _TUNED for column, _ in shape.columns} | {""}
    taken = {node.id for places in shelves for (_, column), place in places.items() if column in shown
             for node in place.nodes}  # fmt: skip
    left = [node for node in facts.study.nodes if node.kind == "train" and node.evaluate and node.id not in taken]
    if not left:
        return None
    known = letters(left)
    rows, places = [], []
    unit: Unit = "percent"
    for network, name in dict.fromkeys((node.network, node.name) for node in left):
        nodes = tuple(node for node in left if (node.network, node.name) == (network, name))
        place = Place(nodes=nodes, results=tuple(facts.results[n.id] for n in nodes if n.id in facts.results))
        column = nodes[0].column or ""
        cells = tuple(
            Cell(measured=level(place.results, metric, SHARE), marks=marks_of(place, known), place=place)
            for metric, _ in THREE
        )
        setting = f"{name} (column {column})" if column and column != name else name
        rows.append(Row(network=network, column=column, setting=setting, cells=cells))
        places.append(place)
    return Table(
        name="further",
        title="Further results",
        about="What this study measured beside the paper's tables. With more than two classes F1 and AUC are means "
        "over the classes.",
        gains="",
        columns=tuple(Column(name=name, title=title, unit=unit) for name, title in THREE),
        rows=tuple(rows),
        notes=tuple(notes_on(places)),
        substitutions={letter: text for text, letter in known.items()},
    )
