"""The curves of one training run as a PNG: losses, validation, learning rate, speed, and the wait for images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from mstl.runs import best_validation, open_run, read_metrics, score
from mstl.study.figures import COLOURS, DASHES, FAINT, INK, panel, running_mean, to_png
from shards.errors import MstlError
from shards.files import write_atomic

CURVES_NAME = "curves.png"
MOST_POINTS = 2000  # what more there are is averaged before drawing: no screen shows it
# Figures of a step that are neither losses nor shares of right answers.
OTHERS = frozenset({"step", "epoch", "lr", "images_per_second", "data_wait", "ranks", "norm", "scale", "skipped",
                    "unreadable"})  # fmt: skip
SCORES = ("auc", "macro_auc", "accuracy", "sensitivity", "specificity")  # of a validation
Entry = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Log:
    """A run's log: its steps, its validations, the best of those, and steps an epoch where an epoch was finished."""

    steps: Sequence[Entry]
    validations: Sequence[Entry]
    best: Entry | None
    epoch_steps: float | None


def draw_curves(run: Path) -> Path:
    """Write RUN/curves.png from what the run's log holds so far; returns it. MstlError where there are no steps yet."""
    entries = read_metrics(run)
    steps = [entry for entry in entries if "split" not in entry]
    if not steps:
        raise MstlError(f"curves of {run}", why="its log has no steps", remedy="Draw them when it has trained a while")
    validations = [entry for entry in entries if "split" in entry]
    log = _Log(steps, validations, best_validation(validations), _epoch_steps(steps))
    figure = Figure(figsize=(11, 6.4), layout="constrained")
    places = figure.subplot_mosaic("LLLSSS;rrvvww")
    figure.suptitle(_title(run), x=0.01, ha="left", fontsize=11, color=INK)
    _draw_losses(panel(places["L"], "losses (dots: validation)"), log)
    _draw_scores(panel(places["S"], "right answers"), log)
    _draw_one(panel(places["r"], "learning rate"), log, "lr", smooth=False)
    _draw_one(panel(places["v"], "images a second"), log, "images_per_second", smooth=True)
    _draw_one(panel(places["w"], "share of the time spent waiting for images"), log, "data_wait", smooth=True)
    places["w"].set_ylim(0, 1)
    places["w"].yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    places["v"].set_ylim(bottom=0)
    for axes in places.values():
        axes.set_xlim(0, 1.02 * max(2, steps[-1]["step"]))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        axes.set_xlabel("step")
    path = run / CURVES_NAME
    write_atomic(path, to_png(figure))
    return path


def _draw_losses(axes: Axes, log: _Log) -> None:
    """Faint as logged, bold the running mean; validated losses as dots of the same colour."""
    for index, name in enumerate(_names(log.steps, scores=False)):
        colour, dashes = COLOURS[index % len(COLOURS)], DASHES[index % len(DASHES)]
        x, y = _series(log.steps, name)
        if len(y) > 1:
            axes.plot(x, y, color=colour, alpha=0.25, linewidth=0.7)
        marker = "o" if len(y) == 1 else ""
        axes.plot(x, _smooth(y), color=colour, linestyle=dashes, linewidth=1.8, marker=marker, label=_label(name))
        held, validated = _series(log.validations, name)
        if len(held):
            # Not in the legend, which the title spares half its entries.
            label = f"_{_label(name)}, validation"
            axes.plot(held, validated, "o", color=colour, markersize=5, markeredgecolor="white", label=label)
    _finish(axes, log)


def _draw_scores(axes: Axes, log: _Log) -> None:
    """Training thin and faint, validations as dots joined by lines of the same colour, the best one as a star."""
    for index, name in enumerate(dict.fromkeys([*SCORES, *_names(log.steps, scores=True)])):
        colour, dashes = COLOURS[index % len(COLOURS)], DASHES[index % len(DASHES)]
        x, y = _series(log.steps, name)
        if len(x):
            label = f"{_label(name)}, training"
            axes.plot(x, _smooth(y), color=colour, linestyle=dashes, linewidth=1.0, alpha=0.6, label=label)
        x, y = _series(log.validations, name)
        if len(x):
            label = f"{_label(name)}, validation"
            axes.plot(x, y, color=colour, linestyle=dashes, marker="o", markersize=3.5, linewidth=1.8, label=label)
    found = None if log.best is None else score(log.best)
    if log.best is not None and found is not None:
        step, (name, value) = log.best["step"], found
        label = f"best: {_label(name)} {value:.3f}, epoch {log.best['epoch'] + 1}"
        axes.plot([step], [value], "*", color=INK, markersize=13, markeredgecolor="white", label=label, zorder=5)
        axes.axvline(step, color=INK, linewidth=0.8, linestyle=(0, (2, 2)), zorder=0)
    if axes.lines:
        axes.set_ylim(-0.02, 1.02)
    else:
        axes.text(0.5, 0.5, "none measured", transform=axes.transAxes, ha="center", color=FAINT)
        axes.set_yticks([])
    _finish(axes, log)


def _draw_one(axes: Axes, log: _Log, name: str, *, smooth: bool) -> None:
    x, y = _series(log.steps, name)
    if not smooth:
        axes.plot(x, y, color=COLOURS[0], linewidth=1.8, marker="o" if len(y) == 1 else "")
        axes.set_ylim(bottom=0)
        return
    axes.plot(x, y, color=COLOURS[0], alpha=0.25, linewidth=0.7)
    axes.plot(x, _smooth(y), color=COLOURS[0], linewidth=1.8, marker="o" if len(y) == 1 else "")


def _finish(axes: Axes, log: _Log) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, loc="best", framealpha=0.85, edgecolor="none")
    if log.epoch_steps is not None:
        each = log.epoch_steps
        epochs = (lambda step: np.asarray(step) / each, lambda epoch: np.asarray(epoch) * each)
        above = axes.secondary_xaxis("top", functions=epochs)
        above.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        above.tick_params(labelsize=7, color=FAINT, labelcolor=FAINT)
        above.spines["top"].set_visible(False)
        above.set_xlabel("epoch", fontsize=7, color=FAINT, loc="right", labelpad=2)


def _names(entries: Sequence[Entry], *, scores: bool) -> list[str]:
    """The losses among the steps' figures, or the shares of right answers, in the order of the log."""
    names = dict.fromkeys(name for entry in entries for name, value in entry.items() if isinstance(value, float))
    return [name for name in names if name not in OTHERS and ("accuracy" in name) == scores]


def _series(entries: Sequence[Entry], name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Steps and values where the value is a number; more than can be seen are averaged over equal stretches."""
    pairs = [
        (entry["step"], entry[name])
        for entry in entries
        if isinstance(entry.get(name), int | float) and math.isfinite(entry[name])
    ]
    both = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    if len(both) > MOST_POINTS:
        both = np.stack([part.mean(0) for part in np.array_split(both, MOST_POINTS)])
    return both[:, 0], both[:, 1]


def _smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return running_mean(values, max(1, len(values) // 20))


def _epoch_steps(steps: Sequence[Entry]) -> float | None:
    """Steps an epoch, from the first finished one; None while there is none."""
    first = steps[0]["epoch"]
    behind = next((entry["step"] for entry in steps if entry["epoch"] > first), None)
    return None if behind is None else (behind - 1) / (first + 1)


def _label(name: str) -> str:
    return {"auc": "AUC", "macro_auc": "mean AUC"}.get(name, name.replace("_", " "))


def _title(run: Path) -> str:
    try:
        record = open_run(run)
    except MstlError:
        return run.name
    return f"{run.name}: stage {record.stage}, {record.model}"
