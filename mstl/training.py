"""What the training loop works on, and who it answers to."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from mstl.engine import Engine
from mstl.recipes import Recipe
from mstl.stages import Stage
from pipelines.loader import Loader


class Watch(Protocol):
    """Who is told how training goes; only rank 0 has one that shows anything."""

    def start(self, step: int) -> None: ...

    def step(self, entry: Mapping[str, Any]) -> None: ...

    def validation(self, entry: Mapping[str, Any]) -> None: ...

    def note(self, text: str) -> None: ...

    def alert(self, text: str) -> None: ...


class Stop(Protocol):
    """Whether somebody asked this process to stop (a signal)."""

    @property
    def requested(self) -> bool: ...


@dataclass(kw_only=True, slots=True)
class Training:
    """One stage's training on this rank; `val_loader` is None where the shard set has no val split.

    done: steps of all epochs so far. validated: epochs that have been validated. best: the highest validation score so
    far, equal on all ranks; best_weights: those of that validation in host memory, on rank 0 only. saving:
    the loop waits for a checkpoint to be written. rescue: called by whoever ends this process over the loop's head; it
    brings a save under way to its end where that can be.
    """

    name: str
    stage: Stage
    engine: Engine
    recipe: Recipe
    loader: Loader
    val_loader: Loader | None
    run: Path
    watch: Watch
    stop: Stop
    done: int = field(default=0, init=False)
    validated: int = field(default=0, init=False)
    best: float = field(default=-math.inf, init=False)
    best_weights: dict[str, Tensor] | None = field(default=None, init=False)
    saving: bool = field(default=False, init=False)
    rescue: Callable[[], None] | None = field(default=None, init=False)
