"""What a run's files must hold to be evaluated and reported: a damaged one is named, not stumbled over."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field, PositiveInt, model_validator

from mstl.run_body import Part, check_part
from mstl.runs import METRICS_NAME
from shards.errors import MstlError


class StepPart(Part):
    """A line of metrics.jsonl for a training step."""

    step: int
    epoch: int
    loss: float


class ValidationPart(Part):
    """A line of metrics.jsonl for a validation: beside these fields, metrics."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, float | None] = Field(init=False)

    step: int
    epoch: int
    split: str


class MeasuredPart(Part):
    digest: str
    same_as_run: bool


class IntervalPart(Part):
    low: float | None
    high: float | None


class EvaluationPart(Part):
    """metrics.json of an evaluation."""

    n: PositiveInt
    classes: list[str]
    positive: str | None
    metrics: dict[str, float | None]
    intervals: dict[str, IntervalPart | None] = Field(default_factory=dict)  # newer than the first evaluations
    shards: MeasuredPart

    @model_validator(mode="after")
    def _positive_is_a_class(self) -> EvaluationPart:
        if self.positive is not None and (len(self.classes) != 2 or self.positive not in self.classes):
            raise ValueError(f"positive class {self.positive!r} is none of two classes")
        return self


def check_log(run: Path, log: Sequence[Mapping[str, Any]]) -> None:
    """Raise MstlError naming the first entry of a run's metrics.jsonl that lacks a field."""
    for entry in log:
        check_part(
            ValidationPart if "split" in entry else StepPart,
            entry,
            f"{run / METRICS_NAME}, step {entry['step']}",
            "Remove that line, or bring the file back",
        )


def check_evaluation(file: Path, body: object) -> None:
    """Raise MstlError unless `body`, read from `file`, is what an evaluation writes."""
    check_part(EvaluationPart, body, str(file), "Evaluate the run again")


def check_output(file: Path) -> None:
    """Raise MstlError unless a file can be written there; before long work, so that it is not done in vain."""
    if file.is_dir():
        raise MstlError(str(file), why="it is a folder", remedy="Name a file in it")
    if file.exists() and not file.is_file():
        raise MstlError(str(file), why="it is no ordinary file", remedy="Name a file")
    above = next(folder for folder in file.absolute().parents if folder.exists())
    if not above.is_dir():
        raise MstlError(str(file), why=f"{above} is no folder", remedy="Name a file in a folder")
    if not os.access(above, os.W_OK | os.X_OK):
        raise MstlError(str(file), why=f"folder {above} cannot be written to", remedy="Name a file somewhere else")
