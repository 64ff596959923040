"""How long what is left of a study will take, from what its finished nodes took; where none is like it, unknown."""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from mstl.study.graph import Graph
from mstl.study.planned import Planned
from mstl.study.state import Status, read_records


def step_seconds(out: Path) -> dict[str, float]:
    """Seconds for each step of finished nodes, evaluation and start counted in, by `_key(size)`: their median."""
    found: dict[str, list[float]] = {}
    for body in read_records(out):
        seconds, steps = body.get("seconds"), body.get("steps")
        if body.get("state") == "finished" and isinstance(seconds, int | float) and isinstance(steps, int) and steps:
            found.setdefault(_key(body.get("size")), []).append(seconds / steps)
    return {key: median(values) for key, values in found.items()}


def seconds_left(
    nodes: Iterable[Planned], states: Mapping[str, Status], pace: Mapping[str, float]
) -> dict[str, float | None]:
    """Seconds that each node still needs, by its id: 0 where it is finished, None where nothing like it has run.

    Like it: the same stage, method, network, image size and batch (`Planned.size`).
    """
    left: dict[str, float | None] = {}
    for planned in nodes:
        name, status = planned.node.id, states[planned.node.id]
        each = pace.get(_key(planned.size))
        if status.state == "finished":
            left[name] = 0.0
        else:
            left[name] = None if each is None else max(0.0, each * planned.steps - (status.seconds or 0.0))
    return left


def makespan(graph: Graph, left: Mapping[str, float], slots: int) -> float:
    """Seconds until all nodes in `left` are done, each started as soon as its parents are done and a slot is free.

    Nodes start in the graph's order, as the runner starts them.
    """
    waiting = [name for name in graph.nodes if name in left]
    done: set[str] = {name for name in graph.nodes if name not in left}
    running: list[tuple[float, str]] = []
    now = 0.0
    while waiting or running:
        for name in list(waiting):
            if len(running) < slots and done.issuperset(graph.nodes[name].parents):
                waiting.remove(name)
                heapq.heappush(running, (now + left[name], name))
        now, name = heapq.heappop(running)
        done.add(name)
    return now


def _key(size: Any) -> str:
    return json.dumps(size)
