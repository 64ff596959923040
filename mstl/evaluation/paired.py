"""Tests of two classifiers on the same images: DeLong for the area under the curve, McNemar for the decisions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, chi2, norm, rankdata  # type: ignore[import-untyped]

Floats = NDArray[np.floating]
EXACT_BELOW = 25  # discordant pairs; from there on chi-squared with continuity correction


@dataclass(frozen=True, kw_only=True, slots=True)
class DeLong:
    """The areas, their difference b − a, its standard error, z, two-sided p and 95 % interval; None where undefined."""

    auc_a: float
    auc_b: float
    difference: float
    standard_error: float
    z: float | None
    p: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class McNemar:
    """Images that only a, or only b, got right; method "exact binomial" or "chi-squared"; two-sided p."""

    only_a: int
    only_b: int
    method: str
    statistic: float | None
    p: float


def placements(scores: Floats, positives: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Each positive's share of negatives below it and each negative's share of positives above it, a tie as half.

    Their means are both the AUC. From midranks in O(n log n) (Sun and Xu 2014, equations 5 to 7).
    """
    yes, no = scores[positives], scores[~positives]
    ranks = rankdata(scores)
    of_positives = (ranks[positives] - rankdata(yes)) / len(no)
    of_negatives = 1 - (ranks[~positives] - rankdata(no)) / len(yes)
    return of_positives, of_negatives


def delong(scores_a: Floats, scores_b: Floats, positives: NDArray[np.bool_]) -> DeLong | None:
    """DeLong's test that two classifiers have the same AUC (DeLong et al. 1988); [N] scores of the same images.

    None unless there are at least two positives and two negatives: with fewer no variance can be estimated. Images
    are taken as independent.
    """
    if positives.sum() < 2 or (~positives).sum() < 2:
        return None
    found = [placements(scores, positives) for scores in (scores_a, scores_b)]
    variance = 0.0
    for side in (0, 1):
        a, b = found[0][side], found[1][side]
        variance += float(np.var(b - a, ddof=1)) / len(a)
    auc_a, auc_b = (float(one[0].mean()) for one in found)
    difference, error = auc_b - auc_a, math.sqrt(variance)
    if error < 1e-12:  # rounding of placements that do not differ, or differ by the same everywhere
        same = abs(difference) < 1e-12
        return DeLong(
            auc_a=auc_a, auc_b=auc_b, difference=difference, standard_error=0.0, z=0.0 if same else None,
            p=1.0 if same else None, low=None, high=None,
        )  # fmt: skip
    z, reach = difference / error, float(norm.ppf(0.975)) * error
    return DeLong(
        auc_a=auc_a, auc_b=auc_b, difference=difference, standard_error=error, z=z, p=float(2 * norm.sf(abs(z))),
        low=difference - reach, high=difference + reach,
    )  # fmt: skip


def mcnemar(right_a: NDArray[np.bool_], right_b: NDArray[np.bool_]) -> McNemar:
    """McNemar's test that two classifiers err equally often; [N] whether each image was decided rightly.

    Exact binomial below 25 discordant images, else chi-squared with Edwards' continuity correction. Images are taken
    as independent.
    """
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    both = only_a + only_b
    if both < EXACT_BELOW:
        p = float(binomtest(only_a, both, 0.5).pvalue) if both else 1.0
        return McNemar(only_a=only_a, only_b=only_b, method="exact binomial", statistic=None, p=p)
    statistic = max(0, abs(only_a - only_b) - 1) ** 2 / both
    p = float(chi2.sf(statistic, 1))
    return McNemar(only_a=only_a, only_b=only_b, method="chi-squared", statistic=statistic, p=p)
