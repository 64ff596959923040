"""What the figures of an evaluation are given: points on their curves, probabilities before and after scaling."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mstl.evaluation import plots
from mstl.evaluation.calibration import calibrated, reliability
from mstl.evaluation.measure import Asked, measure
from mstl.evaluation.metrics import pr_curve, roc_curve
from mstl.evaluation.predictions import Predictions, Table

Drawn = dict[str, tuple[tuple[Any, ...], dict[str, Any]]]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    """What each kind of figure was called with, in place of the figures."""
    found: Drawn = {}

    def keep(name: str) -> Any:
        def draw(*arguments: Any, **options: Any) -> bytes:
            found[name] = arguments, options
            return name.encode()

        return draw

    for name in ("roc_figure", "pr_figure", "reliability_figure", "confusion_figure"):
        monkeypatch.setattr(plots, name, keep(name))
    return found


def evaluated(probabilities: np.ndarray, labels: np.ndarray, positive: int | None) -> tuple[Table, dict[str, Any], Any]:
    """A table and as much of metrics.json as figures need, at threshold 0.3 and temperature 2."""
    n, classes = probabilities.shape
    found = Predictions(sample_ids=np.arange(n), labels=labels, probabilities=probabilities.astype(np.float32))
    table = Table(predictions=found, keys=("k",) * n, patients=(None,) * n)
    names = ["well", "ill", "worse"][:classes]
    threshold = None if positive is None else 0.3
    asked = Asked(classes=names, positive=positive, threshold=threshold, temperature=2.0, resamples=100, seed=0)
    measured = measure(table, asked)
    body = {**measured.body, "split": "test", "n": n, "classes": names}
    body["positive"] = None if positive is None else names[positive]
    body["operating"] = {
        "threshold": 0.3,
        "origin": "val",
        "rule": "youden",
        "split": "val",
        **body.get("operating", {}),
    }
    body["calibration"]["temperature"] = 2.0
    return table, body, measured.roc


def test_operating_points_lie_on_the_curves_they_are_marked_on(drawn: Drawn) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 2
    scores = (1 / (1 + np.exp(-rng.normal(1.5 * (labels - 0.8), 1)))).astype(np.float32)
    table, body, band = evaluated(np.stack([1 - scores, scores], 1), labels, positive=1)
    files = plots.draw(table, body, band)
    assert files.keys() == {"confusion.png", "reliability.png", "roc.png", "pr.png"} and None not in files.values()
    ((curve,),), options = drawn["roc_figure"]
    x, y = roc_curve(scores, labels == 1)
    assert (curve.x.tolist(), curve.y.tolist()) == (x.tolist(), y.tolist())
    assert curve.name.startswith(f"ill: AUC {body['metrics']['auc']:.3f} [")
    for mark, threshold in zip(options["marks"], (0.5, 0.3), strict=True):
        yes = scores >= threshold
        assert (mark.x, mark.y) == pytest.approx((yes[labels == 0].mean(), yes[labels == 1].mean()))
    assert [mark.name for mark in options["marks"]] == ["threshold 0.50", "threshold 0.30 (youden on val)"]
    ((curve,),), options = drawn["pr_figure"]
    assert curve.y.tolist() == pr_curve(scores, labels == 1)[1].tolist() and options["share"] == 0.5
    for mark, threshold in zip(options["marks"], (0.5, 0.3), strict=True):
        yes = scores >= threshold
        assert (mark.x, mark.y) == pytest.approx((yes[labels == 1].mean(), labels[yes].mean()))
    assert drawn["confusion_figure"][0][0].tolist() == body["confusion"]

    (before, after) = drawn["reliability_figure"][0][0]
    softer = calibrated(table.predictions.probabilities, 2.0)[:, 1]
    for found, shares in ((before, scores), (after, softer)):
        assert found.predicted.tolist() == pytest.approx(reliability(shares, labels == 1, name="").predicted.tolist())
    assert after.name == f"temperature 2.00: ECE {body['calibration']['metrics']['ece']:.3f}"
    gaps = [(found.counts * np.abs(found.observed - found.predicted)).sum() / 60 for found in (before, after)]
    assert gaps == pytest.approx([body["metrics"]["ece"], body["calibration"]["metrics"]["ece"]])


def test_of_more_classes_those_that_occur_have_a_curve_each(drawn: Drawn) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 2  # "worse" never occurs
    table, body, band = evaluated(rng.dirichlet(np.ones(3), 40), labels, positive=None)
    assert band is None and None not in plots.draw(table, body, band).values()
    ((curves,), _) = drawn["roc_figure"]
    assert [curve.name.partition(":")[0] for curve in curves] == ["well", "ill"]
    for index, curve in enumerate(curves):
        x, y = roc_curve(table.predictions.probabilities[:, index], labels == index)
        assert (curve.x.tolist(), curve.y.tolist()) == (x.tolist(), y.tolist())
    (sets, *_), options = drawn["reliability_figure"]
    gap = (sets[0].counts * np.abs(sets[0].observed - sets[0].predicted)).sum() / 40
    assert gap == pytest.approx(body["metrics"]["ece"]) and options["x_label"].endswith("most probable class")


def test_what_cannot_be_drawn_is_none(drawn: Drawn) -> None:
    table, body, band = evaluated(np.full((4, 2), 0.5), np.ones(4, int), positive=1)
    files = plots.draw(table, body, band)
    assert files["roc.png"] is None and files["pr.png"] is None and files["reliability.png"] is not None
    assert "roc_figure" not in drawn
