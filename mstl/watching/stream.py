"""Writing to stderr so that nothing that becomes of the reader can stop training."""

from __future__ import annotations

import os
import sys
from contextlib import suppress

STDERR = 2


class Stream:
    """A text file over a descriptor, unbuffered. When its reader is gone it says nothing more, and raises nothing.

    Not Python's own stderr: text that cannot be written stays in that one's buffer, fails again when the process
    ends, and turns its exit code 0 into 120.
    """

    encoding = "utf-8"

    def __init__(self, descriptor: int | None = None) -> None:
        self._descriptor = _stderr() if descriptor is None else descriptor
        self.gone = False

    def write(self, text: str) -> int:
        """Write all of it, waiting for the reader where it is slow."""
        data = memoryview(text.encode(errors="replace"))
        while data and not self.gone:
            try:
                data = data[os.write(self._descriptor, data) :]
            except BlockingIOError:
                return len(text)  # a pipe that somebody made non-blocking is full: the rest of the line is lost
            except OSError:
                _silence(self._descriptor)
                self.gone = True  # last: who sees it may write there himself
        return len(text)

    def flush(self) -> None:
        """Nothing is held back."""

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return not self.gone and os.isatty(self._descriptor)

    @property
    def live(self) -> bool:
        """A terminal that can draw over what it has drawn."""
        return self.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown", "")


def _stderr() -> int:
    try:
        return sys.stderr.fileno()
    except (AttributeError, OSError, ValueError):  # none at all, replaced by an object of its own, or closed
        return STDERR


def _silence(descriptor: int) -> None:
    """Let whatever else writes there (warnings, libraries) write to nowhere instead of failing."""
    with suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, descriptor)
        finally:
            os.close(nowhere)
