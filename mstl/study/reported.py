"""The figures that the paper prints, with its printing errors: reported, never measured here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

PAPER_NETWORKS = {
    "resnet50-attn0": "R-50 baseline",
    "resnet50-attn1": "R-50, 1 ATTN",
    "resnet50-attn5": "R-50, 5 ATTNs",
    "resnet101-attn0": "R-101 baseline",
    "resnet101-attn1": "R-101, 1 ATTN",
    "resnet101-attn5": "R-101, 5 ATTNs",
}
Key = tuple[int, str, str | None, str]  # table, network, column, metric


@dataclass(frozen=True, kw_only=True, slots=True)
class Reported:
    """A printed figure, in percent (Table 6: bits). gain: the improvement printed beside it; misprint: its error."""

    value: float
    gain: float | None = None
    misprint: str | None = None


@cache
def reported() -> Mapping[Key, Reported]:
    """Every figure of the paper's Tables 1 to 6 by table, network, column and metric."""
    return {
        (entry["table"], entry["network"], entry["column"], entry["metric"]): Reported(
            value=entry["value"], gain=entry["gain"], misprint=entry["misprint"]
        )
        for entry in _body()["entries"]
    }


def prose_errors() -> list[str]:
    """Where the paper's text and its own tables differ."""
    return list(_body()["prose"])


def reported_difference(first: tuple[str, str], second: tuple[str, str], metric: str) -> float | None:
    """A difference of two printed values (network, column) of Tables 2 to 5, in points; None where one is not there."""
    values = [_printed(network, column, metric) for network, column in (first, second)]
    return None if values[0] is None or values[1] is None else values[0] - values[1]


def _printed(network: str, column: str, metric: str) -> float | None:
    # Where a value stands in several tables, they agree (tested).
    return next((one.value for (table, net, col, name), one in reported().items()
                 if table < 6 and (net, col, name) == (network, column, metric)), None)  # fmt: skip


@cache
def _body() -> dict[str, Any]:
    body: dict[str, Any] = json.loads((files("mstl.study") / "reported.json").read_text())
    return body
