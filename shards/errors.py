"""The one error a user is meant to see: what failed, why, and how to mend it."""

from __future__ import annotations

from collections.abc import Callable


class MstlError(Exception):
    """An expected failure (bad input, missing file); the command prints it as one line and exits with 1.

    `what` names the thing that failed, `why` the cause, `remedy` what the user should do about it.
    """

    def __init__(self, what: str, *, why: str, remedy: str) -> None:
        super().__init__(what, why, remedy)
        self.what = what
        self.why = why
        self.remedy = remedy

    def __reduce__(self) -> tuple[Callable[[str, str, str], MstlError], tuple[str, str, str]]:
        """Pickling calls the class with positional arguments; a worker process's error must arrive whole."""
        return _rebuilt, (self.what, self.why, self.remedy)

    def __str__(self) -> str:
        return f"{self.what}: {self.why}. {self.remedy}"


def _rebuilt(what: str, why: str, remedy: str) -> MstlError:
    return MstlError(what, why=why, remedy=remedy)
