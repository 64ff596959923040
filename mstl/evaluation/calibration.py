"""How far predicted probabilities can be believed: bins of a reliability diagram, and temperature scaling."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar  # type: ignore[import-untyped]
from scipy.stats import binomtest  # type: ignore[import-untyped]

Floats = NDArray[np.floating]

BINS = 15  # of equal width (Guo et al. 2017, section 4)
TEMPERATURES = (0.05, 20.0)  # an optimum at an end of it is none (ours)
SMALLEST_PROBABILITY = 1e-7  # about the last digit of float32 below 1: smaller ones were rounded away


@dataclass(frozen=True, kw_only=True, slots=True)
class Reliability:
    """The bins that hold anything: mean prediction and share of hits [B], its 95 % Wilson interval, images [B].

    The bins stand at `centres` [B], each `width` wide.
    """

    name: str
    width: float
    centres: NDArray[np.float64]
    predicted: NDArray[np.float64]
    observed: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    counts: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Fit:
    """A temperature, or None and why there is none."""

    temperature: float | None
    why: str | None


def bins_of(probabilities: Floats) -> NDArray[np.int64]:
    """The bin 0 to 14 of each probability: [0, 1/15), [1/15, 2/15), … and the last with 1 in it."""
    edges = np.linspace(0, 1, BINS + 1)[1:-1]
    return np.searchsorted(edges, np.asarray(probabilities, dtype=np.float64), side="right").astype(np.int64)


def reliability(confidences: Floats, hits: NDArray[np.bool_], *, name: str) -> Reliability:
    """What a reliability diagram shows of confidences [N] and whether each came true [N]."""
    bins = bins_of(confidences)
    counts = np.bincount(bins, minlength=BINS)
    there = counts > 0
    sums = np.bincount(bins, np.asarray(confidences, dtype=np.float64), BINS)
    found = np.bincount(bins, hits, BINS)
    pairs = zip(found[there], counts[there], strict=True)
    reach = [binomtest(round(k), int(n)).proportion_ci(0.95, method="wilson") for k, n in pairs]
    return Reliability(
        name=name,
        width=1 / BINS,
        centres=(np.flatnonzero(there) + 0.5) / BINS,
        predicted=sums[there] / counts[there],
        observed=found[there] / counts[there],
        low=np.array([one.low for one in reach]),
        high=np.array([one.high for one in reach]),
        counts=counts[there].astype(np.int64),
    )


def fit_temperature(probabilities: Floats, labels: NDArray[np.integer]) -> Fit:
    """The T that makes softmax(logits / T) of [N, C] probabilities likeliest for [N] labels (Guo et al. 2017, 4.2).

    The mean log-likelihood is concave in 1/T, so that what is found is the optimum. There is none where the images hold
    one class only, where every true class is already the most probable one by far (T → 0), or where the probabilities
    say nothing of the labels (T → ∞).
    """
    if len(np.unique(labels)) < 2:
        return Fit(temperature=None, why="the images hold one class only")
    logits = _logits(probabilities)
    rows = np.arange(len(labels))

    def loss(sharpness: float) -> float:
        scaled = logits * np.exp(sharpness)
        peak = scaled.max(1)
        return float(np.mean(peak + np.log(np.exp(scaled - peak[:, None]).sum(1)) - scaled[rows, labels]))

    ends = tuple(sorted(-np.log(t) for t in TEMPERATURES))
    found = float(np.exp(-minimize_scalar(loss, bounds=ends, method="bounded", options={"xatol": 1e-6}).x))
    if found < TEMPERATURES[0] * 1.01:
        return Fit(temperature=None, why="the probabilities separate the classes without an error")
    if found > TEMPERATURES[1] / 1.01:
        return Fit(temperature=None, why="the probabilities say nothing of the classes")
    return Fit(temperature=found, why=None)


def calibrated(probabilities: Floats, temperature: float) -> NDArray[np.float64]:
    """softmax(logits / temperature) of [N, C] probabilities; the order of the classes stays as it is."""
    scaled = _logits(probabilities) / temperature
    powers = np.exp(scaled - scaled.max(1, keepdims=True))
    shares: NDArray[np.float64] = powers / powers.sum(1, keepdims=True)
    return shares


def _logits(probabilities: Floats) -> NDArray[np.float64]:
    """Their logits, up to a constant a row that a softmax does not see."""
    logs: NDArray[np.float64] = np.log(np.maximum(probabilities, SMALLEST_PROBABILITY, dtype=np.float64))
    return logs
