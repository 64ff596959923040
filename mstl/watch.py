"""Watching a training run: a live rich bar on a terminal, plain lines in a log."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mstl.distributed import rank

PLAIN_INTERVAL_SECONDS = 10.0


class Silent:
    """The watch of every rank but the first: shows nothing."""

    def __enter__(self) -> Silent:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def start(self, step: int) -> None:
        pass

    def step(self, entry: Mapping[str, Any]) -> None:
        pass

    def validation(self, entry: Mapping[str, Any]) -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def alert(self, text: str) -> None:
        """What concerns this rank alone is said by it."""
        Console(stderr=True, highlight=False).print(f"rank {rank()}: {text}", soft_wrap=True, markup=False)


class ConsoleWatch:
    """Rank 0's watch, writing to stderr."""

    def __init__(self, title: str, *, steps: int, epochs: int) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._title, self._steps, self._epochs = title, steps, epochs
        self._live = self._console.is_terminal
        self._said = 0.0
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}"),
            TimeElapsedColumn(),
            TextColumn("<"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._live,
        )
        self._task = self._bar.add_task(title, total=steps, state="")

    def __enter__(self) -> ConsoleWatch:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def start(self, step: int) -> None:
        """Training begins (or continues) behind this step."""
        self._bar.update(self._task, completed=step)

    def step(self, entry: Mapping[str, Any]) -> None:
        """A step is done; `entry` is its line of metrics.jsonl."""
        state = (
            f"epoch {entry['epoch'] + 1}/{self._epochs}  loss {entry['loss']:.3f}  lr {entry['lr']:.3g}  "
            f"{entry['images_per_second']:.0f} img/s  wait {entry['data_wait']:.0%}"
        )
        self._bar.update(self._task, completed=entry["step"], state=state)
        if self._live:
            return
        if time.monotonic() - self._said > PLAIN_INTERVAL_SECONDS or entry["step"] == self._steps:
            self._said = time.monotonic()
            self._console.print(f"{self._title}: step {entry['step']}/{self._steps}  {state}", soft_wrap=True)

    def validation(self, entry: Mapping[str, Any]) -> None:
        """An epoch was validated; `entry` is its line of metrics.jsonl."""
        values = "  ".join(
            f"{name} {value:.3f}" for name, value in entry.items() if isinstance(value, float) and name != "lr"
        )
        last = entry["epoch"] + 1 == self._epochs
        # On a terminal only the last one stays: a line an epoch would scroll the bar away.
        if not self._live or last:
            self.note(f"epoch {entry['epoch'] + 1}/{self._epochs} on {entry['split']}: {values}")

    def note(self, text: str) -> None:
        """A line that stays on the screen."""
        self._console.print(f"{self._title}: {text}", soft_wrap=True)

    def alert(self, text: str) -> None:
        """A line about this rank."""
        self.note(f"rank 0: {text}")
