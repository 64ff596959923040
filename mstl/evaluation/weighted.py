"""Every metric of many weightings of the same images at once: what the bootstrap resamples.

A resample of N images is a row of N weights, how often each image was drawn. Each function here prepares what does not
depend on the weights and returns a Statistic. Weights of one give the metric of the images as they are.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array  # type: ignore[import-untyped]

from mstl.evaluation.calibration import BINS, bins_of

Floats = NDArray[np.floating]
Values = NDArray[np.float64]
# Weights [R, N] → values [R] or [R, …] by name; nan where a metric is undefined (its denominator is 0).
Statistic = Callable[[Values], dict[str, Values]]

TOP = 5
# "NAME#low" is no metric, but what the lower end of NAME's interval is taken from (`probability_errors`).
LOW = "#low"


def together(*statistics: Statistic) -> Statistic:
    """All the values of several statistics of the same images."""

    def values(weights: Values) -> dict[str, Values]:
        return {name: value for statistic in statistics for name, value in statistic(weights).items()}

    return values


def renamed(statistic: Statistic, prefix: str) -> Statistic:
    """The same values with a prefix to their names."""
    return lambda weights: {prefix + name: value for name, value in statistic(weights).items()}


def as_they_are(statistic: Statistic, n: int) -> dict[str, Values]:
    """The metrics [] or […] of N images, each counted once."""
    found = statistic(np.ones((1, n)))
    return {name: value[0] for name, value in found.items() if not name.endswith(LOW)}


def unweighted(statistic: Statistic, n: int) -> dict[str, float]:
    """The metrics of N images that are one number each."""
    return {name: float(value) for name, value in as_they_are(statistic, n).items() if value.ndim == 0}


def mean(values: Floats) -> Statistic:
    """The mean of [N] values, as "mean"."""
    return lambda weights: {"mean": weights @ values / weights.sum(1)}


def two_classes(
    scores: Floats, positives: NDArray[np.bool_], predicted: NDArray[np.bool_], threshold: float | None = None
) -> Statistic:
    """All metrics of two classes: scores [N] are the probabilities of the positive one, `predicted` the decisions.

    With a threshold also, as "operating/NAME", the metrics of the decisions that scores ≥ threshold are positive.
    """
    parts = [decisions(positives, predicted), ranking(scores, positives)]
    parts.append(probability_errors(scores, positives, (scores.astype(np.float64) - positives) ** 2))
    if threshold is not None:
        parts.append(renamed(decisions(positives, scores.astype(np.float64) >= threshold), "operating/"))
    return together(*parts)


def many_classes(probabilities: Floats, labels: NDArray[np.integer], *, ranked: bool) -> Statistic:
    """All metrics of [N, C] probabilities against [N] labels, and "class/NAME" [R, C] of each class against the rest.

    Without `ranked` those that need a sorting for each class are left out (AUC and average precision): for a thousand
    classes the bootstrap would take hours.
    """
    classes = probabilities.shape[1]
    largest, guesses = probabilities.max(1), probabilities.argmax(1)
    squared = (probabilities.astype(np.float64) ** 2).sum(1) + 1
    squared -= 2 * probabilities[np.arange(len(labels)), labels]
    parts = [class_decisions(labels, guesses, classes), probability_errors(largest, guesses == labels, squared)]
    if classes > TOP:
        # As torch.topk: of equal probabilities the lower index stands first.
        best = np.argsort(-probabilities, axis=1, kind="stable")[:, :TOP]
        among = mean((best == np.asarray(labels)[:, None]).any(1).astype(np.float64))
        parts.append(lambda weights: {"top5_accuracy": among(weights)["mean"]})
    if ranked:
        parts.append(_class_rankings(probabilities, labels))
    return together(*parts)


def decisions(positives: NDArray[np.bool_], predicted: NDArray[np.bool_]) -> Statistic:
    """Metrics of yes-or-no decisions [N] against the truth [N]."""
    cells = np.stack(
        [positives & predicted, ~positives & predicted, ~positives & ~predicted, positives & ~predicted], 1
    ).astype(np.float64)

    def values(weights: Values) -> dict[str, Values]:
        tp, fp, tn, fn = (weights @ cells).T
        sensitivity, specificity = _ratio(tp, tp + fn), _ratio(tn, tn + fp)
        return {
            "accuracy": _ratio(tp + tn, tp + fp + tn + fn),
            "f1": _ratio(2 * tp, 2 * tp + fp + fn),
            "sensitivity": sensitivity,
            "specificity": specificity,
            "precision": _ratio(tp, tp + fp),
            "balanced_accuracy": (sensitivity + specificity) / 2,
        }

    return values


def ranking(scores: Floats, positives: NDArray[np.bool_]) -> Statistic:
    """The area under the ROC curve, ties counted as half, and average precision (a sum of steps, not of trapezia)."""
    order, starts = _tied(scores)
    hits = positives[order].astype(np.float64)

    def values(weights: Values) -> dict[str, Values]:
        drawn = weights[:, order]
        positive = _by_tie(drawn * hits, starts)
        everything = _by_tie(drawn, starts)
        negative = everything - positive
        below = np.cumsum(negative, axis=1) - negative
        total, others = positive.sum(1), negative.sum(1)
        auc = _ratio(((below + negative / 2) * positive).sum(1), total * others)
        above = np.cumsum(everything[:, ::-1], axis=1)[:, ::-1]
        found = np.cumsum(positive[:, ::-1], axis=1)[:, ::-1]
        steps = positive * np.divide(found, above, out=np.zeros_like(found), where=above > 0)
        return {"auc": auc, "average_precision": _ratio(steps.sum(1), total)}

    return values


def roc_heights(scores: Floats, positives: NDArray[np.bool_], grid: Floats) -> Statistic:
    """The sensitivity of the ROC curve at each false positive rate of `grid` [G], as "roc" [R, G]."""
    order, starts = _tied(scores)
    hits = positives[order].astype(np.float64)

    def values(weights: Values) -> dict[str, Values]:
        drawn = weights[:, order][:, ::-1]
        ends = len(order) - 1 - starts[::-1]
        tpr = np.cumsum(drawn * hits[::-1], axis=1)[:, ends]
        fpr = np.cumsum(drawn * (1 - hits[::-1]), axis=1)[:, ends]
        heights = np.full((len(weights), len(grid)), np.nan)
        for row in np.flatnonzero((tpr[:, -1] > 0) & (fpr[:, -1] > 0)):
            # interp takes the last of equal x: the top of a vertical piece, as the curve is drawn.
            x, y = np.append(0, fpr[row] / fpr[row, -1]), np.append(0, tpr[row] / tpr[row, -1])
            heights[row] = np.interp(grid, x, y)
        return {"roc": heights}

    return values


def probability_errors(confidences: Floats, hits: NDArray[np.bool_], squared: Values) -> Statistic:
    """Brier score (mean of `squared` [N]) and expected calibration error of confidences [N] that hits [N] are true.

    Chance alone opens gaps in every bin, so that the ECE is too large, and that of a resample larger still: its middle
    95 % would lie above the truth, even above what was measured. "ece#low" is what was measured minus all the gaps
    that resampling opened; by the triangle inequality its lower 2.5 % is a lower limit that holds at least as often.
    """
    gaps = np.zeros((len(confidences), BINS))
    gaps[np.arange(len(confidences)), bins_of(confidences)] = hits - confidences.astype(np.float64)
    measured = gaps.mean(0)

    def values(weights: Values) -> dict[str, Values]:
        total = weights.sum(1)
        # Σ_b n_b/n · |mean hit − mean confidence| over bins b; n_b cancels.
        drawn = weights @ gaps / total[:, None]
        opened = np.abs(drawn - measured).sum(1)
        return {
            "brier": weights @ squared / total,
            "ece": np.abs(drawn).sum(1),
            f"ece{LOW}": np.abs(measured).sum() - opened,
        }

    return values


def class_decisions(labels: NDArray[np.integer], guesses: NDArray[np.integer], classes: int) -> Statistic:
    """Metrics of the guessed classes [N], over all and of each class against the rest.

    balanced_accuracy is the mean sensitivity of the classes that occur, macro_specificity that of all; macro_precision
    and macro_f1 are means over the classes that occur or are guessed, 0 for one that is never guessed (as scikit-learn
    and torchmetrics have it).
    """
    truth, guessed = _one_hot(labels, classes), _one_hot(guesses, classes)
    right = truth.multiply(guessed).tocsr()

    def values(weights: Values) -> dict[str, Values]:
        tp, there, said = (weights @ matrix for matrix in (right, truth, guessed))
        total = weights.sum(1)
        absent = total[:, None] - there
        sensitivity, precision = _ratio(tp, there), _ratio(tp, said)
        specificity = _ratio(absent - (said - tp), absent)
        f1 = _ratio(2 * tp, there + said)
        met = there + said > 0
        return {
            "accuracy": tp.sum(1) / total,
            "macro_f1": _mean_where(f1, met),
            "balanced_accuracy": _mean_where(sensitivity, there > 0),
            "macro_specificity": _mean_where(specificity, absent > 0),
            "macro_precision": _mean_where(np.nan_to_num(precision), met),
            "class/f1": f1,
            "class/sensitivity": sensitivity,
            "class/specificity": specificity,
            "class/precision": precision,
        }

    return values


def classes_absent(labels: NDArray[np.integer], classes: int) -> Statistic:
    """Whether a resample lacks a class that the images have, as "absent" [R] of 0 and 1."""
    truth = _one_hot(labels, classes)
    some = np.unique(labels)
    return lambda weights: {"absent": ((weights @ truth)[:, some] == 0).any(1).astype(np.float64)}


def _class_rankings(probabilities: Floats, labels: NDArray[np.integer]) -> Statistic:
    rankings = [ranking(probabilities[:, c], labels == c) for c in range(probabilities.shape[1])]

    def values(weights: Values) -> dict[str, Values]:
        found = [one(weights) for one in rankings]
        each = {name: np.stack([one[name] for one in found], 1) for name in ("auc", "average_precision")}
        return {
            **{f"macro_{name}": value.mean(1) for name, value in each.items()},  # nan unless every class occurs
            **{f"class/{name}": value for name, value in each.items()},
        }

    return values


def _tied(scores: Floats) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The ascending order of scores, and where in it each group of equal ones starts."""
    order = np.argsort(scores, kind="stable")
    return order, np.flatnonzero(np.append(True, np.diff(np.asarray(scores)[order]) != 0)[: len(order)])


def _by_tie(values: Values, starts: NDArray[np.int64]) -> Values:
    if len(starts) == values.shape[1]:
        return values
    sums: Values = np.add.reduceat(values, starts, axis=1)
    return sums


def _one_hot(labels: NDArray[np.integer], classes: int) -> csr_array:
    return csr_array((np.ones(len(labels)), (np.arange(len(labels)), labels)), shape=(len(labels), classes))


def _ratio(part: Values, whole: Values) -> Values:
    """part / whole, nan where the whole is 0."""
    shares: Values = np.divide(part, whole, out=np.full(np.shape(part), np.nan), where=whole > 0)
    return shares


def _mean_where(values: Values, there: NDArray[np.bool_]) -> Values:
    """The mean over the last axis of the values that are there."""
    return _ratio(np.where(there, values, 0).sum(-1), there.sum(-1).astype(np.float64))
