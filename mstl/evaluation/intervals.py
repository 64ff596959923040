"""95 % intervals by the percentile bootstrap: images, or patients with all their images, drawn with replacement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mstl.evaluation.weighted import LOW, Statistic, Values
from shards.progress import QUIET, Progress

LEVEL, TAILS = 0.95, (0.025, 0.975)
RESAMPLES = 2000
MOST_UNDEFINED = 0.05  # of the resamples: without more of them than that an interval means little (ours)
FEW_CLUSTERS = 30  # below it the percentile bootstrap is known to be too narrow; the number is ours
_WEIGHTS_AT_ONCE = 2_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """A 95 % interval; None where there is none. undefined: resamples of which the value could not be computed."""

    low: float | None
    high: float | None
    undefined: int

    def as_json(self) -> dict[str, Any]:
        return {"low": self.low, "high": self.high, "undefined": self.undefined}


@dataclass(frozen=True, kw_only=True, slots=True)
class Clusters:
    """What is drawn together. unit: "patient" or "image"; index [N]: the cluster of each image, 0 to count − 1.

    without_patient: images whose patient is unknown; a single one, and images are drawn, not patients.
    """

    unit: str
    index: NDArray[np.int64]
    count: int
    without_patient: int


def clusters_of(patients: Sequence[str | None]) -> Clusters:
    """Patients where every image has one, else the images themselves."""
    unknown = sum(not patient for patient in patients)
    if unknown or not patients:
        return Clusters(unit="image", index=np.arange(len(patients)), count=len(patients), without_patient=unknown)
    names, index = np.unique(np.array(patients, dtype=object).astype(str), return_inverse=True)
    return Clusters(unit="patient", index=index.astype(np.int64), count=len(names), without_patient=0)


def bootstrap(
    statistic: Statistic, clusters: Clusters, *, resamples: int, seed: int, progress: Progress = QUIET
) -> dict[str, Values]:
    """The values [R] or [R, …] of a statistic in each resample, by name; the same for the same seed.

    A resample is as many clusters as there are, drawn with replacement; an image weighs as often as its cluster came.
    """
    random = np.random.default_rng(seed)
    at_once = max(1, _WEIGHTS_AT_ONCE // max(1, len(clusters.index)))
    parts: list[dict[str, Values]] = []
    progress.start(resamples, "bootstrap")
    for begin in range(0, resamples, at_once):
        rows = min(at_once, resamples - begin)
        drawn = random.integers(0, clusters.count, (rows, clusters.count))
        cells = (drawn + clusters.count * np.arange(rows)[:, None]).ravel()
        counts = np.bincount(cells, minlength=rows * clusters.count).reshape(rows, clusters.count)
        parts.append(statistic(counts.astype(np.float64)[:, clusters.index]))
        progress.advance(rows)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def interval(values: Values) -> Interval:
    """The middle 95 % of values [R].

    Resamples where the value is undefined (nan) are left out and counted; above 5 % of them there is no interval, for
    one of the rest would be of kinder samples than those measured.
    """
    defined = values[~np.isnan(values)]
    undefined = len(values) - len(defined)
    if undefined > MOST_UNDEFINED * len(values):
        return Interval(low=None, high=None, undefined=undefined)
    low, high = np.quantile(defined, TAILS)
    return Interval(low=float(low), high=float(high), undefined=undefined)


def intervals(values: dict[str, Values], clusters: Clusters) -> dict[str, Interval]:
    """The interval of each value that is one number a resample; none of a single cluster, which has no spread.

    Where there is "NAME#low" too, it gives the lower end, which is not below 0 (`weighted.probability_errors`).
    """
    single = {name: one for name, one in values.items() if one.ndim == 1 and not name.endswith(LOW)}
    if clusters.count < 2:
        return {name: Interval(low=None, high=None, undefined=int(np.isnan(one).sum())) for name, one in single.items()}
    found = {name: interval(one) for name, one in single.items()}
    for name in single.keys() & {name.removesuffix(LOW) for name in values if name.endswith(LOW)}:
        low = max(0.0, float(np.quantile(values[f"{name}{LOW}"], TAILS[0])))
        found[name] = replace(found[name], low=low)
    return found


def method(clusters: Clusters, *, resamples: int, seed: int, one_class: int) -> dict[str, Any]:
    """How intervals came about, for a record. one_class: resamples in which a class was missing."""
    return {
        "method": "percentile bootstrap",
        "level": LEVEL,
        "resamples": resamples,
        "seed": seed,
        "unit": clusters.unit,
        "clusters": clusters.count,
        "images_without_patient": clusters.without_patient,
        "resamples_without_a_class": one_class,
    }


def described(body: dict[str, Any]) -> str:
    """The same as a sentence: what was drawn, how often, and what to be wary of."""
    unit, count, unknown = body["unit"], body["clusters"], body["images_without_patient"]
    text = f"95 % intervals: bootstrap of {count} {unit}s, {body['resamples']:,} resamples"
    if unit == "image":
        who = "no patient is" if unknown == count else f"the patients of {unknown} are not"
        text += f" ({who} known: images of one patient are taken as independent)"
    if count < FEW_CLUSTERS:
        text += f". So few {unit}s: the true intervals are wider"
    return text
