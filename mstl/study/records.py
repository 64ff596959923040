"""What finished runs say of themselves: records, logs and evaluations, read back for tables and figures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from mstl.evaluation.metrics import roc_curve
from mstl.evaluation.predictions import read_table
from mstl.places import heatmap_path
from mstl.runs import RunRecord, best_validation, open_run, read_metrics
from mstl.study.checks import check_evaluation, check_log
from mstl.study.figures import Curve
from shards.errors import MstlError
from shards.files import sha256_file

LONGEST_CHAIN = 20
Entry = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Parent:
    """Where a run's first weights came from. run: the parent's record, or None when it is a file or not found."""

    path: Path
    digest: str
    run: RunRecord | None
    found: bool

    @property
    def weights(self) -> Path:
        return self.path if self.run is None else self.run.weights

    @cached_property
    def changed(self) -> bool:
        """Whether the weights there are others than those the run started from; False when they are gone."""
        return self.weights.is_file() and sha256_file(self.weights) != self.digest

    @property
    def title(self) -> str:
        """Its place in a chain: the stage of a run, the name of a file, or that it was not found."""
        if not self.found:
            return f"parent not found: {self.path}"
        return self.path.name if self.run is None else self.run.title


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

    @property
    def selects_best(self) -> bool:
        """Whether the run hands on its best validated weights, not its last."""
        return bool(self.record.recipe.get("checkpoint", {}).get("select") == "best")

    @cached_property
    def validation(self) -> Entry | None:
        """The validation of the weights handed on, or that would be so far, chosen as training chooses them.

        The last one; with checkpoint.select=best that of the highest AUC (else accuracy), the earliest of equals.
        """
        entries = [entry for entry in self.log if entry.get("split") == "val"]
        best = best_validation(entries) if self.selects_best else None
        return best or (entries[-1] if entries else None)

    @cached_property
    def parent(self) -> Parent | None:
        """None for a run that began with random weights."""
        return _parent(self.record)

    @cached_property
    def ancestry(self) -> tuple[str, ...]:
        """The stages behind this one, first to last; a parent that is not a run, or not found, stands by `title`."""
        names: list[str] = []
        parent = self.parent
        while parent is not None and len(names) < LONGEST_CHAIN:
            names.append(parent.title)
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
        positive = evaluation["classes"].index(evaluation["positive"])
        found = read_table(file, classes=2, positive=positive).predictions
        if len(found) != evaluation["n"]:
            raise MstlError(
                str(file),
                why=f"it has {len(found)} rows, and metrics.json counts {evaluation['n']} images",
                remedy="Evaluate the run again",
            )
        positives = found.labels == positive
        if positives.all() or not positives.any():
            return None
        x, y = roc_curve(found.probabilities[:, positive], positives)
        return Curve(name=self.name, x=x, y=y)


def read_runs(paths: Sequence[Path]) -> list[RunFacts]:
    """The facts of run folders, each under the shortest end of its path that is its own.

    Raises MstlError without a readable run.json or for broken files, and for a folder named twice.
    """
    return [_read_run(path, name) for path, name in zip(paths, _short_names(paths), strict=True)]


def _short_names(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths, equally deep, that tell them apart; raises MstlError for one named twice."""
    places = [path.resolve().parts for path in paths]
    if len(set(places)) < len(places):
        raise MstlError("runs", why="a run folder is named twice", remedy="Name each once")
    depth = 1
    while len({place[-depth:] for place in places}) < len(places):
        depth += 1
    return ["/".join(place[-depth:]) for place in places]


def _read_run(path: Path, name: str) -> RunFacts:
    record = open_run(path)
    log = tuple(read_metrics(path))
    check_log(path, log)
    files = sorted(path.glob("evaluation/*/metrics.json"))
    evaluations = {file.parent.name: _read_evaluation(file) for file in files}
    return RunFacts(name=name, record=record, log=log, evaluations=evaluations)


def _read_evaluation(file: Path) -> Entry:
    try:
        body: Entry = json.loads(file.read_text())
    except ValueError as error:
        raise MstlError(str(file), why=f"it cannot be read ({error})", remedy="Evaluate the run again") from error
    check_evaluation(file, body)
    return body


def _parent(record: RunRecord) -> Parent | None:
    body = record.body.get("parent")
    if body is None:
        return None
    named, digest = Path(body["path"]), body["digest"]
    if named.is_absolute():  # the current folder says nothing about a relative path
        parent = _parent_at(named, digest)
        if parent.found:
            return parent
    # Runs that were moved together still lie side by side; a name alone is no proof, the same weights are.
    parent = _parent_at(record.path.resolve().parent / named.name, digest)
    if parent.weights.is_file() and not parent.changed:
        return parent
    return Parent(path=named, digest=digest, run=None, found=False)


def _parent_at(path: Path, digest: str) -> Parent:
    run = open_run(path) if (path / "run.json").is_file() else None
    return Parent(path=path, digest=digest, run=run, found=run is not None or path.is_file())


def heatmaps(runs: Sequence[Path], split: str = "test") -> dict[str, Path]:
    """The heatmap grids there are at their default place: caption → file."""
    files = [heatmap_path(run, split) for run in runs]
    names = _short_names(runs)
    return {f"{name}, {split} split": file for name, file in zip(names, files, strict=True) if file.is_file()}


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
