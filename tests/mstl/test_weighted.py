"""Metrics of weighted images equal scikit-learn's and torchmetrics' of the same images repeated."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk
from torchmetrics.functional.classification import binary_calibration_error, multiclass_calibration_error

from mstl.evaluation.metrics import roc_curve
from mstl.evaluation.weighted import (
    classes_absent,
    many_classes,
    mean,
    roc_heights,
    two_classes,
    unweighted,
)


def drawn_weights(rng: np.random.Generator, rows: int, n: int) -> np.ndarray:
    return rng.multinomial(n, np.full(n, 1 / n), size=rows).astype(float)


def of_two(scores: np.ndarray, positives: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """What scikit-learn and torchmetrics say; nan where a denominator is 0."""
    some, others = positives.any(), (~positives).any()
    nothing_wanted = not (positives | predicted).any()
    sensitivity = sk.recall_score(positives, predicted) if some else np.nan
    specificity = sk.recall_score(positives, predicted, pos_label=False) if others else np.nan
    ece = binary_calibration_error(torch.tensor(scores), torch.tensor(positives.astype(int)), n_bins=15, norm="l1")
    return {
        "accuracy": sk.accuracy_score(positives, predicted),
        "f1": np.nan if nothing_wanted else sk.f1_score(positives, predicted),
        "sensitivity": sensitivity,
        "specificity": specificity,
        "precision": sk.precision_score(positives, predicted) if predicted.any() else np.nan,
        "balanced_accuracy": sk.balanced_accuracy_score(positives, predicted) if some and others else np.nan,
        "auc": sk.roc_auc_score(positives, scores) if some and others else np.nan,
        "average_precision": sk.average_precision_score(positives, scores) if some else np.nan,
        "brier": float(np.mean((scores - positives) ** 2)),
        "ece": float(ece),
    }


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 30), st.sampled_from([4, 1000]))
def test_two_classes_equal_the_libraries_on_repeated_images(seed: int, n: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    # Off the edges of the bins, which float32 (torchmetrics) and float64 draw differently; few levels make ties.
    scores = (rng.integers(0, levels, n) + 0.37) / (levels + 0.1)
    positives, predicted = rng.random(n) < 0.5, rng.random(n) < 0.5
    weights = drawn_weights(rng, 3, n)
    found = two_classes(scores, positives, predicted, threshold=0.4)(weights)
    for row, counts in enumerate(weights.astype(int)):
        s, p, d = (np.repeat(values, counts) for values in (scores, positives, predicted))
        for name, value in of_two(s, p, d).items():
            assert found[name][row] == pytest.approx(value, abs=2e-6, nan_ok=True), name
        for name, value in of_two(s, p, s >= 0.4).items():
            if f"operating/{name}" in found:
                assert found[f"operating/{name}"][row] == pytest.approx(value, abs=1e-12, nan_ok=True), name
    decided = ("accuracy", "f1", "sensitivity", "specificity", "precision", "balanced_accuracy")
    assert {name for name in found if "/" in name} == {f"operating/{name}" for name in decided}


def test_brier_is_scikit_learns() -> None:
    rng = np.random.default_rng(3)
    scores, positives = rng.random(50), rng.random(50) < 0.4
    found = unweighted(two_classes(scores, positives, scores > 0.5), 50)
    assert found["brier"] == pytest.approx(sk.brier_score_loss(positives, scores), abs=1e-12)


def test_a_threshold_is_compared_in_double_precision() -> None:
    low = np.float32(0.3)
    scores = np.array([low, np.nextafter(low, np.float32(1))])
    middle = (float(scores[0]) + float(scores[1])) / 2
    found = unweighted(two_classes(scores, np.array([False, True]), np.array([False, False]), threshold=middle), 2)
    assert found["operating/accuracy"] == 1.0


@settings(max_examples=4, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(3, 8))
def test_more_classes_equal_the_libraries_on_repeated_images(seed: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    n = 60
    labels = np.concatenate([np.arange(classes), rng.integers(0, classes, n - classes)])
    probabilities = rng.dirichlet(np.ones(classes), n)
    weights = drawn_weights(rng, 2, n)
    found = many_classes(probabilities, labels, ranked=True)(weights)
    for row, counts in enumerate(weights.astype(int)):
        p, y = np.repeat(probabilities, counts, axis=0), np.repeat(labels, counts)
        guesses, everyone = p.argmax(1), len(np.unique(y)) == classes
        truth = np.eye(classes)[y]
        ece = multiclass_calibration_error(torch.tensor(p), torch.tensor(y), classes, n_bins=15)
        expected = {
            "accuracy": sk.accuracy_score(y, guesses),
            "balanced_accuracy": np.mean([np.mean(guesses[y == c] == c) for c in np.unique(y)]),
            "macro_f1": sk.f1_score(y, guesses, average="macro", zero_division=0),
            "macro_precision": sk.precision_score(y, guesses, average="macro", zero_division=0),
            "macro_specificity": np.mean([np.mean(guesses[y != c] != c) for c in range(classes)]),
            "macro_auc": sk.roc_auc_score(y, p, average="macro", multi_class="ovr") if everyone else np.nan,
            "macro_average_precision": sk.average_precision_score(truth, p, average="macro") if everyone else np.nan,
            "brier": float(((p - truth) ** 2).sum(1).mean()),
            "ece": float(ece),
        }
        if classes > 5:
            expected["top5_accuracy"] = sk.top_k_accuracy_score(y, p, k=5, labels=range(classes))
        assert {name for name in found if "/" not in name} == {*expected, "ece#low"}
        for name, value in expected.items():
            assert found[name][row] == pytest.approx(value, abs=2e-6, nan_ok=True), name
        for c in np.unique(y):
            one = of_two(p[:, c], y == c, guesses == c)
            for name in ("sensitivity", "specificity", "precision", "f1", "auc", "average_precision"):
                assert found[f"class/{name}"][row, c] == pytest.approx(one[name], abs=1e-9, nan_ok=True), (name, c)


def test_without_ranking_the_rest_stays() -> None:
    rng = np.random.default_rng(0)
    probabilities, labels = rng.dirichlet(np.ones(3), 30), np.arange(30) % 3
    whole, rest = (unweighted(many_classes(probabilities, labels, ranked=ranked), 30) for ranked in (True, False))
    for name in ("macro_auc", "macro_average_precision"):
        del whole[name]
    assert whole == rest


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.sampled_from([3, 1000]))
def test_roc_heights_follow_the_curve_of_the_repeated_images(seed: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    n = 25
    scores = rng.integers(0, levels, n) / levels
    positives = np.arange(n) % 3 == 0
    weights = drawn_weights(rng, 4, n)
    grid = np.linspace(0, 1, 11)
    found = roc_heights(scores, positives, grid)(weights)["roc"]
    for row, counts in enumerate(weights.astype(int)):
        s, p = np.repeat(scores, counts), np.repeat(positives, counts)
        if p.all() or not p.any():
            assert np.isnan(found[row]).all()
            continue
        x, y = roc_curve(s, p)
        for at, height in zip(grid, found[row], strict=True):
            left = np.flatnonzero(x <= at + 1e-12)[-1]
            right = min(left + 1, len(x) - 1)
            share = 0 if x[right] == x[left] else (at - x[left]) / (x[right] - x[left])
            assert height == pytest.approx(y[left] + max(0, share) * (y[right] - y[left]), abs=1e-9)


def test_small_statistics() -> None:
    weights = np.array([[1.0, 1, 1], [0, 3, 0]])
    assert mean(np.array([1.0, 2, 6]))(weights)["mean"].tolist() == [3, 2]
    # Class 2 occurs nowhere, so that no resample can be blamed for lacking it.
    assert classes_absent(np.array([0, 1, 0]), 3)(weights)["absent"].tolist() == [0, 1]
