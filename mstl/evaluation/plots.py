"""The figures of one evaluation: which there are and what they say."""

from __future__ import annotations

from typing import Any

import numpy as np

from mstl.evaluation.calibration import calibrated, reliability
from mstl.evaluation.measure import Band
from mstl.evaluation.metrics import pr_curve, roc_curve
from mstl.evaluation.predictions import Predictions, Table
from mstl.study.figures import (
    COLOURS,
    Area,
    Curve,
    Mark,
    confusion_figure,
    pr_figure,
    reliability_figure,
    roc_figure,
)

MOST_CURVES = len(COLOURS)


def draw(table: Table, body: dict[str, Any], band: Band | None) -> dict[str, bytes | None]:
    """PNGs by file name for what metrics.json holds (`body`); None for one that these predictions cannot fill.

    With more than two classes the curves are of each class against the rest, and left out above seven.
    """
    found = table.predictions
    title = f"{body['split']} split, n = {body['n']}"
    decided = f"{title}, {'most probable class' if body['positive'] is None else 'threshold 0.5'}"
    files: dict[str, bytes | None] = {
        "confusion.png": confusion_figure(np.array(body["confusion"]), body["classes"], title=decided),
        "reliability.png": _reliability(found, body, title),
        "roc.png": None,
        "pr.png": None,
    }
    if body["positive"] is None:
        files |= _curves_of_classes(found, body, title)
    else:
        files |= _curves_of_two(found, body, band, title)
    return files


def _curves_of_two(found: Predictions, body: dict[str, Any], band: Band | None, title: str) -> dict[str, bytes]:
    positive, metrics = body["classes"].index(body["positive"]), body["metrics"]
    scores, positives = found.probabilities[:, positive], found.labels == positive
    if metrics["auc"] is None:
        return {}
    points = [("0.50", metrics)]
    operating = body["operating"]
    if operating["origin"] != "default":
        points.append((f"{operating['threshold']:.2f} ({_origin(operating)})", operating["metrics"]))
    x, y = roc_curve(scores, positives)
    roc = roc_figure(
        [Curve(name=f"{body['positive']}: AUC {_with_interval(body, 'auc')}", x=x, y=y)],
        title=title,
        band=None if band is None else Area(name="95 % band, pointwise", x=band.x, low=band.low, high=band.high),
        marks=[Mark(name=f"threshold {name}", x=1 - m["specificity"], y=m["sensitivity"]) for name, m in points],
    )
    x, y = pr_curve(scores, positives)
    marks = [
        Mark(name=f"threshold {name}", x=m["sensitivity"], y=m["precision"])
        for name, m in points
        if m["precision"] is not None
    ]
    curve = Curve(name=f"{body['positive']}: AP {_with_interval(body, 'average_precision')}", x=x, y=y)
    return {"roc.png": roc, "pr.png": pr_figure([curve], title=title, share=float(positives.mean()), marks=marks)}


def _curves_of_classes(found: Predictions, body: dict[str, Any], title: str) -> dict[str, bytes]:
    rows = [
        (index, row)
        for index, row in enumerate(body["per_class"])
        if row["metrics"].get("auc") is not None and row["metrics"]["average_precision"] is not None
    ]
    if not rows or len(body["classes"]) > MOST_CURVES:
        return {}
    rocs, prs = [], []
    for index, row in rows:
        scores, positives = found.probabilities[:, index], found.labels == index
        x, y = roc_curve(scores, positives)
        rocs.append(Curve(name=f"{row['class']}: AUC {_with_interval(row, 'auc')}", x=x, y=y))
        x, y = pr_curve(scores, positives)
        prs.append(Curve(name=f"{row['class']}: AP {_with_interval(row, 'average_precision')}", x=x, y=y))
    title = f"each class against the rest, {title}"
    return {"roc.png": roc_figure(rocs, title=title), "pr.png": pr_figure(prs, title=title, share=None)}


def _reliability(found: Predictions, body: dict[str, Any], title: str) -> bytes:
    temperature = body["calibration"]["temperature"]
    shown = [("as predicted", found.probabilities.astype(np.float64), body["metrics"]["ece"])]
    if temperature is not None:
        softer = calibrated(found.probabilities, temperature)
        shown.append((f"temperature {temperature:.2f}", softer, body["calibration"]["metrics"]["ece"]))
    sets = []
    for name, probabilities, ece in shown:
        if body["positive"] is None:
            confidences, hits = probabilities.max(1), probabilities.argmax(1) == found.labels
        else:
            index = body["classes"].index(body["positive"])
            confidences, hits = probabilities[:, index], found.labels == index
        sets.append(reliability(confidences, hits, name=f"{name}: ECE {ece:.3f}"))
    if body["positive"] is None:
        labels = ("probability of the most probable class", "share that is of that class (bars: 95 %)")
    else:
        labels = (f"probability of {body['positive']}", f"share that is {body['positive']} (bars: 95 %)")
    return reliability_figure(sets, title=title, x_label=labels[0], y_label=labels[1])


def _origin(operating: dict[str, Any]) -> str:
    return "given" if operating["origin"] == "given" else f"{operating['rule']} on {operating['split']}"


def _with_interval(part: dict[str, Any], name: str) -> str:
    span = part["intervals"][name]
    text = f"{part['metrics'][name]:.3f}"
    return text if span is None or span["low"] is None else f"{text} [{span['low']:.3f}, {span['high']:.3f}]"
