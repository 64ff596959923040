"""Means over seeds with their 95 % intervals: of a figure, and of differences that are paired over seeds and images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student_t  # type: ignore[import-untyped]

from mstl.evaluation.intervals import LEVEL, RESAMPLES, bootstrap, clusters_of, interval
from mstl.evaluation.predictions import read_table
from mstl.evaluation.weighted import decisions, ranking, together
from mstl.study.study_files import Result
from shards.errors import MstlError

Span = tuple[float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A mean over seeds. sd: over them (n − 1), None for one seed.

    seeds_span: 95 % for other seeds of the same images, by Student's t; images_span: 95 % for other images and the same
    seeds, by the bootstrap; span: for both. None where there is none.
    """

    mean: float
    sd: float | None
    seeds: tuple[int, ...]
    seeds_span: Span | None
    images_span: Span | None
    span: Span | None


def estimate(values: Mapping[int, float], images: Span | None, bounds: Span = (-math.inf, math.inf)) -> Estimate | None:
    """The estimate of values by seed; None without any. images: an interval around their mean for other images.

    The two intervals' reaches to each side are added as squares: the variance of the mean is that over images plus the
    mean of that over seeds (law of total variance). `bounds` cut all intervals off.
    """
    if not values:
        return None
    found = np.array(list(values.values()), dtype=np.float64)
    mean, n = float(found.mean()), len(found)
    sd = float(found.std(ddof=1)) if n > 1 else None
    reach = 0.0 if sd is None else float(student_t.ppf((1 + LEVEL) / 2, n - 1)) * sd / math.sqrt(n)
    low, high = (mean, mean) if images is None else images
    both = (mean - math.hypot(reach, mean - low), mean + math.hypot(reach, high - mean))
    return Estimate(
        mean=mean,
        sd=sd,
        seeds=tuple(values),
        seeds_span=None if sd is None else _cut((mean - reach, mean + reach), bounds),
        images_span=None if images is None else _cut(images, bounds),
        span=None if sd is None and images is None else _cut(both, bounds),
    )


def _cut(span: Span, bounds: Span) -> Span:
    return max(bounds[0], span[0]), min(bounds[1], span[1])


def level(results: Sequence[Result], metric: str, bounds: Span) -> Estimate | None:
    """A metric of the runs of one node and network, one a seed; those that lack it are left out.

    The interval for other images reaches as far from the mean as the runs' own do on average: the runs share their
    images, so more seeds make it no narrower.
    """
    there = [result for result in results if result.values.get(metric) is not None]
    values = {result.node.seed: result.values[metric] for result in there}
    spans = [result.spans.get(metric) for result in there]
    known = [span for span in spans if span is not None]
    images = None
    if known and len(known) == len(spans):
        mean = float(np.mean(list(values.values())))
        below = np.mean([value - span[0] for value, span in zip(values.values(), known, strict=True)])
        above = np.mean([span[1] - value for value, span in zip(values.values(), known, strict=True)])
        images = (mean - float(below), mean + float(above))
    return estimate(values, images, bounds)


def contrast(parts: Sequence[tuple[int, Sequence[Result]]], metric: str) -> Estimate | None:
    """A sum of signed figures (+1 and −1: a difference), paired over seeds and, for two classes, over images.

    Only seeds that every part has are used; None without any, and where the parts were not measured on the same
    images. The interval for other images is that of the mean over seeds, all runs in the same resamples.
    """
    by_seed = [(sign, {r.node.seed: r for r in results if r.values.get(metric) is not None}) for sign, results in parts]
    seeds = sorted(set.intersection(*(set(results) for _, results in by_seed)))
    used = [(sign, results[seed]) for seed in seeds for sign, results in by_seed]
    if not used or len({result.images for _, result in used}) > 1:
        return None
    values = {seed: sum(sign * results[seed].values[metric] for sign, results in by_seed) for seed in seeds}
    drawn = [_resampled(result, metric) for _, result in used]
    signed = [sign * one for (sign, _), one in zip(used, drawn, strict=True) if one is not None]
    images = None
    if len(signed) == len(used):
        found = interval(np.sum(signed, axis=0) / len(seeds))
        images = None if found.low is None or found.high is None else (found.low, found.high)
    return estimate(values, images)


def _resampled(result: Result, metric: str) -> NDArray[np.float64] | None:
    """A metric in every resample of the images; None where there are not two classes, or no predictions."""
    if result.positive is None or metric not in ("accuracy", "f1", "auc"):
        return None
    try:
        return _draws(result.folder / "predictions.csv", result.positive).get(metric)
    except MstlError:
        return None  # the page names such files (`mstl.study.study_files`)


@cache
def _draws(file: Path, positive: int) -> dict[str, NDArray[np.float64]]:
    """The same seed for all: runs that were measured on the same images are resampled alike. Empty of one cluster."""
    table = read_table(file, classes=2, positive=positive)
    clusters = clusters_of(table.patients)
    if clusters.count < 2:
        return {}
    found = table.predictions
    scores, positives = found.probabilities[:, positive], found.labels == positive
    statistic = together(decisions(positives, found.probabilities.argmax(1) == positive), ranking(scores, positives))
    return bootstrap(statistic, clusters, resamples=RESAMPLES, seed=0)
