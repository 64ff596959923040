"""LEEP scores as in the paper's figure 3: networks side by side, each with its sources from least to most training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from mstl.evaluation.leep_run import Scored
from mstl.evaluation.leep_sources import NO_TRANSFER
from mstl.study.figures import COLOURS, FAINT, INK, panel, to_png

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_SPREAD = 0.56  # of the place a network has, in which its sources stand


def leep_figure(scored: Sequence[Scored], *, title: str) -> bytes:
    """One column of points for each network, in bits (nats at the right), as PNG; sources without a score are left out.

    A line joins a network's sources where each was trained on all that the one before was, and more: its slopes are
    the gain of each stage, as in figure 3. Colours and markers tell what a source was trained on. The dotted line is
    −H(Y), the score of a source that says nothing.
    """
    there = [(one, one.score) for one in scored if one.score is not None]
    networks = list(dict.fromkeys(one.source.model for one, _ in there))
    chains = list(dict.fromkeys(one.source.chain for one, _ in sorted(there, key=lambda pair: _depth(pair[0]))))
    figure = Figure(figsize=(max(5.0, 1.6 + 1.25 * len(networks)), 4.0), layout="constrained")
    axes = panel(figure.add_subplot(), title)
    for place, network in enumerate(networks):
        own = sorted((pair for pair in there if pair[0].source.model == network), key=lambda pair: _depth(pair[0]))
        step = _SPREAD / max(1, len(own) - 1)
        xs = [place + (index - (len(own) - 1) / 2) * step for index in range(len(own))]
        ys = [score.bits for _, score in own]
        if all(_goes_on(a, b) for (a, _), (b, _) in pairwise(own)):
            axes.plot(xs, ys, color=FAINT, linewidth=1.4, zorder=1)
        for x, y, (one, _) in zip(xs, ys, own, strict=True):
            kind = chains.index(one.source.chain)
            axes.plot(x, y, linestyle="", marker=MARKERS[kind % len(MARKERS)], markersize=8,
                      color=COLOURS[kind % len(COLOURS)])  # fmt: skip
    floor = there[0][1].floor_bits
    axes.axhline(floor, color=INK, linewidth=1, linestyle=(0, (1, 2)))
    for kind, chain in enumerate(chains):
        axes.plot([], [], linestyle="", marker=MARKERS[kind % len(MARKERS)], markersize=7,
                  color=COLOURS[kind % len(COLOURS)], label=" → ".join(chain))  # fmt: skip
    axes.plot([], [], color=INK, linewidth=1, linestyle=(0, (1, 2)), label="a source that says nothing, −H(Y)")
    axes.set_xticks(range(len(networks)), [str(network).removesuffix("-attn0") for network in networks])
    axes.set_xlim(-0.6, len(networks) - 0.4)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6))
    axes.set_ylabel("LEEP in bits (higher transfers better)")
    nats = axes.secondary_yaxis("right", functions=(_nats, _bits))
    nats.set_ylabel("nats", fontsize=9)
    nats.tick_params(labelsize=8, color=FAINT, labelcolor=INK)
    nats.spines["right"].set_color(FAINT)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return to_png(figure)


def _nats(bits: ArrayLike) -> NDArray[np.float64]:
    return np.asarray(bits, dtype=np.float64) * math.log(2)


def _bits(nats: ArrayLike) -> NDArray[np.float64]:
    return np.asarray(nats, dtype=np.float64) / math.log(2)


def _stages(one: Scored) -> tuple[str, ...]:
    return tuple(stage for stage in one.source.chain if stage != NO_TRANSFER)


def _depth(one: Scored) -> int:
    return len(_stages(one))


def _goes_on(one: Scored, other: Scored) -> bool:
    """Whether the other source has learned all that this one has, and more."""
    a, b = _stages(one), _stages(other)
    return len(b) > len(a) and b[: len(a)] == a
