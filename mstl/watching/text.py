"""How a run reads: the words of its plain lines and of its live display."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from mstl.runs import score
from mstl.watching.meter import Meter, clock_text

_PLACE = frozenset({"step", "epoch", "split"})


def speed_text(meter: Meter) -> str:
    """For example: 2.31 step/s, 74 img/s, 3% waiting for data."""
    pace = meter.steps_per_second
    steps = "" if pace is None else f"{figure(pace)} step/s, "
    return f"{steps}{figure(meter.images_per_second)} img/s, {meter.data_wait:.0%} waiting for data"


def losses_text(meter: Meter) -> str:
    """For example: loss 0.693, accuracy 0.512, lr 0.01; what counts events (unreadable images) as it stands."""
    words = [f"{name} {value:.4g}" for name, value in meter.losses.items()]
    words += [f"{name} {value}" for name, value in meter.entry.items() if name in ("unreadable", "skipped") and value]
    if "lr" in meter.entry:
        words.append(f"lr {meter.entry['lr']:.3g}")
    return ", ".join(words)


def line_text(meter: Meter, epochs: int) -> str:
    """A plain line, whole."""
    epoch = int(meter.entry["epoch"]) + 1
    return (
        f"step {meter.done:,}/{meter.steps:,} ({meter.done / meter.steps:.0%}), epoch {epoch}/{epochs}, "
        f"{losses_text(meter)}, {speed_text(meter)}, {clock_text(meter.left_seconds)} left"
    )


def metrics_text(entry: Mapping[str, Any]) -> str:
    """A validation's metrics: auc 0.931, accuracy 0.85, ...; undefined ones left out."""
    return ", ".join(
        f"{name} {value:.4g}"
        for name, value in entry.items()
        if name not in _PLACE and isinstance(value, float) and math.isfinite(value)
    )


def best_text(entry: Mapping[str, Any]) -> str:
    """For example: auc 0.931 in epoch 12."""
    found = score(entry)
    assert found is not None, "the best validation has a score"
    return f"{found[0]} {found[1]:.4g} in epoch {int(entry['epoch']) + 1}"


def figure(value: float) -> str:
    """Three digits, whole above ten, thousands parted by commas."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.3g}"
