"""The figures of an evaluation and a report, as PNG bytes: legible in print and to the colour-blind."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator, PercentFormatter
from matplotlib.typing import DrawStyleType
from numpy.typing import NDArray

# Okabe and Ito's palette, told apart with any common colour vision; line styles tell them apart in grey print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", "-.", ":")
MARKERS = ("o", "D", "s")
INK, FAINT = "#222222", "#8a8a8a"
DOTS_PER_INCH = 160
CLASSES_WITH_NUMBERS = 12


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """A named line: x [N] and y [N] of the same length."""

    name: str
    x: NDArray[np.floating]
    y: NDArray[np.floating]


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """A named point."""

    name: str
    x: float
    y: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Area:
    """A named band: low and high [N] at x [N]."""

    name: str
    x: NDArray[np.floating]
    low: NDArray[np.floating]
    high: NDArray[np.floating]


class Bins(Protocol):
    """What `reliability_figure` draws, all [B]: centres, mean predictions, shares that came true, intervals, images."""

    @property
    def name(self) -> str: ...
    @property
    def width(self) -> float: ...
    @property
    def centres(self) -> NDArray[np.float64]: ...
    @property
    def predicted(self) -> NDArray[np.float64]: ...
    @property
    def observed(self) -> NDArray[np.float64]: ...
    @property
    def low(self) -> NDArray[np.float64]: ...
    @property
    def high(self) -> NDArray[np.float64]: ...
    @property
    def counts(self) -> NDArray[np.int64]: ...


def roc_figure(curves: Sequence[Curve], *, title: str, band: Area | None = None, marks: Sequence[Mark] = ()) -> bytes:
    """ROC curves in one square: x = false positive rate, y = true positive rate, chance as a dotted diagonal.

    band: around the first curve. marks: points on it, as operating points are.
    """
    figure = Figure(figsize=(4.6, 4.6), layout="constrained")
    axes = panel(figure.add_subplot(), title)
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=(0, (1, 2)), label="chance")
    _curves(axes, curves, band, marks, drawstyle="default")
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes.set_xlabel("1 − specificity (false positive rate)")
    axes.set_ylabel("sensitivity (true positive rate)")
    handles, names = axes.get_legend_handles_labels()
    axes.legend(handles[1:] + handles[:1], names[1:] + names[:1], loc="lower right", frameon=False, fontsize=8)
    return to_png(figure)


def pr_figure(curves: Sequence[Curve], *, title: str, share: float | None, marks: Sequence[Mark] = ()) -> bytes:
    """Precision against recall, as the steps whose area is the average precision.

    share: of positives among the images, which is the precision of guessing; drawn dotted.
    """
    figure = Figure(figsize=(4.6, 4.6), layout="constrained")
    axes = panel(figure.add_subplot(), title)
    stepped = [Curve(name=curve.name, x=np.append(0.0, curve.x), y=np.append(curve.y[:1], curve.y)) for curve in curves]
    _curves(axes, stepped, None, marks, drawstyle="steps-pre")
    if share is not None:
        axes.axhline(share, color=FAINT, linewidth=1, linestyle=(0, (1, 2)), label=f"chance ({share:.2f})")
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes.set_xlabel("recall (sensitivity)")
    axes.set_ylabel("precision (positive predictive value)")
    axes.legend(loc="lower left", frameon=False, fontsize=8)
    return to_png(figure)


def reliability_figure(sets: Sequence[Bins], *, title: str, x_label: str, y_label: str) -> bytes:
    """Reliability diagram: the share that came true against the mean prediction of each bin, below the images in it.

    The dotted diagonal is perfect calibration, above it predictions are too low. Bars are the bins' own intervals, and
    a larger point stands for more images.
    """
    figure = Figure(figsize=(4.6, 6.0), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    panel(upper, title)
    upper.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=(0, (1, 2)), label="perfect")
    for index, bins in enumerate(sets):
        colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
        reach = np.stack([bins.observed - bins.low, bins.high - bins.observed]).clip(0)
        upper.errorbar(bins.predicted, bins.observed, reach, fmt="none", ecolor=colour, alpha=0.4, linewidth=1)
        # No line joins the bins: between two of a few images each it would draw what nobody measured.
        areas = 14 + 90 * bins.counts / max(1, bins.counts.max())
        upper.scatter(bins.predicted, bins.observed, areas, color=colour, marker=marker, label=bins.name, clip_on=False)
        width = bins.width / len(sets)
        left = bins.centres - bins.width / 2 + index * width
        lower.bar(left, bins.counts, 0.9 * width, align="edge", color=colour)
    upper.set(xlim=(0, 1), ylim=(0, 1))
    upper.set_ylabel(y_label)
    panel(lower, "")
    lower.set_ylim(bottom=0)
    lower.yaxis.set_major_locator(MaxNLocator(nbins=3, integer=True))
    lower.set_xlabel(x_label)
    lower.set_ylabel("images")
    # Below both: in the panel it would cover bins.
    legend = figure.legend(loc="outside lower center", frameon=False, fontsize=8)
    for handle in legend.legend_handles:
        if isinstance(handle, PathCollection):
            handle.set_sizes([36])
    return to_png(figure)


def _curves(
    axes: Axes, curves: Sequence[Curve], band: Area | None, marks: Sequence[Mark], *, drawstyle: DrawStyleType
) -> None:
    for index, curve in enumerate(curves):
        colour, dashes = COLOURS[index % len(COLOURS)], DASHES[index % len(DASHES)]
        axes.plot(
            curve.x, curve.y, color=colour, linestyle=dashes, label=curve.name, linewidth=2, clip_on=False,
            drawstyle=drawstyle,
        )  # fmt: skip
    if band is not None:
        axes.fill_between(band.x, band.low, band.high, color=COLOURS[0], alpha=0.18, linewidth=0, label=band.name)
    for mark, shape in zip(marks, MARKERS, strict=False):
        axes.plot(
            [mark.x], [mark.y], marker=shape, markersize=8, color="white", markeredgecolor=INK, markeredgewidth=1.5,
            linestyle="none", label=mark.name, clip_on=False, zorder=5,
        )  # fmt: skip


def confusion_figure(counts: NDArray[np.integer], classes: Sequence[str], *, title: str) -> bytes:
    """A confusion matrix [C, C]: rows are the truth; shade and percentage are shares of the row, large figures counts.

    With more than twelve classes the cells carry no numbers and the axes only every n-th name.
    """
    totals = counts.sum(1, keepdims=True)
    shares = counts / np.maximum(totals, 1)
    few = len(classes) <= CLASSES_WITH_NUMBERS
    side = 2.6 + (0.75 * len(classes) if few else 4.0)
    figure = Figure(figsize=(side + 0.5, side), layout="constrained")
    axes = panel(figure.add_subplot(), title)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    shown = range(0, len(classes), 1 if few else math.ceil(len(classes) / 25))
    axes.set_xticks(list(shown), [classes[i] for i in shown], rotation=0 if len(classes) <= 3 else 60)
    axes.set_yticks(list(shown), [classes[i] for i in shown])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if few:
        for (row, column), count in np.ndenumerate(counts):
            share = shares[row, column]
            colour = "white" if share > 0.55 else INK
            axes.text(column, row - 0.06, str(count), ha="center", va="center", color=colour, fontsize=13)
            note = f"{share:.0%}" if totals[row, 0] else "none"
            axes.text(column, row + 0.24, note, ha="center", va="center", color=colour, fontsize=8)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, format=PercentFormatter(1.0, decimals=0))
    bar.set_label("share of the true class", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
    return to_png(figure)


def loss_figure(curves: Sequence[Curve], *, columns: int = 4) -> bytes:
    """Training loss against step, one panel a curve: faint as logged, bold its running mean over a twentieth.

    At most `columns` panels stand in a row, and all rows are about equally long.
    """
    rows = math.ceil(len(curves) / columns)
    columns = math.ceil(len(curves) / rows)
    figure = Figure(figsize=(3.1 * columns + 0.3, 2.3 * rows + 0.2), layout="constrained")
    for index, curve in enumerate(curves):
        axes = panel(figure.add_subplot(rows, columns, index + 1), curve.name)
        smooth = running_mean(curve.y, max(1, len(curve.y) // 20))
        axes.plot(curve.x, curve.y, color=COLOURS[0], alpha=0.3, linewidth=0.8)
        axes.plot(curve.x, smooth, color=COLOURS[0], linewidth=1.8, marker="o" if len(curve.x) == 1 else "")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
        axes.set_xlabel("step", fontsize=8)
        if index % columns == 0:
            axes.set_ylabel("training loss", fontsize=8)
    return to_png(figure)


def image_grid(
    rows: Sequence[Sequence[NDArray[np.floating]]], *, columns: Sequence[str], names: Sequence[str], title: str
) -> bytes:
    """Rows of [H, W, 3] images in 0..1 under column titles; `names` stand left of the rows."""
    # Placed by hand, in inches: a layout engine takes seconds over this many axes.
    cell, gap, left, top = 1.7, 0.05, 1.0, 0.65
    width = left + len(columns) * (cell + gap)
    height = top + len(rows) * (cell + gap)
    figure = Figure(figsize=(width, height))
    figure.text(gap / width, 1 - 0.22 / height, title, fontsize=10, color=INK, va="center")
    for index, column in enumerate(columns):
        middle = left + index * (cell + gap) + cell / 2
        figure.text(middle / width, 1 - 0.53 / height, column, fontsize=9, color=INK, ha="center", va="center")
    for row, (images, name) in enumerate(zip(rows, names, strict=True)):
        bottom = height - top - row * (cell + gap) - cell
        figure.text(
            (left - 0.08) / width, (bottom + cell / 2) / height, name, fontsize=8, color=INK, ha="right", va="center"
        )
        for index, image in enumerate(images):
            place = ((left + index * (cell + gap)) / width, bottom / height, cell / width, cell / height)
            axes = figure.add_axes(place)
            axes.imshow(image, vmin=0, vmax=1, interpolation="nearest", aspect="auto")
            axes.set_axis_off()
    return to_png(figure)


def running_mean(values: NDArray[np.floating], window: int) -> NDArray[np.float64]:
    """The mean of each value and up to window − 1 values before it; same length."""
    total = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    end = np.arange(1, len(values) + 1)
    begin = np.maximum(end - window, 0)
    means: NDArray[np.float64] = (total[end] - total[begin]) / (end - begin)
    return means


def panel(axes: Axes, title: str) -> Axes:
    """Axes in the house's style: title at the left, two spines, small figures."""
    axes.set_title(title, fontsize=10, color=INK, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(labelsize=8, color=FAINT, labelcolor=INK)
    axes.xaxis.label.set_fontsize(9)
    axes.yaxis.label.set_fontsize(9)
    return axes


def to_png(figure: Figure) -> bytes:
    """A figure as the bytes of a PNG file, the same for the same figure."""
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        text.set_parse_math(False)  # a class or a run may be called $x$
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DOTS_PER_INCH, facecolor="white", metadata={"Software": None})
    return file.getvalue()
