"""How long work in this package reports its progress, without knowing what shows it."""

from typing import Protocol


class Progress(Protocol):
    """What shows progress: a bar on a terminal, lines in a log, or nothing."""

    def start(self, total: int, what: str) -> None:
        """Begin a piece of work of `total` steps, named `what`; it replaces the piece before it."""

    def advance(self, n: int = 1, *, size_bytes: int = 0, refused: int = 0) -> None:
        """Count `n` more steps as done, the bytes they took and how many of them were refused."""

    def skip(self, n: int) -> None:
        """Count `n` steps that an earlier run has done: they count for the total and not for the speed."""


class Silent:
    """Progress that nobody watches."""

    def start(self, total: int, what: str) -> None:
        """Show nothing."""

    def advance(self, n: int = 1, *, size_bytes: int = 0, refused: int = 0) -> None:
        """Show nothing."""

    def skip(self, n: int) -> None:
        """Show nothing."""


QUIET: Progress = Silent()
