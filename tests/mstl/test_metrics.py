"""Metrics against closed forms and slow references."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from mstl.evaluation.metrics import (
    as_json,
    classification_metrics,
    confusion_counts,
    pr_curve,
    roc_curve,
)
from mstl.evaluation.weighted import many_classes, two_classes, unweighted


def two_columns(positive_scores: list[float], positive: int = 1) -> np.ndarray:
    scores = np.array(positive_scores)
    columns = [1 - scores, scores]
    return np.stack(columns if positive == 1 else columns[::-1], axis=1)


def pairwise_auc(scores: np.ndarray, positives: np.ndarray) -> float:
    """The share of (positive, negative) pairs ranked right, a tie counting half: what an AUC means."""
    wins = [1.0 if a > b else 0.5 if a == b else 0.0 for a in scores[positives] for b in scores[~positives]]
    return float(np.mean(wins))


def test_binary_metrics_of_a_case_worked_by_hand() -> None:
    # true 1 1 1 0 0, scores give predictions 1 0 1 1 0: tp 2, fn 1, fp 1, tn 1
    metrics = classification_metrics(two_columns([0.9, 0.4, 0.6, 0.7, 0.1]), np.array([1, 1, 1, 0, 0]), positive=1)
    assert metrics == pytest.approx(
        {"accuracy": 3 / 5, "f1": 4 / 6, "auc": 4 / 6, "sensitivity": 2 / 3, "specificity": 1 / 2}
    )


def test_the_positive_class_may_be_the_first() -> None:
    labels = np.array([0, 0, 0, 1, 1])
    metrics = classification_metrics(two_columns([0.9, 0.4, 0.6, 0.7, 0.1], positive=0), labels, positive=0)
    assert metrics["sensitivity"] == pytest.approx(2 / 3)
    assert metrics["specificity"] == pytest.approx(1 / 2)
    assert metrics["auc"] == pytest.approx(4 / 6)


@pytest.mark.parametrize(("positive", "sensitivity"), [(0, 1.0), (1, 0.0)])
def test_an_even_split_is_decided_as_argmax_decides_it(positive: int, sensitivity: float) -> None:
    labels = np.array([positive, 1 - positive])
    metrics = classification_metrics(np.full((2, 2), 0.5), labels, positive=positive)
    assert metrics["sensitivity"] == sensitivity
    assert metrics["accuracy"] == 0.5


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=2, max_size=40))
def test_auc_counts_pairs_and_ties(cases: list[tuple[int, bool]]) -> None:
    scores = np.array([score / 6 for score, _ in cases])
    positives = np.array([positive for _, positive in cases])
    metrics = classification_metrics(two_columns(scores.tolist()), positives.astype(int), positive=1)
    if positives.all() or not positives.any():
        assert math.isnan(metrics["auc"])
        with pytest.raises(ValueError, match="positives and negatives"):
            roc_curve(scores, positives)
        return
    expected = pairwise_auc(scores, positives)
    assert metrics["auc"] == pytest.approx(expected, abs=1e-6)
    x, y = roc_curve(scores, positives)
    assert float(np.trapezoid(y, x)) == pytest.approx(expected, abs=1e-12)
    assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)
    assert len(x) == len(set(scores.tolist())) + 1


def test_one_class_leaves_undefined_values_null_in_json() -> None:
    only_positives = classification_metrics(two_columns([0.9, 0.2]), np.array([1, 1]), positive=1)
    assert as_json(only_positives) == {
        "accuracy": 0.5, "f1": pytest.approx(2 / 3), "auc": None, "sensitivity": 0.5, "specificity": None,
    }  # fmt: skip
    quiet = classification_metrics(two_columns([0.1, 0.2]), np.array([0, 0]), positive=1)
    assert as_json(quiet) == {"accuracy": 1.0, "f1": None, "auc": None, "sensitivity": None, "specificity": 1.0}
    json.dumps(as_json(quiet), allow_nan=False)


def test_nothing_measured_is_nan_everywhere() -> None:
    assert all(map(math.isnan, classification_metrics(np.empty((0, 2)), np.empty(0, int), positive=1).values()))
    several = classification_metrics(np.empty((0, 7)), np.empty(0, int), positive=None)
    assert list(several) == ["accuracy", "macro_f1", "macro_auc", "top5_accuracy"]
    assert all(map(math.isnan, several.values()))


def test_multi_class_metrics_equal_slow_references() -> None:
    rng = np.random.default_rng(0)
    labels = np.concatenate([np.arange(7), rng.integers(0, 7, 150)])
    probabilities = rng.dirichlet(np.ones(7), len(labels)).round(2) + 1e-3
    probabilities[np.arange(len(labels)), labels] += 0.2
    probabilities /= probabilities.sum(1, keepdims=True)
    predicted = probabilities.argmax(1)

    f1s, aucs = [], []
    for c in range(7):
        tp = np.sum((predicted == c) & (labels == c))
        f1s.append(2 * tp / (np.sum(predicted == c) + np.sum(labels == c)))
        aucs.append(pairwise_auc(probabilities[:, c], labels == c))
    top5 = np.mean([label in np.argsort(-row)[:5] for row, label in zip(probabilities, labels, strict=True)])

    metrics = classification_metrics(probabilities, labels, positive=None)
    assert 0.2 < metrics["accuracy"] < 0.9
    assert metrics == pytest.approx(
        {"accuracy": np.mean(predicted == labels), "macro_f1": np.mean(f1s), "macro_auc": np.mean(aucs),
         "top5_accuracy": top5}, abs=1e-6,
    )  # fmt: skip


def test_a_class_that_never_occurs_leaves_macro_auc_undefined() -> None:
    metrics = classification_metrics(np.eye(3)[[0, 1, 1]], np.array([0, 1, 0]), positive=None)
    assert math.isnan(metrics["macro_auc"])
    assert metrics["macro_f1"] == pytest.approx((2 / 3 + 2 / 3) / 2)
    assert "top5_accuracy" not in metrics


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 60), st.sampled_from([5, 1000]))
def test_training_and_evaluation_measure_the_same(seed: int, n: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    scores, labels = rng.integers(0, levels, n) / levels, rng.integers(0, 2, n)
    probabilities, positives = two_columns(scores.tolist()), labels == 1
    more = unweighted(two_classes(scores, positives, probabilities.argmax(1) == 1), n)
    for name, value in classification_metrics(probabilities, labels, positive=1).items():
        assert more[name] == pytest.approx(value, abs=1e-6, nan_ok=True), name
    probabilities, labels = rng.dirichlet(np.ones(7), n), np.append(rng.integers(0, 7, n - 1), 6)
    more = unweighted(many_classes(probabilities, labels, ranked=True), n)
    for name, value in classification_metrics(probabilities, labels, positive=None).items():
        assert more[name] == pytest.approx(value, abs=1e-6, nan_ok=True), name


def test_the_area_of_the_precision_recall_steps_is_the_average_precision() -> None:
    scores, positives = np.array([0.9, 0.8, 0.8, 0.3, 0.2]), np.array([True, False, True, True, False])
    recall, precision = pr_curve(scores, positives)
    assert recall.tolist() == pytest.approx([1 / 3, 2 / 3, 1, 1])
    assert precision.tolist() == pytest.approx([1, 2 / 3, 3 / 4, 3 / 5])
    area = float(np.sum(np.diff(recall, prepend=0) * precision))
    assert area == pytest.approx(sk.average_precision_score(positives, scores))
    with pytest.raises(ValueError, match="needs positives"):
        pr_curve(np.array([0.1]), np.array([False]))


def test_confusion_counts_put_the_truth_in_rows() -> None:
    probabilities = np.eye(3)[[0, 2, 2, 1]]
    expected = [[1, 0, 1], [0, 1, 0], [0, 0, 1]]
    assert confusion_counts(probabilities, np.array([0, 0, 2, 1])).tolist() == expected


@pytest.mark.parametrize(
    ("probabilities", "labels", "positive", "match"),
    [
        (np.ones((2, 3)), [0, 1], 1, "two classes"),
        (np.ones((2, 2)), [0, 1], 2, "positive class 2"),
        (np.ones((2, 2)), [0, 2], 1, "do not fit 2 classes"),
        (np.ones((2, 2)), [0], 1, "are not"),
        (np.full((2, 2), np.nan), [0, 1], 1, "not finite"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    probabilities: np.ndarray, labels: list[int], positive: int, match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        classification_metrics(probabilities, np.array(labels), positive=positive)
