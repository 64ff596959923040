"""The curves of a run, drawn when its training ends, however it ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from shards.errors import MstlError


class Curves:
    """A listener (`mstl.watch`) that writes RUN/curves.png at the end; where that fails it says so and no more."""

    def __init__(self, run: Path, say: Callable[[str], None]) -> None:
        self._run, self._say = run, say
        self._trained = False

    def start(self, step: int) -> None:
        """Nothing to draw yet."""

    def step(self, entry: Mapping[str, Any]) -> None:  # noqa: ARG002 - a listener's signature
        """There is something to draw."""
        self._trained = True

    def validation(self, entry: Mapping[str, Any]) -> None:
        """It is in the log."""

    def note(self, text: str) -> None:
        """Texts are for people who look on."""

    def close(self) -> None:
        """Draw; matplotlib is imported only here."""
        if not self._trained:
            return
        from mstl.curves import draw_curves

        try:
            self._say(f"curves in {draw_curves(self._run)}")
        except (MstlError, OSError, ValueError) as error:
            self._say(f"no curves: {error}")
