"""The attention benchmark as tables, and its targets beside what was measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

MOST_OVER_EAGER = 1.03
MOST_OVER_FLOOR = 1.8
# Goals for one H200 at 224 px in bf16, forward and backward: milliseconds of the core at batch 256, and how many
# times eager's and sdpa's speed; then of the whole layer, how many times eager's.
_H200 = {"res3": (1.15, 2.5, 1.3, 2.0), "res4": (0.23, 1.5, 4.0, 1.5), "res5": (None, 1.5, 3.0, 1.5)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """What was aimed at, what was measured, and whether it is enough."""

    what: str
    wanted: str
    measured: str
    reached: bool


def targets(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The targets that this result can be held against."""
    found: list[Target] = []
    for case in body["cases"]:
        if body["device_type"] == "cpu":
            found += _chosen(case)
        elif "H200" in body["device"]:
            found += _h200(body, case)
    return [asdict(target) for target in found]


def _chosen(case: Mapping[str, Any]) -> Iterator[Target]:
    for what, words in (("core", "core"), ("layer", "whole layer")):
        # Training alone: it is what the choice is made for.
        ratio = case[what].get(case["chosen"], {}).get("training", {}).get("over_eager")
        if ratio is not None:
            yield Target(what=f"{case['position']} {words}: chosen ({case['chosen']}) / eager, time",
                         wanted=f"≤ {MOST_OVER_EAGER}", measured=f"{ratio:.3f}",
                         reached=ratio <= MOST_OVER_EAGER)  # fmt: skip


def _h200(body: Mapping[str, Any], case: Mapping[str, Any]) -> Iterator[Target]:
    settings = body["settings"]
    if case["dtype"] != "bf16" or settings["image_size"] != 224 or case["position"] not in _H200:
        return
    position, backend = case["position"], case["chosen"]
    limit, over_eager, over_sdpa, layer_over_eager = _H200[position]
    if "training" not in case["core"].get(backend, {}):
        return
    own = case["core"][backend]["training"]
    if limit is not None and settings["batch"] == 256:
        yield Target(what=f"{position} core, {backend}, one H200", wanted=f"≤ {limit} ms",
                     measured=f"{own['median_ms']:.2f} ms", reached=own["median_ms"] <= limit)  # fmt: skip
    for peer, least in (("eager", over_eager), ("sdpa", over_sdpa)):
        other = case["core"].get(peer, {}).get("training")
        if other is not None:  # a choice of the peer itself has missed it, with 1.00
            ratio = other["median_ms"] / own["median_ms"]
            yield Target(what=f"{position} core: {backend} against {peer}", wanted=f"≥ {least} x",
                         measured=f"{ratio:.2f} x", reached=ratio >= least)  # fmt: skip
    layer = case["layer"][backend]["training"]
    yield Target(what=f"{position} whole layer, {backend} / floor", wanted=f"≤ {MOST_OVER_FLOOR}",
                 measured=f"{layer['over_floor']:.2f}", reached=layer["over_floor"] <= MOST_OVER_FLOOR)  # fmt: skip
    eager = case["layer"].get("eager", {}).get("training")
    if eager is not None:
        ratio = eager["median_ms"] / layer["median_ms"]
        yield Target(what=f"{position} whole layer: {backend} against eager", wanted=f"≥ {layer_over_eager} x",
                     measured=f"{ratio:.2f} x", reached=ratio >= layer_over_eager)  # fmt: skip


def show(body: Mapping[str, Any]) -> None:
    """Print the tables."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console, settings = Console(), body["settings"]
    for dtype, ceilings in body["ceilings"].items():
        console.print(
            f"{body['device']}, {dtype}: copies {ceilings['bytes_per_second'] / 1e9:,.1f} GB/s, "
            f"matrix products {ceilings['flops_per_second'] / 1e9:,.0f} GFLOP/s at best"
        )
        for what, words in (("core", "the core alone: softmax(QKᵀ)V"), ("layer", "the whole layer")):
            table = Table(
                title=f"{words}; {settings['batch']} images of {settings['image_size']} px",
                caption="medians; train: forward and backward; floor: least time at the ceilings; "
                "*: what `auto` chooses; †: not offered",
                box=SIMPLE_HEAD,
                pad_edge=False,
            )
            for title in ("", "fwd ms", "train ms", "/eager", "/floor", "GFLOP/s", "GB/s", "MiB"):
                table.add_column(title, justify="right" if title else "left", no_wrap=True)
            for case in body["cases"]:
                if case["dtype"] == dtype:
                    _add(table, case, what)
            console.print(table)
    if body["targets"]:
        table = Table(title="targets")
        for title in ("", "wanted", "measured", ""):
            table.add_column(title, justify="left")
        for target in body["targets"]:
            table.add_row(
                target["what"], target["wanted"], target["measured"], "reached" if target["reached"] else "missed"
            )
        console.print(table)
    for name, reason in _reasons(body).items():
        console.print(f"{name}: {reason}", markup=False, highlight=False)


def _add(table: Table, case: Mapping[str, Any], what: str) -> None:
    shape = case["shape"]
    table.add_row(f"{case['position']}: {shape['positions']} x {shape['channels'] // 2}", style="bold")
    for backend, figures in case[what].items():
        mark = " *" if backend == case["chosen"] else " †" if "not_offered" in figures else ""
        name = f"  {backend}{mark}"
        if "unavailable" in figures:
            table.add_row(name, *["–"] * 7, style="dim")
            continue
        forward, training = figures["forward"], figures["training"]
        over_eager = training["over_eager"]
        table.add_row(
            name, f"{forward['median_ms']:.3g}", f"{training['median_ms']:.3g}",
            "" if over_eager is None else f"{over_eager:.2f}", f"{training['over_floor']:.1f}",
            f"{training['flops_per_second'] / 1e9:,.0f}", f"{training['bytes_per_second'] / 1e9:,.1f}",
            f"{training['peak_bytes'] / 2**20:,.0f}",
        )  # fmt: skip


def _reasons(body: Mapping[str, Any]) -> dict[str, str]:
    """Why backends were not measured or are not offered."""
    return {
        f"{backend} in {case['dtype']}": figures[reason]
        for case in body["cases"]
        for backend, figures in case["core"].items()
        for reason in ("unavailable", "not_offered")
        if reason in figures
    }
