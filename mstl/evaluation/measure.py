"""From predictions to figures with intervals: everything metrics.json says of a split, without a run or a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mstl.evaluation.calibration import calibrated
from mstl.evaluation.intervals import Clusters, Interval, bootstrap, clusters_of, interval, intervals, method
from mstl.evaluation.metrics import as_json, confusion_counts
from mstl.evaluation.predictions import Predictions, Table
from mstl.evaluation.weighted import (
    Statistic,
    Values,
    as_they_are,
    classes_absent,
    many_classes,
    probability_errors,
    renamed,
    roc_heights,
    together,
    two_classes,
)
from shards.progress import QUIET, Progress

ROC_GRID = np.linspace(0, 1, 101)
MOST_RANKED = 1_000_000_000  # classes × images × resamples: above it sorting for each class would take minutes


@dataclass(frozen=True, kw_only=True, slots=True)
class Band:
    """A pointwise 95 % band of a curve: x, low and high [G]."""

    x: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What to measure. positive: index of the positive class, None unless there are two.

    threshold and temperature: chosen beforehand, on other images; None to leave them out.
    """

    classes: Sequence[str]
    positive: int | None
    threshold: float | None
    temperature: float | None
    resamples: int
    seed: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What was found. body: the part of metrics.json; roc: the band of the ROC curve, where there is one."""

    body: dict[str, Any]
    roc: Band | None


def measure(table: Table, asked: Asked, *, progress: Progress = QUIET) -> Measured:
    """All metrics of predictions with their bootstrap intervals.

    body has `metrics` at the more probable class, their `intervals`, `bootstrap` (how those were made), `confusion`
    (rows: truth), and, where they apply, `operating` (metrics at the threshold), `calibration` (Brier score and ECE
    with the temperature) and `per_class` (each class against the rest).
    """
    found = table.predictions
    clusters = clusters_of(table.patients)
    points = as_they_are(_statistic(found, asked, ranked=True), len(found))
    ranked = asked.positive is not None or len(asked.classes) * len(found) * asked.resamples <= MOST_RANKED
    statistic = _statistic(found, asked, ranked=ranked)
    values = bootstrap(statistic, clusters, resamples=asked.resamples, seed=asked.seed, progress=progress)
    spans = intervals(values, clusters)
    metrics = {
        name: float(value) for name, value in points.items() if value.ndim == 0 and "/" not in name and name != "absent"
    }
    body: dict[str, Any] = {
        "metrics": as_json(metrics),
        "intervals": _shown(metrics, spans),
        "bootstrap": method(
            clusters, resamples=asked.resamples, seed=asked.seed, one_class=int(values["absent"].sum())
        ),
        "confusion": confusion_counts(found.probabilities, found.labels).tolist(),
    }
    if asked.threshold is not None:
        body["operating"] = _named_part("operating/", points, spans)
        assert asked.positive is not None
        yes = found.probabilities[:, asked.positive].astype(np.float64) >= asked.threshold
        guesses = np.where(yes, asked.positive, 1 - asked.positive)
        body["operating"]["confusion"] = confusion_counts(np.eye(2)[guesses], found.labels).tolist()
    if asked.temperature is not None:
        body["calibration"] = _named_part("calibrated/", points, spans)
    if asked.positive is None:
        body["per_class"] = _per_class(found, asked.classes, points, values, clusters)
    return Measured(body=body, roc=_band(values, clusters))


def _statistic(found: Predictions, asked: Asked, *, ranked: bool) -> Statistic:
    probabilities, labels = found.probabilities, found.labels
    parts = [classes_absent(labels, len(asked.classes))]
    if asked.positive is None:
        parts.append(many_classes(probabilities, labels, ranked=ranked))
    else:
        scores, positives = probabilities[:, asked.positive], labels == asked.positive
        predicted = probabilities.argmax(1) == asked.positive
        parts += [two_classes(scores, positives, predicted, asked.threshold), roc_heights(scores, positives, ROC_GRID)]
    if asked.temperature is not None:
        softer = calibrated(probabilities, asked.temperature)
        truth = np.zeros_like(softer)
        truth[np.arange(len(labels)), labels] = 1
        if asked.positive is None:
            errors = probability_errors(softer.max(1), softer.argmax(1) == labels, ((softer - truth) ** 2).sum(1))
        else:
            one, hits = softer[:, asked.positive], labels == asked.positive
            errors = probability_errors(one, hits, (one - hits) ** 2)
        parts.append(renamed(errors, "calibrated/"))
    return together(*parts)


def _named_part(prefix: str, points: dict[str, Values], spans: dict[str, Interval]) -> dict[str, Any]:
    metrics = {name.removeprefix(prefix): float(value) for name, value in points.items() if name.startswith(prefix)}
    found = {name.removeprefix(prefix): span for name, span in spans.items() if name.startswith(prefix)}
    return {"metrics": as_json(metrics), "intervals": _shown(metrics, found)}


def _shown(metrics: dict[str, float], spans: dict[str, Interval]) -> dict[str, dict[str, Any] | None]:
    """Each metric's interval; null for one that was not resampled."""
    return {name: spans[name].as_json() if name in spans else None for name in metrics}


def _per_class(
    found: Predictions, classes: Sequence[str], points: dict[str, Values], values: dict[str, Values], clusters: Clusters
) -> list[dict[str, Any]]:
    counts = np.bincount(found.labels, minlength=len(classes))
    names = [name.removeprefix("class/") for name in points if name.startswith("class/")]
    rows = []
    for index, title in enumerate(classes):
        metrics = {name: float(points[f"class/{name}"][index]) for name in names}
        drawn = {name: values[f"class/{name}"][:, index] for name in names if f"class/{name}" in values}
        spans = _shown(metrics, intervals(drawn, clusters))
        rows.append({"class": title, "n": int(counts[index]), "metrics": as_json(metrics), "intervals": spans})
    return rows


def _band(values: dict[str, Values], clusters: Clusters) -> Band | None:
    """None where the ROC curve has no interval at its points."""
    if "roc" not in values or clusters.count < 2:
        return None
    spans = [interval(column) for column in values["roc"].T]
    if any(span.low is None for span in spans):
        return None
    low, high = (np.array([getattr(span, side) for span in spans]) for side in ("low", "high"))
    return Band(x=ROC_GRID, low=low, high=high)
