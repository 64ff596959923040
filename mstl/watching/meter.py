"""Speed, losses and the time left, from the lines of metrics.jsonl and a clock; nothing here is shown or written."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

SMOOTHING_SECONDS = 20.0  # what is shown is a mean in which a step this long ago weighs 1/e
TRACE_SECONDS = 1e-6
# What stands in a step's line beside losses.
NOT_LOSSES = frozenset({"step", "epoch", "stage", "lr", "images_per_second", "data_wait", "ranks", "norm", "scale"})


class Meter:
    """Follows a run. Speeds and losses are means over about twenty seconds, each step weighing by the time it took.

    The time left comes from this session's own steps: those done before a resume, and the first one (in which the
    pipeline fills and kernels are chosen), tell nothing of the speed. It counts validations and saves in.
    """

    def __init__(self, steps: int, clock: Callable[[], float] = time.monotonic) -> None:
        """steps: of the whole run."""
        self.steps = steps
        self.done = 0
        self.entry: Mapping[str, Any] = {}
        self._clock = clock
        self._began = self._marked = clock()
        self._first: tuple[float, int] | None = None  # when this session's first step ended, and which it was
        self._sums: dict[str, tuple[float, float]] = {}  # name → sum of value x seconds, sum of seconds
        self._pace = (0.0, 0.0)  # steps, seconds

    def start(self, step: int) -> None:
        """Training begins behind this step."""
        self.done = step
        self._began = self._marked = self._clock()

    def step(self, entry: Mapping[str, Any]) -> None:
        """A step is done; `entry` is its line of metrics.jsonl."""
        now = self._clock()
        seconds = now - self._marked
        self.entry, self.done, self._marked = entry, int(entry["step"]), now
        if self._first is None:
            self._first = (now, self.done)
            self._add(entry, TRACE_SECONDS)  # better its figures than none; the next step outweighs them
            return
        self._add(entry, max(seconds, TRACE_SECONDS))
        steps, spent = self._pace
        fade = _fade(seconds)
        self._pace = (steps * fade + 1, spent * fade + seconds)

    def mark(self) -> None:
        """What came since the last step (a validation) is no part of the next one."""
        self._marked = self._clock()

    @property
    def losses(self) -> dict[str, float]:
        """The losses, and what else a stage tells of a step, in the stage's order."""
        return {name: self._mean(name) for name in self.entry if name in self._sums and name not in NOT_LOSSES}

    @property
    def images_per_second(self) -> float:
        return self._mean("images_per_second")

    @property
    def data_wait(self) -> float:
        """Which share of the time the device waited for images, 0 to 1."""
        return self._mean("data_wait")

    @property
    def steps_per_second(self) -> float | None:
        """None until this session has done two steps."""
        steps, spent = self._pace
        return steps / spent if spent > 0 else None

    @property
    def elapsed_seconds(self) -> float:
        """Of this session."""
        return self._clock() - self._began

    @property
    def left_seconds(self) -> float | None:
        """None until this session has done two steps."""
        if self.done >= self.steps:
            return 0.0
        if self._first is None or self.done <= self._first[1]:
            return None
        began, first = self._first
        each = (self._marked - began) / (self.done - first)
        return max(0.0, (self.steps - self.done) * each - (self._clock() - self._marked))

    def _mean(self, name: str) -> float:
        total, seconds = self._sums.get(name, (0.0, 1.0))
        return total / seconds

    def _add(self, entry: Mapping[str, Any], seconds: float) -> None:
        for name, value in entry.items():
            if isinstance(value, float) and math.isfinite(value):
                total, spent = self._sums.get(name, (0.0, 0.0))
                fade = _fade(seconds)
                self._sums[name] = (total * fade + value * seconds, spent * fade + seconds)


def _fade(seconds: float) -> float:
    return math.exp(-seconds / SMOOTHING_SECONDS)


def clock_text(seconds: float | None) -> str:
    """Hours, minutes and seconds as h:mm:ss, with days where there are any; dashes for None."""
    if seconds is None:
        return "-:--:--"
    whole = round(seconds)
    days, rest = divmod(whole, 86_400)
    text = f"{rest // 3600}:{rest // 60 % 60:02}:{rest % 60:02}"
    return f"{days}d {text}" if days else text
