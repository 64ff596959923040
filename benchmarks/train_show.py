"""The training benchmark as tables: steps, where they go, scaling, and targets beside what was measured."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from benchmarks.attention_show import Target

if TYPE_CHECKING:
    from rich.console import Console

OURS, PLAIN, SYNTHETIC, REAL = "mstl", "plain", "synthetic", "shards"
TITLES = {
    OURS: "mstl",
    "compiled": "mstl, compiled",
    "nchw": "mstl, NCHW",
    "compiled-nchw": "mstl, compiled, NCHW",
    PLAIN: "plain DDP loop",
}
MOST_ATTN5 = {"cpu": 1.35, "cuda": 1.3}
# Goals for one H200 at 224 px. By method of momentum contrast, None if supervised: region branches have none.
_RATES = {
    (None, "resnet50-attn0", REAL): (5500, "stretch 7,950"),
    ("moco", "resnet50-attn0", SYNTHETIC): (4000, ""),
    ("moco_v2", "resnet50-attn0", SYNTHETIC): (4000, ""),
}
_OVER_PLAIN = {"attn0": 2.5, "attn1": 2.5, "attn5": 2.8}
_LEAST_FED = 0.97


def targets(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The targets that this result can be held against: those of the device that it is of."""
    world, size = body["worlds"][0], body["settings"]["size"]
    h200 = "H200" in world["device"] and size == 224
    if not h200 and (world["device_type"], size) != ("cpu", 96):
        return []
    found = list(_attention(world))
    if h200 and world["ranks"] == 1:
        found += _h200(world, body["settings"])
    return [asdict(target) for target in found]


def _attention(world: Mapping[str, Any]) -> Iterator[Target]:
    for model, feeds in world["models"].items():
        depth, _, attention = model.partition("-")
        base = world["models"].get(f"{depth}-attn0")
        if attention != "attn5" or base is None or OURS not in feeds[SYNTHETIC]:
            continue
        pairs = zip(feeds[SYNTHETIC][OURS]["wall_ms"], base[SYNTHETIC][OURS]["wall_ms"], strict=True)
        ratio = statistics.median(own / other for own, other in pairs)
        limit = MOST_ATTN5[world["device_type"]]
        yield Target(what=f"{depth}: step of attn5 / attn0", wanted=f"≤ {limit}", measured=f"{ratio:.2f}",
                     reached=ratio <= limit)  # fmt: skip


def _h200(world: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[Target]:
    for model, feeds in world["models"].items():
        for feed, sides in feeds.items():
            if OURS not in sides:
                continue
            rate = sides[OURS]["images_per_second"]
            goal = _RATES.get((settings["ssl"], model, feed))
            if goal is not None:
                least, more = goal
                yield Target(what=f"{model} on {feed}, one H200", wanted=f"≥ {least:,}/s {more}".strip(),
                             measured=f"{rate:,.0f}/s", reached=rate >= least)  # fmt: skip
            # Supervised it is meant from files to update, loaders included.
            if PLAIN in sides and (feed == REAL or settings["ssl"]):
                least_ratio = _OVER_PLAIN[model.partition("-")[2]]
                ratio = rate / sides[PLAIN]["images_per_second"]
                yield Target(what=f"{model} on {feed} against the plain loop", wanted=f"≥ {least_ratio} x",
                             measured=f"{ratio:.2f} x", reached=ratio >= least_ratio)  # fmt: skip
            if feed == REAL:
                fed = rate / feeds[SYNTHETIC][OURS]["images_per_second"]
                yield Target(what=f"{model}: real images / noise", wanted=f"≥ {_LEAST_FED}", measured=f"{fed:.2f}",
                             reached=fed >= _LEAST_FED)  # fmt: skip


def scaling(worlds: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of our side against the fewest ranks measured; none where there is but one number of ranks.

    efficiency: images a second of a rank, as a share of what a rank of the fewest did.
    """
    weak = [world for world in worlds if world["scaling"] == "weak"]
    fewest = min(weak, key=lambda world: int(world["ranks"]))
    rows = []
    for world in sorted(worlds, key=lambda each: (each["scaling"] != "weak", each["ranks"])):
        for model, feeds in world["models"].items():
            for feed, sides in feeds.items():
                base = fewest["models"][model].get(feed, {})
                if OURS not in sides or OURS not in base:
                    continue
                rate, alone = sides[OURS]["images_per_second"], base[OURS]["images_per_second"]
                rows.append({
                    "scaling": world["scaling"], "model": model, "feed": feed, "ranks": world["ranks"],
                    "rank_batch": world["batch"], "ms": sides[OURS]["median"]["wall_ms"], "images_per_second": rate,
                    "speedup": rate / alone, "efficiency": rate / alone * fewest["ranks"] / world["ranks"],
                })  # fmt: skip
    return rows if len({world["ranks"] for world in worlds}) > 1 else []


def show(body: Mapping[str, Any]) -> None:
    """Print the tables."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for world in body["worlds"]:
        if world["scaling"] == "weak":
            _steps(console, world, body["settings"])
        for model, profile in world["profiles"].items():
            _profile(console, model, profile)
    if body["scaling"]:
        table = Table(title="scaling of our side", caption="weak: the same batch a rank; strong: shared among ranks; "
                      "each: of what a rank of the fewest does", box=SIMPLE_HEAD, pad_edge=False)  # fmt: skip
        for title in ("", "ranks", "batch", "ms", "images/s", "speed-up", "each"):
            table.add_column(title, justify="right" if title else "left", no_wrap=True)
        shown = None
        for row in sorted(body["scaling"], key=lambda row: (row["model"], row["feed"])):  # else in their own order
            if (row["model"], row["feed"]) != shown:
                shown = row["model"], row["feed"]
                table.add_row(", ".join(shown), style="bold")
            table.add_row(f"  {row['scaling']}", str(row["ranks"]), str(row["rank_batch"]), f"{row['ms']:,.0f}",
                          f"{row['images_per_second']:,.1f}", f"{row['speedup']:.2f}",
                          f"{row['efficiency']:.0%}")  # fmt: skip
        console.print(table)
    if body["targets"]:
        table = Table(title="targets")
        for title in ("", "wanted", "measured", " "):
            table.add_column(title)
        for target in body["targets"]:
            reached = "reached" if target["reached"] else "missed"
            table.add_row(target["what"], target["wanted"], target["measured"], reached)
        console.print(table)
    for note in body["notes"]:
        console.print(note, markup=False, highlight=False)


def _steps(console: Console, world: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    method = "" if settings["ssl"] is None else f" by {settings['ssl']}"
    table = Table(
        title=f"{settings['stage']}{method}: {world['ranks']} x {world['device']}, {world['batch']} images of "
        f"{settings['size']} px a rank",
        caption="medians of a step; CPU ms of all ranks and workers; wait: share waiting for data; "
        "MiB: most memory of tensors",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    rate = "images/s" if settings["ssl"] is None else "pairs/s"
    for title in ("", "ms", rate, "x plain", "CPU ms", "wait", "MiB"):
        table.add_column(title, justify="right" if title else "left", no_wrap=True)
    for model, feeds in world["models"].items():
        for feed, sides in feeds.items():
            table.add_row(f"{model}, {feed}", style="bold")
            plain = sides.get(PLAIN, {}).get("images_per_second")
            for side, figures in sides.items():
                median = figures["median"]
                ratio = "" if plain is None or side == PLAIN else f"{figures['images_per_second'] / plain:.2f}"
                memory = f"{figures['peak_bytes'] / 2**20:,.0f}" if "peak_bytes" in figures else ""
                table.add_row(
                    f"  {TITLES[side]}", f"{median['wall_ms']:,.1f}", f"{figures['images_per_second']:,.1f}", ratio,
                    f"{median['cpu_ms']:,.0f}", f"{median['wait_ms'] / median['wall_ms']:.1%}", memory,
                )  # fmt: skip
    console.print(table)


def _profile(console: Console, model: str, profile: Mapping[str, Any]) -> None:
    from rich.table import Table

    if not profile.get("parts_ms"):
        return
    table = Table(title=f"where a step of {model} goes, on {profile['feed']}", caption=f"under the profiler, of "
                  f"{profile['steps']} steps; trace: {profile['trace']}")  # fmt: skip
    for title in ("part", "ms", "share"):
        table.add_column(title, justify="left" if title == "part" else "right")
    for part, ms in profile["parts_ms"].items():
        table.add_row(part, f"{ms:,.1f}", f"{profile['shares'][part]:.1%}")
    table.add_row("together", f"{sum(profile['parts_ms'].values()):,.1f}", "", style="bold")
    console.print(table)
