"""Watching a training run: one watch, told everything, which tells its listeners."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from mstl.distributed import rank
from mstl.watching.curves import Curves
from mstl.watching.loggers import TensorBoard, WandB
from mstl.watching.screen import Screen
from mstl.watching.stream import Stream

LINE_SECONDS = 10.0


class Listener(Protocol):
    """Whom a watch tells how training goes."""

    def start(self, step: int) -> None:
        """Training begins, or continues, behind this step."""

    def step(self, entry: Mapping[str, Any]) -> None:
        """A step is done; `entry` is its line of metrics.jsonl."""

    def validation(self, entry: Mapping[str, Any]) -> None:
        """An epoch was validated; `entry` is its line of metrics.jsonl."""

    def note(self, text: str) -> None:
        """A line for people."""

    def close(self) -> None:
        """Training is over, or has failed."""


class Watch:
    """Tells its listeners; one that fails is left out from then on, and training goes on. The first shows the notes.

    Without listeners it is the watch of every rank but the first, and speaks only of what concerns that rank alone.
    """

    def __init__(self, listeners: Sequence[Listener] = (), stream: Stream | None = None) -> None:
        self._listeners = list(listeners)
        self._voice = self._listeners[0] if self._listeners else None
        self._stream = Stream() if stream is None else stream

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *error: object) -> None:
        # The first one, the screen, hears what the others have to say at the end.
        for listener in reversed(self._listeners):
            self._try(listener, listener.close)

    def start(self, step: int) -> None:
        """Training begins, or continues, behind this step."""
        self._tell(lambda listener: listener.start(step))

    def step(self, entry: Mapping[str, Any]) -> None:
        """A step is done; `entry` is its line of metrics.jsonl."""
        self._tell(lambda listener: listener.step(entry))

    def validation(self, entry: Mapping[str, Any]) -> None:
        """An epoch was validated; `entry` is its line of metrics.jsonl."""
        self._tell(lambda listener: listener.validation(entry))

    def note(self, text: str) -> None:
        """A line for people, from the first rank."""
        self._tell(lambda listener: listener.note(text))

    def alert(self, text: str) -> None:
        """A line about this rank, from any."""
        if self._voice in self._listeners:
            self.note(f"rank {rank()}: {text}")
        else:
            self._stream.write(f"rank {rank()}: {text}\n")

    def _tell(self, what: Callable[[Listener], None]) -> None:
        for listener in list(self._listeners):
            self._try(listener, lambda: what(listener))  # noqa: B023 - called at once

    def _try(self, listener: Listener, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # noqa: BLE001 - a full disk or a lost service must not end a training
            self._listeners.remove(listener)
            self.alert(f"{type(listener).__name__} has failed and is left out from here on: {error}")


def open_watch(
    run: Path,
    *,
    stage: str,
    steps: int,
    epochs: int,
    config: Mapping[str, Any],
    line_seconds: float = LINE_SECONDS,
    tensorboard: bool = False,
    wandb: str | None = None,
) -> Watch:
    """The first rank's watch of a run: stderr, curves at the end, and the loggers asked for.

    config: what W&B shows as the run's settings. line_seconds: between lines where stderr is no terminal. Raises
    MstlError where W&B refuses.
    """
    stream = Stream()
    listeners: list[Listener] = [WandB(run, wandb, config)] if wandb is not None else []
    listeners += [TensorBoard(run)] if tensorboard else []
    screen = Screen(run, stage=stage, steps=steps, epochs=epochs, every_seconds=line_seconds, stream=stream)
    curves = Curves(run, screen.note)
    return Watch([screen, curves, *listeners], stream)
