"""What a heatmap is worth on one image and on all of them: focus on the lungs, deletion and insertion."""

from __future__ import annotations

import csv
import io
import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray
from torch import Tensor, nn

from mstl.evaluation.explain_curves import STEPS, area_under, deletion_curve, insertion_curve, pixel_ranks
from mstl.evaluation.intervals import RESAMPLES, Clusters, bootstrap, clusters_of, intervals, method
from mstl.evaluation.lung_focus import LungFocus, lung_focus
from mstl.evaluation.weighted import Statistic, Values
from mstl.study.figures import COLOURS, DASHES, panel, to_png

CAM, ATTENTION = "CAM", "attention"
CHANCE = "chance"  # a map of noise on the CAM's grid: what the figures are of a map that knows nothing
SEED = 0
Curve = NDArray[np.float64]

FIGURES: dict[str, Callable[[Measured], float]] = {
    "lung_mass": lambda m: m.focus.mass,
    "lift": lambda m: m.focus.lift,
    "pointing_hit": lambda m: m.focus.hit,
    "deletion_auc": lambda m: area_under(m.deletion),
    "insertion_auc": lambda m: area_under(m.insertion),
}
"""What is measured of every map, by the name of its column; nan where the map or the mask is empty."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """One map of one image. label: the true class where it is known; probability: of class `explained`.

    deletion, insertion: curves of explain_curves, all nan for an empty map, which orders no pixels.
    """

    image: str
    patient: str | None
    label: str | None
    run: str
    map: str
    explained: str
    probability: float
    focus: LungFocus
    deletion: Curve
    insertion: Curve


def measure(
    classifier: nn.Module, x: Tensor, heat: Tensor, mask: Tensor, class_index: int, *, name: str
) -> tuple[LungFocus, Curve, Curve]:
    """Focus, deletion and insertion of the map [h, w] for one image x [3, H, W] with its mask [H, W].

    name: of the image; what is drawn at random (the order of equal pixels) is drawn from it.
    """
    focus = lung_focus(heat, mask)
    if not bool(heat.amax() > 0):
        nothing = np.full(STEPS + 1, math.nan)
        return focus, nothing, nothing
    ranks = pixel_ranks(heat, (int(x.shape[1]), int(x.shape[2])), _generator(name))
    return (
        focus,
        deletion_curve(classifier, x, ranks, class_index),
        insertion_curve(classifier, x, ranks, class_index),
    )


def chance_map(like: Tensor, *, name: str) -> Tensor:
    """A map [h, w] of even noise in 0..1, the same for the same image's name."""
    return torch.rand(like.shape, generator=_generator(f"{CHANCE} {name}"))


def measured_csv(rows: Sequence[Measured]) -> str:
    """The text of heatmaps.csv: one line for each image, run and map; a figure that is not defined is left empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "patient", "label", "run", "map", "explained", "probability", "lung_area", *FIGURES])
    for row in rows:
        numbers = [row.probability, row.focus.lung_area, *(figure(row) for figure in FIGURES.values())]
        cells = ["" if math.isnan(number) else repr(float(number)) for number in numbers]
        writer.writerow([row.image, row.patient or "", row.label or "", row.run, row.map, row.explained, *cells])
    return text.getvalue()


def summarise(rows: Sequence[Measured]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """For each run and map, and for attention − CAM, the mean of every figure with its 95 % interval; and their method.

    Patients are drawn with all their images where every image has one, else images. A figure's `n` is of how many
    images it is defined; `mean`, `low` and `high` are None where there is none, or one image for an interval.
    """
    groups: dict[tuple[str, str], list[Measured]] = {}
    for row in rows:
        groups.setdefault((row.run, row.map), []).append(row)
    figures = {key: _figures(group) for key, group in groups.items()}
    for run in dict.fromkeys(run for run, _ in groups):
        if (run, ATTENTION) in figures:
            both = figures[run, ATTENTION], figures[run, CAM]
            figures[run, f"{ATTENTION} − {CAM}"] = {name: both[0][name] - both[1][name] for name in both[0]}
    # Every run and map is measured on the same images, in the same order.
    clusters = clusters_of([row.patient for row in next(iter(groups.values()))])
    summary = [
        {"run": run, "map": kind, **_means_with_intervals(values, clusters)} for (run, kind), values in figures.items()
    ]
    how = method(clusters, resamples=RESAMPLES, seed=SEED, one_class=0)
    del how["resamples_without_a_class"]  # nothing here has classes
    return summary, how


def _figures(group: Sequence[Measured]) -> dict[str, Values]:
    """[images] of each figure of one map."""
    columns = {"lung_area": lambda row: row.focus.lung_area, **FIGURES}
    return {name: np.array([figure(row) for row in group]) for name, figure in columns.items()}


def _means_with_intervals(values: dict[str, Values], clusters: Clusters) -> dict[str, Any]:
    statistic = _means(values)
    (means,) = zip(*statistic(np.ones((1, len(clusters.index)))).values(), strict=True)
    found = intervals(bootstrap(statistic, clusters, resamples=RESAMPLES, seed=SEED), clusters)
    body: dict[str, Any] = {}
    for (name, column), mean in zip(values.items(), means, strict=True):
        n = int((~np.isnan(column)).sum())
        low, high = (found[name].low, found[name].high) if n > 1 else (None, None)
        body[name] = {"mean": None if n == 0 else float(mean), "low": low, "high": high, "n": n}
    return body


def _means(values: dict[str, Values]) -> Statistic:
    """Means of what is defined, nan where nothing is."""

    def statistic(weights: Values) -> dict[str, Values]:
        found = {}
        for name, column in values.items():
            there = ~np.isnan(column)
            total = weights[:, there].sum(1)
            found[name] = np.divide(
                weights[:, there] @ column[there], total, out=np.full(len(weights), np.nan), where=total > 0
            )
        return found

    return statistic


def curves_figure(rows: Sequence[Measured], *, title: str) -> bytes:
    """The mean deletion and insertion curve of every run and map, side by side, as PNG."""
    groups: dict[str, list[Measured]] = {}
    several = len({row.run for row in rows}) > 1
    for row in rows:
        groups.setdefault(f"{row.run}: {row.map}" if several else row.map, []).append(row)
    figure = Figure(figsize=(8.4, 3.9), layout="constrained")
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    shares = np.linspace(0, 1, STEPS + 1)
    for place, kind in enumerate(("deletion", "insertion")):
        axes = panel(figure.add_subplot(1, 2, place + 1), f"{kind} ({('lower', 'higher')[place]} is better)")
        for index, (name, group) in enumerate(groups.items()):
            curves = np.stack([getattr(row, kind) for row in group])
            curves = curves[~np.isnan(curves).any(1)]
            if len(curves):
                mean: Curve = curves.mean(0)
                axes.plot(shares, mean, color=COLOURS[index % len(COLOURS)], linestyle=DASHES[index % len(DASHES)],
                          linewidth=2, label=f"{name} (AUC {area_under(mean):.3f})")  # fmt: skip
        axes.set(xlim=(0, 1), ylim=(0, 1))
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_xlabel(f"pixels {('deleted', 'inserted')[place]}, most important first")
        axes.set_ylabel("mean probability of the explained class")
        axes.legend(frameon=False, fontsize=8)
    return to_png(figure)


def _generator(name: str) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32(name.encode()))
