"""What finished runs say of themselves: records, logs and evaluations, read back for tables and figures."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mstl.evaluation.metrics import roc_curve
from mstl.runs import RunRecord, open_run, read_metrics
from mstl.study.figures import Curve
from shards.errors import MstlError
from shards.files import sha256_file

LONGEST_CHAIN = 20
Entry = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Parent:
    """Where a run's first weights came from. run: the parent's record, or None when it is a file or gone."""

    path: Path
    digest: str
    run: RunRecord | None

    @cached_property
    def changed(self) -> bool:
        """Whether the weights there are others than those the run started from; False when they are gone."""
        weights = self.path if self.run is None else self.run.weights
        return weights.is_file() and sha256_file(weights) != self.digest


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """One run: its record, its training log and its evaluations by split; what was never written is absent."""

    name: str
    record: RunRecord
    log: tuple[Entry, ...]
    evaluations: dict[str, Entry]

    @cached_property
    def steps(self) -> list[Entry]:
        """The log's training steps, in order."""
        return [entry for entry in self.log if "loss" in entry and "split" not in entry]

    @property
    def epochs(self) -> int | None:
        """Epochs with at least one step logged."""
        return len({entry["epoch"] for entry in self.steps}) or None

    @cached_property
    def epoch_losses(self) -> list[float]:
        """The mean training loss of each epoch that has one."""
        groups = groupby(self.steps, key=lambda entry: entry["epoch"])
        return [float(np.mean([entry["loss"] for entry in group])) for _, group in groups]

    @cached_property
    def best_validation(self) -> Entry | None:
        """The validation with the highest AUC, else accuracy, the earliest of equals; without either, the last."""
        entries = [entry for entry in self.log if entry.get("split") == "val"]
        for metric in ("auc", "accuracy"):
            scored = [entry for entry in entries if entry.get(metric) is not None]
            if scored:
                return max(scored, key=lambda entry: float(entry[metric]))
        return entries[-1] if entries else None

    @cached_property
    def parent(self) -> Parent | None:
        """None for a run that began with random weights."""
        return _parent(self.record)

    @cached_property
    def ancestry(self) -> tuple[str, ...]:
        """The stages behind this one, first to last; a parent that is not a run stands by its file name."""
        names: list[str] = []
        parent = self.parent
        while parent is not None and len(names) < LONGEST_CHAIN:
            names.append(parent.path.name if parent.run is None else parent.run.stage)
            parent = None if parent.run is None else _parent(parent.run)
        return tuple(reversed(names))

    @property
    def synthetic(self) -> bool:
        """Whether the data name themselves a sample: drawn by the program, not taken from patients."""
        return "sample" in str(self.record.body["shards"].get("source", "")).lower()

    def roc(self, split: str) -> Curve | None:
        """The ROC curve of an evaluated split; None without predictions of two classes that both occur."""
        evaluation = self.evaluations.get(split)
        file = self.record.path / "evaluation" / split / "predictions.csv"
        if evaluation is None or evaluation.get("positive") is None or not file.is_file():
            return None
        scores, labels = read_predictions(file)
        positives = labels == evaluation["classes"].index(evaluation["positive"])
        if positives.all() or not positives.any():
            return None
        x, y = roc_curve(scores, positives)
        return Curve(name=self.name, x=x, y=y)


def read_runs(paths: Sequence[Path]) -> list[RunFacts]:
    """The facts of run folders, each under the shortest end of its path that is its own.

    Raises MstlError without a readable run.json or for broken files, and for a folder named twice.
    """
    places = [path.resolve().parts for path in paths]
    if len(set(places)) < len(places):
        raise MstlError("runs", why="a run folder is named twice", remedy="Name each once")
    depth = 1
    while len({place[-depth:] for place in places}) < len(places):
        depth += 1
    return [_read_run(path, "/".join(place[-depth:])) for path, place in zip(paths, places, strict=True)]


def _read_run(path: Path, name: str) -> RunFacts:
    record = open_run(path)
    evaluations = {}
    try:
        log = tuple(read_metrics(path))
        for file in sorted(path.glob("evaluation/*/metrics.json")):
            evaluations[file.parent.name] = json.loads(file.read_text())
    except ValueError as error:
        raise MstlError(
            f"run {path}", why=f"a metrics file cannot be read ({error})", remedy="Evaluate or train the run again"
        ) from error
    return RunFacts(name=name, record=record, log=log, evaluations=evaluations)


def _parent(record: RunRecord) -> Parent | None:
    body = record.body.get("parent")
    if body is None:
        return None
    path = Path(body["path"])
    return Parent(path=path, digest=body["digest"], run=open_run(path) if (path / "run.json").is_file() else None)


def heatmap_path(run: Path, split: str) -> Path:
    """Where a run's heatmap grid lies unless the user says otherwise."""
    return run / "evaluation" / split / "heatmaps.png"


def heatmaps(runs: Sequence[Path], split: str = "test") -> dict[str, Path]:
    """The heatmap grids there are at their default place: caption → file."""
    files = [heatmap_path(run, split) for run in runs]
    return {
        f"{run.resolve().name}, {split} split": file for run, file in zip(runs, files, strict=True) if file.is_file()
    }


def read_predictions(file: Path) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The probability and label columns of a two-class predictions.csv; raises MstlError when they are not there."""
    try:
        with file.open(newline="") as text:
            rows = [(float(row["probability"]), int(row["label"])) for row in csv.DictReader(text)]
    except (KeyError, TypeError, ValueError) as error:
        raise MstlError(str(file), why=f"it cannot be read ({error!r})", remedy="Evaluate the run again") from error
    scores, labels = zip(*rows, strict=True) if rows else ((), ())
    return np.array(scores, dtype=np.float64), np.array(labels, dtype=np.int64)


def transfer_gains(runs: Sequence[RunFacts], split: str) -> list[tuple[str, dict[str, float]]]:
    """Per network with exactly one run with transfer and one without: its gain in each metric, as fractions.

    Metric of the pre-trained network minus that of the same network from scratch (paper section 5.5); only where both
    were evaluated on the same images.
    """
    gains = []
    for model in dict.fromkeys(run.record.model for run in runs):
        same = [run for run in runs if run.record.model == model and split in run.evaluations]
        with_transfer = [run.evaluations[split] for run in same if run.parent is not None]
        without = [run.evaluations[split] for run in same if run.parent is None]
        if len(with_transfer) != 1 or len(without) != 1:
            continue
        (after,), (before,) = with_transfer, without
        if after["shards"]["digest"] != before["shards"]["digest"]:
            continue
        pairs = {name: (value, before["metrics"].get(name)) for name, value in after["metrics"].items()}
        gains.append((model, {name: a - b for name, (a, b) in pairs.items() if a is not None and b is not None}))
    return gains
