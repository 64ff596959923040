"""A study on one page: its figures in the paper's tables beside the printed ones, and what each of them rests on."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from mstl.runs import now
from mstl.study.checks import check_output
from mstl.study.gain_tables import gain_tables
from mstl.study.paper_tables import THREE, paper_tables
from mstl.study.provenance import grouped, recipe_rows
from mstl.study.render import render
from mstl.study.reported import PAPER_NETWORKS, prose_errors
from mstl.study.study_figures import heatmap_pictures, leep_pictures
from mstl.study.study_files import StudyFacts, read_study_folder
from mstl.study.study_parts import NodePart
from mstl.study.table import anchor, as_csv
from shards.errors import MstlError
from shards.files import write_atomic

_ORDER = ("finished", "failed", "blocked", "running", "interrupted", "waiting")
_NO_ENERGY = "Energy: not shown, for no run records what its device used."


def write_study_report(folder: Path, out: Path, *, title: str | None = None) -> Path:
    """Write the report on a study's folder as one HTML file, and its tables as CSVs; returns the CSVs' folder.

    All measured numbers come from the folder's files, all reported ones from the paper; what was not measured stays an
    empty cell. Nodes that failed, wait or cannot be read are listed with the reason. Raises MstlError for a damaged
    study.json and when the files cannot be written.
    """
    tables_folder = out.with_name(f"{out.stem}-tables")
    check_output(out)
    check_output(tables_folder / "table1.csv")
    facts = read_study_folder(folder)
    tables, gains = paper_tables(facts), gain_tables(facts)
    pictures, problems = heatmap_pictures(facts)
    finished = [node for node in facts.study.nodes if node.state == "finished"]
    page = render(
        "study.html.jinja",
        title=title or facts.study.title,
        made=now(),
        facts=facts,
        synthetic=_synthetic_note(finished),
        counts=_counts(facts),
        unfinished=_unfinished(facts),
        problems=[*(f"{name}: {why}" for name, why in facts.problems.items()), *problems],
        tables=tables,
        gains=gains,
        paper_names=PAPER_NETWORKS,
        prose=prose_errors(),
        leep=leep_pictures(facts),
        heatmaps=pictures,
        recipes=_recipes(facts),
        devices=_devices(facts),
        software=_software(facts),
        times=_times(facts),
        energy=_NO_ENERGY,
        groups=_groups(facts, out.absolute().parent),
    )
    tables_folder.mkdir(parents=True, exist_ok=True)
    for table in (*tables, *gains):
        write_atomic(tables_folder / f"{table.name}.csv", as_csv(table).encode())
    write_atomic(out, page.encode())
    return tables_folder


def _counts(facts: StudyFacts) -> list[tuple[str, int]]:
    counts = Counter(facts.state_of(node) for node in facts.study.nodes)
    return sorted(counts.items(), key=lambda pair: _ORDER.index(pair[0]) if pair[0] in _ORDER else len(_ORDER))


def _unfinished(facts: StudyFacts) -> list[dict[str, Any]]:
    """What has no result: a row for each failed node, one for all others of a name, network and state."""
    rows = []
    left = [node for node in facts.study.nodes if node.state != "finished"]
    for node in left:
        if node.state == "failed":
            why = "" if node.error is None else f"{node.error.what}: {node.error.why}"
            rows.append({"what": node.id, "state": "failed", "why": why, "log": node.log})
    others = [node for node in left if node.state != "failed"]
    key = lambda node: (node.name, node.network, facts.state_of(node))  # noqa: E731
    for (name, network, state), group in groupby(sorted(others, key=key), key=key):
        nodes = list(group)
        seeds = ", ".join(str(node.seed) for node in nodes)
        why = ""
        if state == "blocked":
            why = (
                f"it stands on {', '.join(dict.fromkeys(_failed_behind(facts, node) for node in nodes))}, which failed"
            )
        what = f"{name}/{network}, seed{'s' if len(nodes) > 1 else ''} {seeds}"
        rows.append({"what": what, "state": state, "why": why, "log": ""})
    return rows


def _failed_behind(facts: StudyFacts, node: NodePart) -> str:
    """The failed node that a blocked one stands on, its id."""
    waiting = list(node.parents)
    while waiting:
        parent = facts.nodes.get(waiting.pop(0))
        if parent is not None:
            if parent.state == "failed":
                return parent.id
            waiting += parent.parents
    return "a node"


def _recipes(facts: StudyFacts) -> list[dict[str, Any]]:
    """Each recipe of each node once: runs of other networks and seeds share it."""
    found: dict[tuple[str, str | None], list[NodePart]] = {}
    for node in facts.study.nodes:
        if node.id in facts.runs:
            found.setdefault((node.name, node.recipe_digest), []).append(node)
    names = Counter(name for name, _ in found)
    recipes = []
    for (name, _), nodes in found.items():
        record = facts.runs[nodes[0].id]
        who = name if names[name] == 1 else f"{name} ({', '.join(dict.fromkeys(node.network for node in nodes))})"
        note = f"{record.title}, flavour {record.body['flavour']}"
        recipes.append({"name": who, "note": note, "rows": recipe_rows(record)})
    return recipes


def _devices(facts: StudyFacts) -> list[tuple[str, int]]:
    runs = (f"{run.body['device']}, {_counted(run.body['world_size'], 'process', 'es')}" for run in facts.runs.values())
    scores = (f"{one.leep.device}, LEEP" for one in facts.results.values() if one.leep is not None)
    return Counter([*runs, *scores]).most_common()


def _counted(number: int, word: str, plural: str) -> str:
    return f"{number} {word}{'' if number == 1 else plural}"


def _software(facts: StudyFacts) -> list[dict[str, Any]]:
    runs = [(facts.nodes[name].name, run.body["software"]) for name, run in facts.runs.items()]
    scores = [(one.node.name, one.leep.software) for one in facts.results.values() if one.leep is not None]
    return [{**entry, "runs": list(dict.fromkeys(entry["runs"]))} for entry in grouped([*runs, *scores])]


def _times(facts: StudyFacts) -> list[dict[str, Any]]:
    """Wall time by node name, of all that has run."""
    rows = []
    for name in dict.fromkeys(node.name for node in facts.study.nodes):
        known = [node for node in facts.study.nodes if node.name == name and node.seconds is not None]
        seconds = [node.seconds for node in known if node.seconds is not None]
        if seconds:
            rows.append({"name": name, "nodes": len(known), "each": sum(seconds) / len(seconds), "sum": sum(seconds)})
    return rows


def _groups(facts: StudyFacts, beside: Path) -> list[dict[str, Any]]:
    """Every node, all seeds of a name and network together, with what it measured and where its record lies."""
    groups = []
    key = lambda node: (node.name, node.network)  # noqa: E731
    order = {name: number for number, name in enumerate(dict.fromkeys(node.name for node in facts.study.nodes))}
    for _, group in groupby(sorted(facts.study.nodes, key=lambda n: (order[n.name], n.network, n.seed)), key=key):
        nodes = list(group)
        rows = [
            {
                "node": node,
                "state": facts.state_of(node),
                "figures": _figures(facts, node),
                "link": _link(facts, node, beside),
            }
            for node in nodes
        ]
        groups.append({"anchor": anchor(nodes[0]), "rows": rows})
    return groups


def _figures(facts: StudyFacts, node: NodePart) -> str:
    result = facts.results.get(node.id)
    if result is None:
        return ""
    if result.leep is not None:
        return f"LEEP {result.values['bits']:.4f} bits".replace("-", "−")
    shown: Sequence[tuple[str, str]] = (*THREE, ("top5_accuracy", "Top-5"))
    texts = [f"{title} {100 * result.values[name]:.1f}" for name, title in shown if name in result.values]
    return ", ".join(texts)


def _link(facts: StudyFacts, node: NodePart, beside: Path) -> str:
    """The record of a node that has run, as an address beside the page; empty without one."""
    file = facts.folder.absolute() / node.path / ("leep.json" if node.kind == "leep" else "run.json")
    return Path(os.path.relpath(file, beside)).as_posix() if file.is_file() else ""


def _synthetic_note(nodes: Sequence[NodePart]) -> str:
    sources = dict.fromkeys(node.data.source for node in nodes if "sample" in node.data.source.lower())
    if not sources:
        return ""
    return (
        f"{', '.join(sources)}: sample images drawn by the program. Numbers measured on them, or after training on "
        "them, show that the software works; they say nothing about patients."
    )


def check_only_study(paths: Sequence[Path]) -> None:
    """Raise MstlError when a study is named beside other folders: a page is on one study, or on loose runs."""
    if len(paths) > 1:
        raise MstlError(
            "report",
            why="a study is reported by itself, and several folders are named",
            remedy="mstl report STUDY for the study; name its runs/NODE/NETWORK/SEED folders to compare runs",
        )
