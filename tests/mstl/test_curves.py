"""The curves of a run: drawn from any log there can be, and showing what the log says."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from mstl import curves
from mstl.curves import draw_curves
from shards.errors import MstlError
from tests.mstl.test_run_list import log, make


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are drawn, before they are pixels."""
    figures: list[Figure] = []
    real = curves.to_png

    def keep(figure: Figure) -> bytes:
        figures.append(figure)
        return real(figure)

    monkeypatch.setattr(curves, "to_png", keep)
    return figures


def lines_of(figure: Figure, title: str) -> dict[str, Any]:
    """Label → line of the panel with this title."""
    [axes] = [axes for axes in figure.axes if axes.get_title(loc="left") == title]
    return {str(line.get_label()): line for line in axes.lines}


def write(path: Path, entries: list[dict[str, Any]]) -> Path:
    path.mkdir(exist_ok=True)
    (path / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


def full(steps: int, per_epoch: int) -> list[dict[str, Any]]:
    return [
        {
            **entry,
            "contrastive": 0.5,
            "accuracy": 0.25,
            "lr": 0.1,
            "images_per_second": 9.0,
            "data_wait": 0.5,
            "norm": 1.0,
        }
        if "split" not in entry
        else {**entry, "loss": 3.0}
        for entry in log(steps, [0.6, 0.9, 0.9], per_epoch)
    ]


def test_every_panel_shows_its_part_of_the_log(tmp_path: Path, drawn: list[Figure]) -> None:
    path = make(tmp_path / "run")
    write(path, full(15, 5))
    assert draw_curves(path) == path / "curves.png"
    [figure] = drawn
    assert figure.get_suptitle() == "run: stage stl_n, resnet14-attn5"
    losses = lines_of(figure, "losses (dots: validation)")
    assert {name for name in losses if not name.startswith("_")} == {"loss", "contrastive"}
    assert losses["loss"].get_xdata().tolist() == list(range(1, 16))
    assert losses["_loss, validation"].get_ydata().tolist() == [3.0] * 3
    scores = lines_of(figure, "right answers")
    assert scores["AUC, validation"].get_xdata().tolist() == [5, 10, 15]
    assert scores["accuracy, training"].get_ydata().tolist() == pytest.approx([0.25] * 15)
    star = scores["best: AUC 0.900, epoch 2"]  # the earliest of equals
    assert (star.get_xdata().tolist(), star.get_ydata().tolist()) == ([10], [0.9])
    waits = lines_of(figure, "share of the time spent waiting for images")
    assert all(line.get_ydata().tolist() == pytest.approx([0.5] * 15) for line in waits.values())
    assert lines_of(figure, "learning rate") and lines_of(figure, "images a second")
    picture = np.asarray(Image.open(io.BytesIO((path / "curves.png").read_bytes())).convert("RGB"))
    assert picture.shape[1] > 1500 and 0.5 < (picture == 255).all(2).mean() < 0.98


def test_a_loss_of_each_part_has_a_colour_and_a_dash_of_its_own(tmp_path: Path, drawn: list[Figure]) -> None:
    path = write(tmp_path / "run", full(15, 5))
    draw_curves(path)
    losses = lines_of(drawn[0], "losses (dots: validation)")
    assert losses["loss"].get_color() != losses["contrastive"].get_color()
    assert losses["loss"].get_linestyle() != losses["contrastive"].get_linestyle()
    assert drawn[0].get_suptitle() == "run"  # no record: the folder's name


@pytest.mark.parametrize(
    "entries",
    [
        [{"step": 1, "epoch": 0, "loss": 1.0}],
        [{"step": 7, "epoch": 3, "loss": None, "skipped": 1}, {"step": 8, "epoch": 3, "loss": 2.0, "lr": 0}],
        [{"step": 1, "epoch": 0, "loss": 1.0}, {"step": 1, "epoch": 0, "split": "val", "auc": None, "accuracy": None}],
        full(3, 1),
    ],
)
def test_short_and_holey_logs_are_drawn(tmp_path: Path, entries: list[dict[str, Any]]) -> None:
    assert draw_curves(write(tmp_path / "run", entries)).stat().st_size > 10_000


def test_a_long_log_is_thinned_by_means(tmp_path: Path, drawn: list[Figure]) -> None:
    count = 3 * curves.MOST_POINTS
    path = write(tmp_path / "run", [{"step": s, "epoch": 0, "loss": float(s % 3)} for s in range(1, count + 1)])
    draw_curves(path)
    line = lines_of(drawn[0], "losses (dots: validation)")["loss"]
    assert len(line.get_xdata()) == curves.MOST_POINTS
    assert math.isclose(float(np.mean(line.get_ydata())), 1.0)
    assert line.get_xdata()[0] == 2.0


def test_without_steps_there_is_nothing_to_draw(tmp_path: Path) -> None:
    with pytest.raises(MstlError, match="no steps"):
        draw_curves(write(tmp_path / "run", []))
    assert not (tmp_path / "run" / "curves.png").exists()
