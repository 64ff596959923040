"""launch/train.py with one fault: at a step of one rank, what MSTL_FAULT says (JSON, see Fault)."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import psutil

import launch.engine
from launch.train import main
from mstl.engine import StepResult
from pipelines.batch import Batch


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """In this rank's update number `step`: a signal `to` a process, or a batch that is not a number.

    once: a file that is made, and that keeps the fault from happening again.
    """

    rank: int
    step: int
    to: Literal["self", "launcher", "runner", "batch"]
    signal: int = 0
    once: str | None = None

    def strike(self, batch: Batch) -> Batch:
        if self.once is not None:
            if Path(self.once).exists():
                return batch
            Path(self.once).touch()
        if self.to == "batch":
            return replace(batch, views={name: view * float("nan") for name, view in batch.views.items()})
        launcher = psutil.Process(os.getppid())
        runner = launcher.parent()
        assert runner is not None
        os.kill({"self": os.getpid(), "launcher": launcher.pid, "runner": runner.pid}[self.to], self.signal)
        return batch


if __name__ == "__main__":
    fault = Fault(**json.loads(os.environ["MSTL_FAULT"]))
    update = launch.engine.DeepSpeedEngine.update
    count = 0

    def faulty(self: Any, batch: Batch, lr: float) -> StepResult:
        global count
        count += 1
        if count == fault.step and int(os.environ["RANK"]) == fault.rank:
            batch = fault.strike(batch)
        return update(self, batch, lr)

    launch.engine.DeepSpeedEngine.update = faulty  # type: ignore[method-assign]
    main()
