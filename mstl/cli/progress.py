"""Progress of long work on stderr: a bar on a terminal, a line every few seconds in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichBars
from rich.progress import Task as RichTask
from rich.text import Text

from shards.progress import Progress

LINE_SECONDS = 5.0


@contextmanager
def rich_progress() -> Iterator[Progress]:
    """Show progress while the block runs."""
    if not sys.stderr.isatty():
        lines = Lines()
        yield lines
        lines.finish()
        return
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn(),
    )  # fmt: skip
    with RichBars(*columns, console=Console(stderr=True)) as bars:
        yield _Bars(bars)


class _Rate(ProgressColumn):
    def render(self, task: RichTask) -> Text:
        """Steps a second, recent ones counting most."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f}/s", style="progress.data.speed")


class _Bars:
    """One bar for each piece of work, the finished ones staying above."""

    def __init__(self, bars: RichBars) -> None:
        self._bars = bars
        self._task: TaskID | None = None

    def start(self, total: int, what: str) -> None:
        """Begin a bar."""
        self._task = self._bars.add_task(what, total=total)

    def advance(self, n: int = 1) -> None:
        """Move the newest bar on."""
        assert self._task is not None, "start comes before advance"
        self._bars.advance(self._task, n)


class Lines:
    """A line when a piece of work begins or ends, and one every few seconds in between."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._what, self._total, self._done = "", 0, 0
        self._began = self._shown = clock()

    def start(self, total: int, what: str) -> None:
        """Begin a piece of work; ends the one before."""
        self.finish()
        self._what, self._total, self._done = what, total, 0
        self._began = self._shown = self._clock()
        click.echo(f"{what}: {total:,}", err=True)

    def advance(self, n: int = 1) -> None:
        """Count, and speak when it is time."""
        self._done += n
        now = self._clock()
        if now - self._shown >= LINE_SECONDS and self._done < self._total:
            self._shown = now
            rate = self._done / (now - self._began)
            left_seconds = (self._total - self._done) / rate if rate else float("inf")
            click.echo(
                f"{self._what}: {self._done:,} of {self._total:,} ({self._done / self._total:.0%}), "
                f"{rate:,.0f}/s, {left_seconds:,.0f} s left",
                err=True,
            )

    def finish(self) -> None:
        """Say how long the piece of work took, once."""
        if self._what:
            click.echo(f"{self._what}: {self._done:,} done in {self._clock() - self._began:,.1f} s", err=True)
            self._what = ""
