"""What people see of a study: a live table on a terminal and plain lines in a log; the graph before it runs."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from mstl.study.estimate import makespan, seconds_left, step_seconds
from mstl.study.planned import Planned, StudyPlan
from mstl.study.runner import Running
from mstl.study.spec import NodeSpec
from mstl.study.state import State, StudyState
from mstl.watching.meter import clock_text
from mstl.watching.speaker import Speaker
from mstl.watching.stream import Stream

STATES: dict[State, str] = {"finished": "green", "running": "cyan", "waiting": "", "failed": "red", "blocked": "yellow"}
_DOING = {"train": "training", "judge": "evaluation", "leep": "LEEP"}


class StudyScreen:
    """A watcher of the runner (`mstl.study.runner.Watcher`)."""

    def __init__(
        self,
        plan: StudyPlan,
        state: StudyState,
        chosen: Collection[str],
        *,
        slots: int,
        every_seconds: float,
        stream: Stream,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """every_seconds: between lines on running nodes where stderr is no terminal."""
        self._plan, self._state, self._chosen, self._slots = plan, state, chosen, slots
        self._every, self._clock = every_seconds, clock
        self._said = clock()
        self._pace = step_seconds(plan.out)
        self._shown: RenderableType = Text("")
        self._lock = threading.Lock()  # the display is drawn by another thread
        self._live = stream.live
        self._speaker = Speaker(stream, self._draw if self._live else None)

    def changed(self, name: str) -> None:
        """A node has another state now."""
        self._pace = step_seconds(self._plan.out)
        status = self._state.states[name]
        if status.state == "failed" and status.error is not None:
            self.note(f"{self._count()} {name}: failed: {status.error.why}")
        elif status.state == "finished":
            self.note(f"{self._count()} {name}: finished in {clock_text(status.seconds)}")
        elif status.state == "blocked":
            self.note(f"{self._count()} {name}: blocked, it stands on one that failed")
        elif status.state == "running" and not self._live:
            planned = self._plan.nodes[name]
            self.note(f"{self._count()} {name}: begins{_steps_text(planned)}")

    def look(self, running: Sequence[Running]) -> None:
        """What runs now."""
        if self._live:
            shown = self._table(running)
            with self._lock:
                self._shown = shown
            return
        now = self._clock()
        if running and now - self._said >= self._every:
            self._said = now
            for one in running:
                self.note(f"{one.planned.node.id}: {_told(one)}")
            self.note(f"{self._count()} {self._left(running)}")

    def note(self, text: str) -> None:
        """A line that stays."""
        self._speaker.say(text)

    def close(self) -> None:
        """The study is over."""
        with self._lock:
            self._shown = Text("")
        self._speaker.close()

    def _left(self, running: Sequence[Running]) -> str:
        return left_text(self._plan, self._state, self._chosen, self._slots, self._pace, running)

    def _count(self) -> str:
        """For example: [12/42]"""
        counts = self._counts()
        done = counts["finished"] + counts["failed"] + counts["blocked"]
        return f"[{done}/{len(self._chosen)}]"

    def _counts(self) -> Counter[State]:
        return Counter(self._state.states[name].state for name in self._chosen)

    def _draw(self) -> RenderableType:
        with self._lock:
            return self._shown

    def _table(self, running: Sequence[Running]) -> RenderableType:
        counts = self._counts()
        grid = Table.grid(expand=True, padding=(0, 1))
        grid.add_column(ratio=1)
        grid.add_column(no_wrap=True)
        grid.add_row(
            ProgressBar(total=len(self._chosen), completed=counts["finished"]),
            self._left(running),
        )
        title = Text.assemble((self._plan.study.name, "bold"), "  ", counts_text(counts))
        table = Table(box=None, header_style="bold", pad_edge=False)
        for name in ("node", "on", "state"):
            table.add_column(name, no_wrap=True)
        for one in running:
            table.add_row(one.planned.node.id, one.slot.name, _told(one))
        return Group(title, grid, *([table] if running else []))


def counts_text(counts: Counter[State]) -> Text:
    """For example: 12 finished, 2 running, 28 waiting"""
    parts = [Text(f"{counts[state]} {state}", style=style) for state, style in STATES.items() if counts[state]]
    return Text(", ").join(parts)


def left_text(
    plan: StudyPlan,
    state: StudyState,
    chosen: Collection[str],
    slots: int,
    pace: Mapping[str, float],
    running: Sequence[Running] = (),
) -> str:
    """How long is left: "unknown" where nothing of it is known, "at least" where a part is not."""
    open_nodes = [plan.nodes[name] for name in chosen if state.states[name].state in ("waiting", "running")]
    left = seconds_left(open_nodes, state.states, pace)
    for one in running:
        left[one.planned.node.id] = _own_left(one, left[one.planned.node.id])
    known = {name: seconds for name, seconds in left.items() if seconds is not None}
    if not left:
        return "nothing left to do"
    if not known:
        return "time left unknown: nothing like it has run yet"
    total = clock_text(makespan(plan.graph, known, slots))
    unknown = len(left) - len(known)
    return f"{total} left" if not unknown else f"more than {total} left: the time of {unknown} more is unknown"


def _own_left(one: Running, estimated: float | None) -> float | None:
    """Seconds left for a running node: from earlier ones like it, else from its own steps."""
    spent = time.monotonic() - one.began
    if estimated is not None:
        return max(0.0, estimated - spent)
    if one.progress is None or one.first is None or one.progress.step <= one.first[1]:
        return None
    pace = (time.monotonic() - one.first[0]) / (one.progress.step - one.first[1])
    return pace * (one.planned.steps - one.progress.step)


def _told(one: Running) -> str:
    """For example: training, epoch 3, step 40 of 120, loss 0.4311"""
    words = [_DOING[one.steps[0]]]
    if one.steps[0] == "train" and one.progress is not None:
        words += [f"epoch {one.progress.epoch + 1}", f"step {one.progress.step:,} of {one.planned.steps:,}"]
        words += [] if one.progress.loss is None else [f"loss {one.progress.loss:.4g}"]
    return ", ".join(words)


def _steps_text(planned: Planned) -> str:
    if planned.training is None:
        return ""
    return ", 1 step" if planned.steps == 1 else f", {planned.steps:,} steps"


def _several(values: Sequence[object], one: str, many: str) -> str:
    """For example: 3 networks; of one its name."""
    if len(values) > 1:
        return f"{len(values)} {many}"
    return f"{one} {values[0]}" if one == "seed" else str(values[0])


def graph_tree(plan: StudyPlan, state: StudyState, chosen: Collection[str]) -> Tree:
    """The study's nodes, each under the one it starts from, with how many of its runs stand how."""
    title = plan.study.title or plan.study.name
    tree = Tree(Text.assemble((title, "bold"), f"  {plan.out}"))
    branches: dict[str, Tree] = {}
    pace = step_seconds(plan.out)
    for spec in {planned.node.spec.name: planned.node.spec for planned in plan.nodes.values()}.values():
        own = [planned for planned in plan.nodes.values() if planned.node.spec.name == spec.name]
        branch = tree if spec.source is None else branches[spec.source]
        branches[spec.name] = branch.add(_line(spec, own, state, chosen, pace))
    return tree


def _line(
    spec: NodeSpec, own: Sequence[Planned], state: StudyState, chosen: Collection[str], pace: Mapping[str, float]
) -> Text:
    counts = Counter(state.states[planned.node.id].state for planned in own if planned.node.id in chosen)
    networks = list(dict.fromkeys(planned.node.network for planned in own))
    seeds = list(dict.fromkeys(planned.node.seed for planned in own))
    what = "LEEP" if spec.kind == "leep" else str(spec.stage) + (f" ({spec.ssl})" if spec.ssl else "")
    line = Text.assemble((spec.name, "bold"), f"  {what} on {spec.data}")
    line.append(f" from {spec.init}" if spec.init else "")
    line.append(f", {_several(networks, 'network', 'networks')} x {_several(seeds, 'seed', 'seeds')}")
    line.append(_steps_text(own[0]))
    if not counts:
        return line.append("  not chosen", style="dim")
    line.append("  ").append(counts_text(counts))
    left = seconds_left([planned for planned in own if planned.node.id in chosen], state.states, pace)
    known = [seconds for seconds in left.values() if seconds is not None]
    if len(known) < len(left):
        line.append("  time unknown", style="dim")
    elif any(known):
        line.append(f"  {clock_text(sum(known))}", style="dim")
    failed = sum(state.states[planned.node.id].error is not None for planned in own)
    return line.append(f"  {failed} failed before", style="red") if failed else line
