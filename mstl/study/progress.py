"""How far a run is, from the end of its log: read many times, so without reading all of it."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mstl.runs import METRICS_NAME

_TAIL_BYTES = 16_384


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """The newest training step of a run: counted from 1, its epoch from 0, its loss."""

    step: int
    epoch: int
    loss: float | None


def read_progress(run: Path) -> Progress | None:
    """The newest step in a run's log; None before the first."""
    with suppress(OSError):
        with (run / METRICS_NAME).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            lines = file.read().split(b"\n")[:-1]  # what stands behind the last newline is being written
        for line in reversed(lines):
            with suppress(ValueError, KeyError, TypeError):
                entry = json.loads(line)
                if "split" not in entry:
                    loss = entry.get("loss")
                    known = float(loss) if isinstance(loss, int | float) else None
                    return Progress(step=int(entry["step"]), epoch=int(entry["epoch"]), loss=known)
    return None
