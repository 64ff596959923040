"""The loader benchmark as a bar chart: a panel a case, a bar a side, images per CPU-second."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shards.files import write_atomic

OURS_COLOUR, PEER_COLOUR = "#0072b2", "#999999"  # Okabe and Ito's blue, and grey: told apart by lightness too


def draw(body: Mapping[str, Any], ours: str, out: Path) -> None:
    """Write the cases of a result as a PNG; whiskers are the least and most of the runs."""
    from matplotlib.figure import Figure

    cases = body["cases"]
    heights = [len(case["sides"]) for case in cases.values()]
    figure = Figure(figsize=(9, 1.4 + 0.42 * sum(heights) + 0.75 * len(heights)), layout="constrained")
    panels = figure.subplots(len(cases), 1, squeeze=False, height_ratios=[n + 0.6 for n in heights])[:, 0]
    for axes, case in zip(panels, cases.values(), strict=True):
        _panel(axes, case, ours)
    panels[-1].set_xlabel("images per CPU-second (ours divided by the peer)")
    hardware = body["hardware"]
    figure.suptitle(
        f"Loading batches of {body['settings']['size']} px float32 on {hardware['cpu']}, "
        f"{hardware['cores_allowed']} cores, {body['date'][:10]}", fontsize=11,
    )  # fmt: skip
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    write_atomic(out, buffer.getvalue())


def _panel(axes: Any, case: Mapping[str, Any], ours: str) -> None:
    sides = list(case["sides"])
    rates = {side: [run["images_per_cpu_second"] for run in case["sides"][side]["runs"]] for side in sides}
    medians = [case["sides"][side]["median"]["images_per_cpu_second"] for side in sides]
    spread = [
        [median - min(rates[side]) for side, median in zip(sides, medians, strict=True)],
        [max(rates[side]) - median for side, median in zip(sides, medians, strict=True)],
    ]
    colours = [OURS_COLOUR if side == ours else PEER_COLOUR for side in sides]
    axes.barh(sides, medians, xerr=spread, color=colours, ecolor="#333333", capsize=2, height=0.7)
    axes.invert_yaxis()
    axes.set_title(case["task"], fontsize=10, loc="left")
    axes.set_xlim(0, 1.3 * max(max(values) for values in rates.values()))
    for place, (side, median) in enumerate(zip(sides, medians, strict=True)):
        ratio = case["ratios"].get(side)
        label = f"{median:,.0f}" + (f"  ({ratio['images_per_cpu_second']:.2f}×)" if ratio else "")
        axes.text(max(rates[side]) + 0.015 * axes.get_xlim()[1], place, label, va="center", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
