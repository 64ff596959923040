"""Rank 0's view of a run on stderr: a live display on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mstl.runs import best_validation, read_metrics
from mstl.watching.meter import Meter, clock_text
from mstl.watching.speaker import Speaker
from mstl.watching.stream import Stream
from mstl.watching.text import best_text, line_text, losses_text, metrics_text, speed_text


class Screen:
    """A listener (`mstl.watch`) that shows what it is told."""

    def __init__(
        self,
        run: Path,
        *,
        stage: str,
        steps: int,
        epochs: int,
        every_seconds: float,
        stream: Stream,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """steps and epochs: of the whole run. every_seconds: between plain lines."""
        self._run, self._stage, self._epochs = run, stage, epochs
        self._every, self._clock = every_seconds, clock
        self._meter = Meter(steps, clock)
        self._last: dict[str, Any] | None = None
        self._best: dict[str, Any] | None = None
        self._said: float | None = None
        self._lock = threading.Lock()  # the display is drawn by another thread
        self._live = stream.live
        self._speaker = Speaker(stream, self._draw if self._live else None)

    def start(self, step: int) -> None:
        """Training begins, or continues, behind this step."""
        validations = [entry for entry in read_metrics(self._run) if "split" in entry and entry["step"] <= step]
        with self._lock:
            self._meter.start(step)
            self._last, self._best = validations[-1] if validations else None, best_validation(validations)

    def step(self, entry: Mapping[str, Any]) -> None:
        """A step is done; `entry` is its line of metrics.jsonl."""
        with self._lock:
            self._meter.step(entry)
        if self._live:
            return
        now = self._clock()
        # The first one shows that it goes, the last one that it is done.
        if self._said is None or now - self._said >= self._every or self._meter.done == self._meter.steps:
            self._said = now
            self.note(line_text(self._meter, self._epochs))

    def validation(self, entry: Mapping[str, Any]) -> None:
        """An epoch was validated; `entry` is its line of metrics.jsonl."""
        with self._lock:
            self._meter.mark()
            self._last = dict(entry)
            self._best = best_validation([*([] if self._best is None else [self._best]), self._last])
            best = self._best
        # On a terminal only the last one stays: a line an epoch would scroll everything else away.
        if not self._live or self._meter.done == self._meter.steps:
            of_all = f"; best {best_text(best)}" if best is not None else ""
            self.note(f"epoch {entry['epoch'] + 1}/{self._epochs} on {entry['split']}: {metrics_text(entry)}{of_all}")

    def note(self, text: str) -> None:
        """A line that stays."""
        self._speaker.say(f"{self._run.name}: {text}")

    def close(self) -> None:
        """Training is over, or has failed."""
        self._speaker.close()

    def _draw(self) -> RenderableType:
        with self._lock:
            meter = self._meter
            epoch = f"epoch {int(meter.entry['epoch']) + 1}/{self._epochs}" if meter.entry else "before the first step"
            title = Text.assemble((self._run.name, "bold"), f"  stage {self._stage}  {epoch}")
            bar = Table.grid(expand=True, padding=(0, 1))
            bar.add_column(ratio=1)
            bar.add_column(no_wrap=True)
            bar.add_row(
                ProgressBar(total=meter.steps, completed=meter.done),
                f"{meter.done:,}/{meter.steps:,} steps  {clock_text(meter.elapsed_seconds)} so far, "
                f"{clock_text(meter.left_seconds)} left",
            )
            below = [Text(speed_text(meter)), Text(losses_text(meter))] if meter.entry else []
            if self._last is not None:
                below.append(Text(f"validation of epoch {self._last['epoch'] + 1}: {metrics_text(self._last)}"))
            if self._best is not None:
                below.append(Text(f"best: {best_text(self._best)}", style="bold"))
            title.no_wrap, title.overflow = True, "ellipsis"
            return Group(title, bar, *below)
