"""The attention benchmark as rooflines: achieved FLOPs a second over FLOPs a byte, a panel for core and whole layer."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from shards.files import write_atomic

# Okabe and Ito's colours; backends are told apart by colour and lightness, positions by marker.
COLOURS = {"eager": "#000000", "sdpa": "#e69f00", "fused": "#0072b2"}
MARKERS = ("o", "s", "^", "D", "v", "P")
TITLES = {"core": "core alone, forward and backward", "layer": "whole layer, forward and backward"}


def draw(body: Mapping[str, Any], out: Path) -> None:
    """Write the training passes of a result as a PNG: a row of two charts for each dtype."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    dtypes = list(body["ceilings"])
    figure = Figure(figsize=(11, 1.2 + 4.4 * len(dtypes)), layout="constrained")
    panels = figure.subplots(len(dtypes), 2, squeeze=False, sharex="row", sharey="row")
    positions = list(dict.fromkeys(case["position"] for case in body["cases"]))
    shown: set[str] = set()
    for row, dtype in zip(panels, dtypes, strict=True):
        cases = [case for case in body["cases"] if case["dtype"] == dtype]
        points = {what: list(_points(cases, what)) for what in TITLES}
        every = [point for some in points.values() for point in some]
        shown |= {point.backend for point in every}
        for axes, what in zip(row, TITLES, strict=True):
            _roof(axes, body["ceilings"][dtype], every)
            for point in points[what]:
                marker = MARKERS[positions.index(point.position) % len(MARKERS)]
                # Hollow, so that backends of equal speed show through each other.
                axes.plot(point.intensity, point.rate, marker=marker, color=COLOURS[point.backend], markersize=8,
                          markerfacecolor="none", markeredgewidth=1.8, linestyle="", zorder=2)  # fmt: skip
            axes.set_title(f"{TITLES[what]}, {dtype}", fontsize=10, loc="left")
        row[0].set_ylabel("GFLOP/s achieved")
    for axes in panels[-1]:
        axes.set_xlabel("FLOPs for each byte that must be moved")
    keys = [Line2D([], [], color=colour, marker="s", linestyle="", label=name) for name, colour in COLOURS.items()
            if name in shown]  # fmt: skip
    keys += [Line2D([], [], color="#666666", marker=marker, markerfacecolor="none", linestyle="", label=name)
             for name, marker in zip(positions, MARKERS, strict=False)]  # fmt: skip
    keys.append(Line2D([], [], color="#666666", label="measured ceilings"))
    figure.legend(handles=keys, loc="outside lower center", ncols=len(keys), frameon=False, fontsize=9)
    settings = body["settings"]
    figure.suptitle(
        f"Self-attention on {body['device']}, {settings['batch']} images of {settings['image_size']} px, "
        f"{body['date'][:10]}", fontsize=11,
    )  # fmt: skip
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    write_atomic(out, buffer.getvalue())


class _Point(NamedTuple):
    """FLOPs a byte, GFLOP/s."""

    intensity: float
    rate: float
    backend: str
    position: str


def _points(cases: Sequence[Mapping[str, Any]], what: str) -> Iterator[_Point]:
    for case in cases:
        for backend, figures in case[what].items():
            if "unavailable" not in figures:
                found = figures["training"]
                intensity = found["flops_per_second"] / found["bytes_per_second"]
                yield _Point(intensity, found["flops_per_second"] / 1e9, backend, case["position"])


def _roof(axes: Any, ceilings: Mapping[str, float], points: Sequence[_Point]) -> None:
    """The ceilings, and axes wide enough for them and for all points of the row."""
    from matplotlib.ticker import FuncFormatter

    peak, copy = ceilings["flops_per_second"] / 1e9, ceilings["bytes_per_second"] / 1e9
    knee = peak / copy
    low, high = (pick([knee, *(point.intensity for point in points)]) for pick in (min, max))
    low, high = low / 2, high * 2
    axes.plot([low, knee, high], [low * copy, peak, peak], color="#666666", linewidth=1.2, zorder=1)
    axes.text(high / 1.1, peak * 1.06, f"matrix products: {peak:,.0f} GFLOP/s", ha="right", va="bottom", fontsize=8)
    axes.text(low * 1.1, peak * 1.06, f"copies: {copy:,.1f} GB/s", ha="left", va="bottom", fontsize=8)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(low, high)
    axes.set_ylim(min(low * copy, *(0.6 * point.rate for point in points), peak / 2), 2 * peak)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.grid(alpha=0.3, which="both")
    axes.spines[["top", "right"]].set_visible(False)
