"""Lines and a live display, written by a thread of their own: training never waits for a screen."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from contextlib import suppress

from rich.console import Console, RenderableType
from rich.live import Live

from mstl.watching.stream import Stream

REFRESH_SECONDS = 0.25
PATIENCE_SECONDS = 5.0  # at the end, for a reader that has stopped reading
MOST_WAITING = 1000  # lines; a stopped reader must not fill the memory


class Speaker:
    """Writes lines to a stream in order; on a terminal a display stays below them, redrawn four times a second."""

    def __init__(self, stream: Stream, draw: Callable[[], RenderableType] | None = None) -> None:
        """draw: what the display shows now, called in the thread; None for lines alone, without control characters."""
        self._stream, self._draw = stream, draw
        self._lines: queue.Queue[str | None] = queue.Queue(MOST_WAITING)
        # Daemon: a reader that never reads on must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def say(self, line: str) -> None:
        """Write a line soon; where a thousand wait already it is lost."""
        with suppress(queue.Full):
            self._lines.put_nowait(line)

    def close(self, patience_seconds: float = PATIENCE_SECONDS) -> None:
        """Write what is left, unless nobody reads it."""
        try:
            self._lines.put(None, timeout=patience_seconds)
        except queue.Full:
            with suppress(queue.Empty, queue.Full):  # the word to stop takes a line's place
                self._lines.get_nowait()
                self._lines.put_nowait(None)
            return
        self._thread.join(patience_seconds)

    def _run(self) -> None:
        if self._draw is None:
            while (line := self._lines.get()) is not None:
                self._stream.write(f"{line}\n")
            return
        console = Console(file=self._stream, highlight=False)  # type: ignore[arg-type]  # what rich uses of a file
        with Live(
            get_renderable=self._draw,
            console=console,
            auto_refresh=False,
            redirect_stdout=False,  # else everybody's prints would wait for this thread's screen
            redirect_stderr=False,
        ) as live:
            while True:
                try:
                    line = self._lines.get(timeout=REFRESH_SECONDS)
                except queue.Empty:
                    live.refresh()
                    continue
                if line is None:
                    break
                console.print(line, markup=False, soft_wrap=True)
