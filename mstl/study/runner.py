"""Running a study: every node as soon as its parents are finished and a slot is free, until nothing can run."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from types import FrameType, TracebackType
from typing import Protocol

from mstl.run_list import lock_path
from mstl.study.devices import Slot
from mstl.study.digests import code_sha256
from mstl.study.planned import Planned, StudyPlan
from mstl.study.processes import failure_of, log_size, start_process, words_of
from mstl.study.progress import Progress, read_progress
from mstl.study.state import LOCK_NAME, Status, StudyState, undone
from mstl.surroundings import take_stop_signals
from shards.errors import MstlError
from shards.files import lock_file

POLL_SECONDS = 0.2
LOOK_SECONDS = 2.0  # between looks at the logs of running nodes


@dataclass
class Running:
    """A node in its slot. steps: what is left for it to do, the first one under way in `process`."""

    planned: Planned
    slot: Slot
    steps: list[str]
    process: subprocess.Popen[bytes]
    began: float
    behind: int
    progress: Progress | None = None
    first: tuple[float, int] | None = None  # when a step of this session was first seen, and which it was


class Watcher(Protocol):
    """Who is told how a study goes."""

    def changed(self, name: str) -> None:
        """A node has another state now."""

    def look(self, running: Sequence[Running]) -> None:
        """What runs now; told every other second."""

    def note(self, text: str) -> None:
        """A line for people."""


class Stop:
    """Counts the signals that ask to stop: the first lets trainings save, the second ends them, the third kills."""

    def __init__(self) -> None:
        self.count = 0
        self.number = 0

    def __enter__(self) -> Stop:
        self._give_back = take_stop_signals(self._take)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._give_back()

    def _take(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the signature of a handler
        self.count += 1
        self.number = number


def run_study(
    plan: StudyPlan, state: StudyState, slots: Sequence[Slot], chosen: Collection[str], watcher: Watcher
) -> int:
    """Run the chosen nodes that are not finished; returns 0 when all are, 1 when one is not, 128 + signal when stopped.

    A node that fails blocks what stands on it; the rest goes on. Raises MstlError when another process runs the study,
    and when the code is changed under way: nothing is started then that would not be what its digest says.
    """
    plan.out.mkdir(parents=True, exist_ok=True)
    lock = lock_file(plan.out / LOCK_NAME)
    if lock is None:
        raise MstlError(f"--out {plan.out}", why="another mstl run works there", remedy="Wait for it, or stop it")
    try:
        with Stop() as stop:
            state.save()
            runner = _Runner(plan, state, slots, chosen, watcher, stop)
            runner.run()
    finally:
        os.close(lock)
    if stop.count:
        return 128 + stop.number
    if runner.outdated:
        raise MstlError(
            f"study {plan.study.name}",
            why="the program's code was changed while it ran, so what is left would be another study's",
            remedy="Start it again: what stands on changed code runs anew, unless --any-code lets the change pass",
        )
    return int(any(state.states[name].state != "finished" for name in chosen))


class _Runner:
    def __init__(
        self,
        plan: StudyPlan,
        state: StudyState,
        slots: Sequence[Slot],
        chosen: Collection[str],
        watcher: Watcher,
        stop: Stop,
    ) -> None:
        self._plan, self._state, self._watcher, self._stop = plan, state, watcher, stop
        self._chosen = [name for name in plan.nodes if name in chosen]
        self._free = list(slots)
        self._running: list[Running] = []
        self._told = 0  # signals passed on
        self._looked = 0.0
        self.outdated = False
        self._waited: set[str] = set()

    def run(self) -> None:
        """Until nothing runs and nothing can be started."""
        try:
            while True:
                for one in list(self._running):
                    code = one.process.poll()
                    if code is not None:
                        self._ended(one, code)
                self._pass_on()
                ready = [] if self._stop.count or self.outdated else self._ready()
                for name in ready:
                    self._start(name)
                if not self._running and not ready:
                    return
                self._look()
                time.sleep(POLL_SECONDS)
        finally:
            # A bug or a full disk here: what runs is let save, and waited for.
            for one in self._running:
                _signal(one, signal.SIGTERM)
            for one in self._running:
                one.process.wait()

    def _ready(self) -> list[str]:
        """Nodes to start as soon as there is room, in order."""
        states = self._state.states
        return [
            name
            for name in self._chosen
            if states[name].state == "waiting"
            and all(states[parent].state == "finished" for parent in self._plan.graph.nodes[name].parents)
        ]

    def _start(self, name: str) -> None:
        planned = self._plan.nodes[name]
        # A study that was killed outright may have left a training that is still saving.
        if not self._free or self.outdated:
            return
        if _held(self._plan, planned):
            if name not in self._waited:
                self._waited.add(name)
                self._watcher.note(f"{name}: another process trains into its folder; waits for that to end")
            return
        steps = list(undone(self._plan.out, planned))
        if not steps:
            self._set(planned, replace(self._state.states[name], state="finished", error=None))
            return
        if not self._plan.any_code and code_sha256() != self._plan.code.sha256:
            self.outdated = True
            return
        slot = self._free.pop(0)
        behind = log_size(self._plan, planned)
        process = self._process(planned, slot, steps[0])
        one = Running(planned=planned, slot=slot, steps=steps, process=process, began=time.monotonic(), behind=behind)
        self._running.append(one)
        self._set(planned, replace(self._state.states[name], state="running", error=None))

    def _process(self, planned: Planned, slot: Slot, step: str) -> subprocess.Popen[bytes]:
        words = words_of(self._plan, planned, step, slot.ranks)
        return start_process(self._plan, planned, words, slot.environment)

    def _ended(self, one: Running, code: int) -> None:
        step = one.steps.pop(0)
        if code == 0 and one.steps and not self._stop.count:
            one.behind = log_size(self._plan, one.planned)
            one.process = self._process(one.planned, one.slot, one.steps[0])
            return
        self._running.remove(one)
        self._free.append(one.slot)
        name = one.planned.node.id
        spent = round((self._state.states[name].seconds or 0.0) + time.monotonic() - one.began, 1)
        left = undone(self._plan.out, one.planned)
        if not left:
            self._set(one.planned, Status(state="finished", seconds=spent))
        elif self._stop.count:
            self._set(one.planned, Status(state="waiting", seconds=spent))
        else:
            failure = failure_of(self._plan, one.planned, step, code, one.behind)
            self._set(one.planned, Status(state="failed", seconds=spent, error=failure))
            for child in self._state.block(name):
                self._watcher.changed(child)

    def _set(self, planned: Planned, status: Status) -> None:
        self._state.set(planned.node.id, status)
        self._watcher.changed(planned.node.id)

    def _pass_on(self) -> None:
        while self._told < self._stop.count:
            self._told += 1
            waits = {1: "stops: running nodes save and end (once more: they end at once)", 2: "ends running nodes"}
            self._watcher.note(waits.get(self._told, "kills running nodes"))
            for one in self._running:
                _signal(one, signal.SIGTERM if self._told < 3 else signal.SIGKILL)

    def _look(self) -> None:
        now = time.monotonic()
        if now - self._looked >= LOOK_SECONDS:
            self._looked = now
            for one in self._running:
                one.progress = read_progress(self._plan.out / one.planned.path)
                if one.progress is not None and one.first is None:
                    one.first = (now, one.progress.step)
            self._watcher.look(self._running)


def _held(plan: StudyPlan, planned: Planned) -> bool:
    """Whether somebody trains into a node's folder."""
    path = lock_path(plan.out / planned.path)
    if not path.is_file():
        return False
    lock = lock_file(path, shared=True)
    if lock is None:
        return True
    os.close(lock)
    return False


def _signal(one: Running, number: int) -> None:
    """To the command itself: `mstl train` passes it on to its ranks in the way that lets them save."""
    with suppress(ProcessLookupError):
        if number == signal.SIGKILL:
            os.killpg(one.process.pid, number)
        else:
            one.process.send_signal(number)
