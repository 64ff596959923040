"""Bins of a reliability diagram and temperature scaling, against slow references."""

from __future__ import annotations

import numpy as np
import pytest

from mstl.evaluation.calibration import bins_of, calibrated, fit_temperature, reliability


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def test_bins_are_fifteen_of_equal_width() -> None:
    assert bins_of(np.array([0, 0.5 / 15, 1 / 15, 7.5 / 15, 14 / 15, 1.0])).tolist() == [0, 0, 1, 7, 14, 14]


def test_reliability_counts_each_bin() -> None:
    rng = np.random.default_rng(0)
    confidences, hits = rng.random(200) ** 3, rng.random(200) < 0.3
    found = reliability(confidences, hits, name="x")
    rows = []
    for b in range(15):
        inside = (confidences >= b / 15) & (confidences < (b + 1) / 15)
        if inside.any():
            rows.append(((b + 0.5) / 15, confidences[inside].mean(), hits[inside].mean(), inside.sum()))
    columns = np.stack([found.centres, found.predicted, found.observed, found.counts], 1)
    np.testing.assert_allclose(columns, rows, rtol=1e-12)
    assert found.counts.sum() == 200
    assert (found.low <= found.observed).all() and (found.observed <= found.high).all()
    # Wilson, 1 of 1: from n/(n + z²).
    one = reliability(np.array([0.9]), np.array([True]), name="x")
    assert (one.low[0], one.high[0]) == pytest.approx((1 / (1 + 1.959964**2), 1.0), abs=1e-6)


@pytest.mark.parametrize(("true", "classes"), [(2.5, 2), (0.4, 2), (1.7, 4)])
def test_the_temperature_of_made_up_data_is_found(true: float, classes: int) -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 2, (20_000, classes))
    labels = (softmax(logits / true).cumsum(1) > rng.random((20_000, 1))).argmax(1)
    fit = fit_temperature(softmax(logits), labels)
    assert fit.why is None and fit.temperature == pytest.approx(true, rel=0.06)
    # The optimum is one: its neighbours are less likely.
    rows = np.arange(len(labels))
    near = [-np.log(calibrated(softmax(logits), fit.temperature * f)[rows, labels]).mean() for f in (0.98, 1, 1.02)]
    assert near[1] < near[0] and near[1] < near[2]
    np.testing.assert_allclose(calibrated(softmax(logits), true), softmax(logits / true), atol=1e-6)


def test_calibrating_keeps_the_order_and_temperature_one_changes_nothing() -> None:
    scores = np.sort(np.random.default_rng(2).random(50))
    both = np.stack([1 - scores, scores], 1)
    np.testing.assert_allclose(calibrated(both, 1.0), both, atol=1e-12)
    softer = calibrated(both, 3.0)[:, 1]
    assert (np.diff(softer) > 0).all() and (np.abs(softer - 0.5) <= np.abs(scores - 0.5)).all()
    certain = calibrated(np.array([[0.0, 1.0]], np.float32), 2.0)
    assert np.isfinite(certain).all() and certain[0, 1] < 1


@pytest.mark.parametrize(
    ("scores", "labels", "why"),
    [
        ([0.1, 0.9], [1, 1], "one class only"),
        ([0.2, 0.3, 0.8], [0, 0, 1], "without an error"),
        ([0.9, 0.8, 0.1, 0.2], [0, 0, 1, 1], "say nothing"),
    ],
)
def test_where_no_temperature_is_best_there_is_none(scores: list[float], labels: list[int], why: str) -> None:
    both = np.stack([1 - np.array(scores), scores], 1)
    fit = fit_temperature(both, np.array(labels))
    assert fit.temperature is None and fit.why is not None and why in fit.why
