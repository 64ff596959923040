"""How long work in this package reports its progress, without knowing what shows it."""

from typing import Protocol


class Progress(Protocol):
    """What shows progress: a bar on a terminal, lines in a log, or nothing."""

    def start(self, total: int, what: str) -> None:
        """Begin a piece of work of `total` steps, named `what`; it replaces the piece before it."""

    def advance(self, n: int = 1) -> None:
        """Count `n` more steps as done."""


class Silent:
    """Progress that nobody watches."""

    def start(self, total: int, what: str) -> None:
        """Show nothing."""

    def advance(self, n: int = 1) -> None:
        """Show nothing."""


QUIET: Progress = Silent()
