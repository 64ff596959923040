"""Figures say what was measured: what stands where in them, read back from what is drawn."""

from __future__ import annotations

import io

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from sklearn.metrics import average_precision_score

from mstl.evaluation.calibration import reliability
from mstl.evaluation.metrics import pr_curve, roc_curve
from mstl.study import figures
from mstl.study.figures import Area, Curve, Mark, confusion_figure, pr_figure, reliability_figure, roc_figure

SCORES = np.array([0.9, 0.8, 0.8, 0.35, 0.3, 0.1])
POSITIVES = np.array([True, False, True, True, False, False])


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures in place of their pictures."""
    found: list[Figure] = []
    monkeypatch.setattr(figures, "to_png", lambda figure: found.append(figure) or b"")
    return found


def test_the_truth_stands_in_the_rows_of_a_confusion_matrix(drawn: list[Figure]) -> None:
    confusion_figure(np.array([[8, 2], [0, 0]]), ("well", "ill"), title="t")
    axes = drawn[0].axes[0]
    cells = {(round(text.get_position()[0]), round(text.get_position()[1])): [] for text in axes.texts}
    for text in axes.texts:
        cells[round(text.get_position()[0]), round(text.get_position()[1])].append(text.get_text())
    # (column, row): of the well 8 are called well and 2 ill; nobody is ill.
    assert cells == {(0, 0): ["8", "80%"], (1, 0): ["2", "20%"], (0, 1): ["0", "none"], (1, 1): ["0", "none"]}
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "true")
    assert [text.get_text() for text in axes.get_yticklabels()] == ["well", "ill"]
    assert np.asarray(axes.images[0].get_array()).tolist() == [[0.8, 0.2], [0, 0]]


def test_a_roc_has_its_curve_band_and_points(drawn: list[Figure]) -> None:
    x, y = roc_curve(SCORES, POSITIVES)
    grid = np.linspace(0, 1, 5)
    band = Area(name="band", x=grid, low=grid * 0.5, high=np.ones(5))
    roc_figure([Curve(name="net", x=x, y=y)], title="t", band=band, marks=[Mark(name="at 0.5", x=0.25, y=0.75)])
    axes = drawn[0].axes[0]
    lines = {str(line.get_label()): line.get_xydata() for line in axes.lines}
    assert np.asarray(lines["net"]).tolist() == np.stack([x, y], 1).tolist()
    assert np.asarray(lines["at 0.5"]).tolist() == [[0.25, 0.75]]
    assert [text.get_text() for text in axes.get_legend().texts] == ["net", "band", "at 0.5", "chance"]
    assert axes.get_xlabel().startswith("1 − specificity") and axes.get_ylabel().startswith("sensitivity")


def test_the_steps_drawn_for_precision_have_the_average_precision_below_them(drawn: list[Figure]) -> None:
    x, y = pr_curve(SCORES, POSITIVES)
    pr_figure([Curve(name="net", x=x, y=y)], title="t", share=0.5)
    line, chance = drawn[0].axes[0].lines
    corners = np.asarray(line.get_xydata())
    assert line.get_drawstyle() == "steps-pre"  # each height stands left of its point
    area = float(np.sum(np.diff(corners[:, 0]) * corners[1:, 1]))
    assert area == pytest.approx(average_precision_score(POSITIVES, SCORES))
    assert list(chance.get_ydata()) == [0.5, 0.5]


def test_a_reliability_diagram_has_a_point_and_a_bar_for_each_bin_that_holds_anything(drawn: list[Figure]) -> None:
    found = reliability(SCORES, POSITIVES, name="net")
    reliability_figure([found], title="t", x_label="probability", y_label="share")
    upper, lower = drawn[0].axes
    points = next(c for c in upper.collections if c.get_label() == "net").get_offsets()
    assert np.asarray(points).tolist() == np.stack([found.predicted, found.observed], 1).tolist()
    assert [bar.get_height() for bar in lower.patches] == found.counts.tolist() and sum(found.counts) == 6
    middles = [bar.get_x() + found.width / 2 for bar in lower.patches]
    assert middles == pytest.approx(found.centres.tolist())


def test_names_are_drawn_as_they_are_and_pictures_are_the_same_bytes() -> None:
    names = (r"cost $\foo$", "$a_b$")  # the first would stop matplotlib, were it read as mathematics
    once, again = (confusion_figure(np.eye(2, dtype=int), names, title=names[0]) for _ in range(2))
    assert once == again and Image.open(io.BytesIO(once)).format == "PNG"
