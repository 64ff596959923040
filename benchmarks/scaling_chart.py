"""The predictions as curves: share of perfect scaling over the number of GPUs, a panel a stage and batch."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.scaling_model import NETWORKS, Work, predict
from shards.files import write_atomic

GPUS = tuple(2**power for power in range(11))
# Okabe and Ito's colours, told apart by lightness and marker too.
STYLES = (("#0072b2", "o"), ("#d55e00", "s"), ("#000000", "^"))


def draw(works: Sequence[Work], out: Path) -> None:
    """Write the curves of resnet50-attn5 as a PNG."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    supervised = next(work for work in works if work.name == "stl_n" and work.model == "resnet50-attn5")
    contrast = next(work for work in works if work.name == "sstl_m")
    figure = Figure(figsize=(13, 4.8), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    _panel(panels[0], supervised, 256, "stl_n, 256 images a GPU")
    _panel(panels[1], supervised, 32, "stl_n, 32 images a GPU (as the paper)")
    _panel(panels[2], contrast, 32, "sstl_m, 32 images a GPU (as the paper)")
    panels[0].set_ylabel("images/s a GPU, against one GPU alone (%)")
    keys = [Line2D([], [], color=colour, marker=marker, label=f"{link.name} a node")
            for link, (colour, marker) in zip(NETWORKS, STYLES, strict=True)]  # fmt: skip
    keys += [
        Line2D([], [], color="#555555", label="gradients overlapped"),
        Line2D([], [], color="#555555", linestyle="--", label="not overlapped"),
    ]
    figure.legend(handles=keys, loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle("Predicted, not measured: resnet50-attn5 on nodes of 8 H200, gradients in float32, hierarchical")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    write_atomic(out, buffer.getvalue())


def _panel(axes: Any, work: Work, batch: int, title: str) -> None:
    for link, (colour, marker) in zip(NETWORKS, STYLES, strict=True):
        for line, overlap in (("-", True), ("--", False)):
            shares = [100 * predict(work, batch, gpus, link, algorithm="hierarchical", overlap=overlap).efficiency
                      for gpus in GPUS]  # fmt: skip
            filled = colour if line == "-" else "white"
            axes.plot(GPUS, shares, line, color=colour, marker=marker, markersize=5, markerfacecolor=filled)
    axes.set_xscale("log", base=2)
    axes.set_xticks(GPUS[::2], [f"{gpus:,}" for gpus in GPUS[::2]])
    axes.set_ylim(0, 104)
    axes.set_xlabel("GPUs")
    axes.set_title(title, fontsize=11, loc="left")
    axes.grid(alpha=0.3)
    axes.axvline(8, color="#999999", linewidth=0.8)
    axes.text(7.6, 2, "one node", fontsize=8, color="#555555", ha="right")
    axes.spines[["top", "right"]].set_visible(False)
