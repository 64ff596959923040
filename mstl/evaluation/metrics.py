"""Metrics while training, curves and counts of one set of predictions; undefined values are said to be so."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.floating]
Integers = NDArray[np.integer]


def classification_metrics(probabilities: Floats, labels: Integers, *, positive: int | None) -> dict[str, float]:
    """Metrics of [N, C] class probabilities against [N] labels, as fractions of 1; the prediction is the argmax.

    With `positive` (two classes): accuracy, f1, auc, sensitivity and specificity, where the AUC ranks the probability
    of class `positive` and counts ties as half (paper section 5.5; it names no positive class).
    Without: accuracy, macro_f1 (over the classes seen or predicted), macro_auc (one against the rest), and
    top5_accuracy when there are more than five classes. A value the labels leave undefined is nan: everything when N is
    0, an AUC without both sides (macro: unless every class occurs), a rate without its denominator.
    """
    from torchmetrics.functional.classification import multiclass_accuracy, multiclass_f1_score

    probabilities = np.asarray(probabilities)
    labels = np.asarray(labels)
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1]:
        raise ValueError(f"probabilities {probabilities.shape} and labels {labels.shape} are not [N, C] and [N]")
    if not np.isfinite(probabilities).all():
        raise ValueError("probabilities are not finite")
    classes = probabilities.shape[1]
    if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(f"labels {labels.min()} to {labels.max()} do not fit {classes} classes")
    if positive is not None:
        if classes != 2 or positive not in (0, 1):
            raise ValueError(f"positive class {positive} needs two classes, there are {classes}")
        return _binary_metrics(probabilities[:, positive], probabilities.argmax(1) == positive, labels == positive)
    names = ["accuracy", "macro_f1", "macro_auc"] + ["top5_accuracy"] * (classes > 5)
    if len(labels) == 0:
        return dict.fromkeys(names, math.nan)
    scores, target = _tensor(probabilities), _tensor(labels)
    predicted = scores.argmax(1)
    everyone = len(np.unique(labels)) == classes
    values = {
        "accuracy": float((predicted == target).double().mean()),
        "macro_f1": float(multiclass_f1_score(predicted, target, classes, average="macro")),
        "macro_auc": float(np.mean([_auc(probabilities[:, c], labels == c) for c in range(classes)]))
        if everyone
        else math.nan,
    }
    if classes > 5:
        values["top5_accuracy"] = float(multiclass_accuracy(scores, target, classes, average="micro", top_k=5))
    return values


def roc_curve(scores: Floats, positives: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """The (false positive rate, true positive rate) corners of a ROC curve, from (0, 0) to (1, 1).

    Equal scores fall together, so that the area under the straight lines between the corners is the AUC with ties
    counted as half. Raises ValueError unless both sides occur.
    """
    positives = np.asarray(positives, dtype=bool)
    if positives.all() or not positives.any():
        raise ValueError("a ROC curve needs positives and negatives")
    order = np.argsort(-np.asarray(scores), kind="stable")
    ranked, hits = np.asarray(scores)[order], positives[order]
    last_of_tie = np.append(np.diff(ranked) != 0, True)
    true_positives = np.cumsum(hits)[last_of_tie]
    false_positives = np.cumsum(~hits)[last_of_tie]
    return (
        np.concatenate([[0.0], false_positives / (~hits).sum()]),
        np.concatenate([[0.0], true_positives / hits.sum()]),
    )


def pr_curve(scores: Floats, positives: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """The (recall, precision) at each distinct score from the highest down; equal scores fall together.

    The area of the steps that end at these points, from recall 0 on, is the average precision. Raises ValueError
    without a positive.
    """
    positives = np.asarray(positives, dtype=bool)
    if not positives.any():
        raise ValueError("a precision-recall curve needs positives")
    order = np.argsort(-np.asarray(scores), kind="stable")
    last_of_tie = np.append(np.diff(np.asarray(scores)[order]) != 0, True)
    found = np.cumsum(positives[order])[last_of_tie]
    return found / positives.sum(), found / (np.flatnonzero(last_of_tie) + 1)


def confusion_counts(probabilities: Floats, labels: Integers) -> NDArray[np.int64]:
    """Counts [C, C]: row = true class, column = class of the largest probability."""
    classes = probabilities.shape[1]
    cells = np.asarray(labels, dtype=np.int64) * classes + probabilities.argmax(1)
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes).astype(np.int64)


def as_json(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """The same metrics with null for nan: JSON knows no nan."""
    return {name: None if math.isnan(value) else value for name, value in metrics.items()}


def _binary_metrics(scores: Floats, predicted: NDArray[np.bool_], positives: NDArray[np.bool_]) -> dict[str, float]:
    from torchmetrics.functional.classification import binary_stat_scores

    names = ("accuracy", "f1", "auc", "sensitivity", "specificity")
    if len(positives) == 0:
        return dict.fromkeys(names, math.nan)
    # The decisions go in, not the scores: a threshold on one score would break a tie the other way than the argmax.
    counts = binary_stat_scores(_tensor(predicted.astype(np.int64)), _tensor(positives.astype(np.int64)))
    tp, fp, tn, fn, _ = counts.tolist()
    return {
        "accuracy": (tp + tn) / len(positives),
        "f1": _ratio(2 * tp, 2 * tp + fp + fn),
        "auc": _auc(scores, positives),
        "sensitivity": _ratio(tp, tp + fn),
        "specificity": _ratio(tn, tn + fp),
    }


def _auc(scores: Floats, positives: NDArray[np.bool_]) -> float:
    """The area under the ROC curve; nan unless both sides occur."""
    from torchmetrics.functional.classification import binary_auroc

    if positives.all() or not positives.any():
        return math.nan
    return float(binary_auroc(_tensor(scores), _tensor(positives.astype(np.int64)), thresholds=None))


def _tensor(array: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan
