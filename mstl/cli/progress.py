"""Progress of long work on stderr: a bar on a terminal, a line every few seconds in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, TaskID, TextColumn
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
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), _Left(),
    )  # fmt: skip
    with RichBars(*columns, console=Console(stderr=True)) as bars:
        yield _Bars(bars)


class Speed:
    """What a piece of work has done so far: steps, bytes, what was refused, and what an earlier run had done."""

    def __init__(self) -> None:
        self.done = self._skipped = self._bytes = self._refused = 0

    def add(self, n: int, size_bytes: int, refused: int) -> None:
        """Count steps that were done now."""
        self.done += n
        self._bytes += size_bytes
        self._refused += refused

    def skip(self, n: int) -> None:
        """Count steps that an earlier run has done."""
        self.done += n
        self._skipped += n

    def rate(self, seconds: float) -> float:
        """Steps a second, those of an earlier run left out; 0 before there is one."""
        return (self.done - self._skipped) / seconds if seconds > 0 else 0.0

    def describe(self, seconds: float) -> str:
        """For example: 1,200/s, 130.5 MB/s, 3 refused."""
        rate = self.rate(seconds)
        parts = [f"{rate:,.0f}/s" if rate >= 10 or not rate else f"{rate:.2g}/s"]
        if self._bytes and seconds > 0:
            parts.append(f"{self._bytes / seconds / 1e6:,.1f} MB/s")
        if self._refused:
            parts.append(f"{self._refused:,} refused")
        return ", ".join(parts)


class _Rate(ProgressColumn):
    def render(self, task: RichTask) -> Text:
        """The speed of the work since it began."""
        speed: Speed = task.fields["speed"]
        return Text(speed.describe(task.elapsed or 0.0) if speed.done else "", style="progress.data.speed")


class _Left(ProgressColumn):
    def render(self, task: RichTask) -> Text:
        """How long it took, or will take at the speed so far."""
        elapsed = task.elapsed or 0.0
        if task.finished:
            return Text(f"in {timedelta(seconds=round(elapsed))}", style="progress.elapsed")
        rate = task.fields["speed"].rate(elapsed)
        left = str(timedelta(seconds=round((task.remaining or 0.0) / rate))) if rate else "-:--:--"
        return Text(f"{left} left", style="progress.remaining")


class _Bars:
    """One bar for each piece of work, the finished ones staying above."""

    def __init__(self, bars: RichBars) -> None:
        self._bars = bars
        self._task: TaskID | None = None
        self._speed = Speed()

    def start(self, total: int, what: str) -> None:
        """Begin a bar."""
        self._speed = Speed()
        self._task = self._bars.add_task(what, total=total, speed=self._speed)

    def advance(self, n: int = 1, *, size_bytes: int = 0, refused: int = 0) -> None:
        """Move the newest bar on."""
        assert self._task is not None, "start comes before advance"
        self._speed.add(n, size_bytes, refused)
        self._bars.advance(self._task, n)

    def skip(self, n: int) -> None:
        """Move the newest bar on without claiming speed."""
        assert self._task is not None, "start comes before skip"
        self._speed.skip(n)
        self._bars.update(self._task, completed=self._speed.done)


class Lines:
    """A line when a piece of work begins or ends, and one every few seconds in between."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._what, self._total = "", 0
        self._speed = Speed()
        self._began = self._shown = clock()

    def start(self, total: int, what: str) -> None:
        """Begin a piece of work; ends the one before."""
        self.finish()
        self._what, self._total = what, total
        self._speed = Speed()
        self._began = self._shown = self._clock()
        click.echo(f"{what}: {total:,}", err=True)

    def advance(self, n: int = 1, *, size_bytes: int = 0, refused: int = 0) -> None:
        """Count, and speak when it is time."""
        self._speed.add(n, size_bytes, refused)
        self._speak()

    def skip(self, n: int) -> None:
        """Count without claiming speed."""
        self._speed.skip(n)
        self._speak()

    def finish(self) -> None:
        """Say how long the piece of work took, once."""
        if self._what:
            seconds = self._clock() - self._began
            told = self._speed.describe(seconds)
            click.echo(f"{self._what}: {self._speed.done:,} done in {seconds:,.1f} s, {told}", err=True)
            self._what = ""

    def _speak(self) -> None:
        now, done = self._clock(), self._speed.done
        if now - self._shown >= LINE_SECONDS and done < self._total:
            self._shown = now
            seconds = now - self._began
            rate = self._speed.rate(seconds)
            left = f"{(self._total - done) / rate:,.0f} s left" if rate else "time left unknown"
            click.echo(
                f"{self._what}: {done:,} of {self._total:,} ({done / self._total:.0%}), "
                f"{self._speed.describe(seconds)}, {left}",
                err=True,
            )
