"""How training would scale to 1,024 GPUs: predicted from named numbers, planned by the real plan, checked on two ranks.

Run with `mstl bench scaling` or `python -m benchmarks.scaling`; docs/cluster.md says what the figures mean. No GPU
takes part: what it says of GPUs is arithmetic on the inputs that the JSON lists with their sources.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import click

from benchmarks import machine
from benchmarks.scaling_check import Small, check
from benchmarks.scaling_model import H100_THIRD, NETWORKS, PIXEL_BYTES, Link, Work, h100_step, inputs, predict
from benchmarks.scaling_plan import SETS, simulate
from mstl.cli.boundary import exit_with
from shards.files import write_atomic

PACKAGES = ("mstl", "torch", "numpy")
RESULTS = Path(__file__).parent / "results"
GPUS = (1, 8, 16, 64, 256, 1024)
RANK_BATCHES = (256, 32)
IMAGE_BYTES = 3 * 224 * 224 * PIXEL_BYTES
ASSUMPTIONS = (
    "every GPU computes as fast as one of MLPerf's H200 at batch 400 does, plus a fixed time a step: our own program "
    "has not run on a GPU and will be slower",
    "data never waits: the loader keeps up",
    "ranks are equally fast; nothing else uses the network",
    "gradients are reduced in float32 by the engine's default; in bfloat16 it would be half of that",
    "a ring passes each node through one of its cards, the hierarchy uses all of them",
    "with overlap, the gradients but for the last bucket are reduced while backward runs, at no cost to it",
    "momentum contrast waits for its images and keys: every rank gets the images that it encodes for others (shuffled "
    "batch normalisation), and the keys of all ranks",
)


def works() -> list[Work]:
    """The stages that are predicted, with gradients counted from the real networks."""
    import torch

    from mstl.models.registry import build_backbone

    found = []
    with torch.device("meta"):
        for model in ("resnet50-attn5", "resnet101-attn5"):
            backbone = build_backbone(model)
            weights = sum(parameter.numel() for parameter in backbone.parameters())
            classes = (backbone.out_features + 1) * 1000
            found.append(Work("stl_n", model, 4 * (weights + classes), 1, 0, 1, 0))
            if model == "resnet50-attn5":
                projection, regions = backbone.out_features * 128 + 128, (backbone.out_features + 1) * 5
                found.append(Work("sstl_m", model, 4 * (weights + projection + regions), 6, 1, 7 / 3, IMAGE_BYTES))
                found.append(Work("sstl_m moco", model, 4 * (weights + projection), 1, 1, 4 / 3, IMAGE_BYTES))
    return found


def predictions(given: list[Work]) -> Iterator[dict[str, Any]]:
    """Every stage, batch, network and way to talk, for all numbers of GPUs."""
    for work in given:
        for batch in RANK_BATCHES:
            for network in NETWORKS:
                for algorithm in ("ring", "hierarchical"):
                    for overlap in (False, True):
                        yield _row(work, batch, network, algorithm, overlap)


def _row(
    work: Work,
    batch: int,
    network: Link,
    algorithm: Literal["ring", "hierarchical"],
    overlap: bool,
) -> dict[str, Any]:
    steps = [predict(work, batch, gpus, network, algorithm=algorithm, overlap=overlap) for gpus in GPUS]
    return {
        "stage": work.name, "model": work.model, "rank_batch": batch, "network": network.name, "algorithm": algorithm,
        "overlap": overlap,
        "images_per_second": [round(step.images_per_second) for step in steps],
        "efficiency": [round(step.efficiency, 3) for step in steps],
    }  # fmt: skip


def third_point() -> list[dict[str, float]]:
    """The compute model against the published runs that it was not made from."""
    return [
        {"gpus": gpus, "rank_batch": batch, "reported_images_per_second": rate,
         "predicted_images_per_second": batch / h100_step(batch),
         "predicted_over_reported": batch / h100_step(batch) / rate}
        for gpus, (batch, rate) in H100_THIRD.items()
    ]  # fmt: skip


@click.command("scaling", context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.option("--rounds", type=click.IntRange(1), default=15, help="Of every measurement on two ranks, in turn.")
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS / "scaling.json",
              help="The JSON to write; a PNG of the same name comes beside it.")  # fmt: skip
def command(rounds: int, out: Path) -> None:
    """Measure two ranks here, predict 1 to 1,024 GPUs, and plan ImageNet for each of them.

    Takes some minutes on two idle cores. The predictions are arithmetic: the JSON lists what they rest on.
    """
    from benchmarks import scaling_chart
    from mstl.cli.progress import rich_progress

    date, hardware = datetime.now(UTC), machine.hardware()
    machine.require_writable(out)
    given = works()
    with rich_progress() as progress:
        progress.start(1 + len(SETS) * len(GPUS), "two ranks, then plans")
        with tempfile.TemporaryDirectory(prefix="mstl-bench-") as folder:
            checked = check(Small(rounds=rounds), Path(folder))
        progress.advance()
        plans = []
        for each in SETS:
            for gpus in GPUS:
                with tempfile.TemporaryDirectory(prefix="mstl-bench-") as folder:
                    plans.append(simulate(each, gpus, Path(folder)))
                progress.advance()
    body = {
        "benchmark": "scaling", "date": date.isoformat(timespec="seconds"), "hardware": hardware,
        "versions": machine.versions(PACKAGES), "assumptions": ASSUMPTIONS,
        "inputs": [asdict(number) for number in inputs(given)], "gpus": GPUS,
        "predictions": list(predictions(given)), "plans": plans, "two_ranks": checked, "published": third_point(),
    }  # fmt: skip
    write_atomic(out, (json.dumps(body, indent=1) + "\n").encode())
    scaling_chart.draw(given, out.with_suffix(".png"))
    _show(body)
    click.echo(f"Wrote {out} and {out.with_suffix('.png').name}")


def _show(body: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=max(130, Console().width))
    table = Table(title="Predicted images/s (share of perfect scaling), resnet50-attn5, hierarchical, overlapped")
    for title in (
        "stage",
        "batch a GPU",
        "network",
        *(f"{gpus:,} GPUs" for gpus in body["gpus"]),
    ):
        table.add_column(title, justify="right" if "GPU" in title else "left")
    for row in body["predictions"]:
        if row["model"] == "resnet50-attn5" and row["algorithm"] == "hierarchical" and row["overlap"]:
            cells = [f"{rate:,} ({share:.0%})" for rate, share in zip(row["images_per_second"], row["efficiency"],
                                                                      strict=True)]  # fmt: skip
            table.add_row(row["stage"], str(row["rank_batch"]), row["network"], *cells)
    console.print(table)
    table = Table(title="The plan: one shuffled epoch")
    for title in ("set", "GPUs", "steps", "samples a rank", "left out", "tars a rank", "ranks a tar",
                  "bytes: most/mean", "plan s", "index s"):  # fmt: skip
        table.add_column(title, justify="left" if title == "set" else "right")
    for plan in body["plans"]:
        if "refused" in plan:
            table.add_row(plan["set"], f"{plan['gpus']:,}", "refused")
            continue
        table.add_row(
            plan["set"], f"{plan['gpus']:,}", f"{plan['steps_per_epoch']:,}", f"{plan['samples_per_rank']:,}",
            f"{plan['left_out']:,} ({plan['left_out_share']:.1%})", f"{plan['tars_per_rank']['mean']:,.0f}",
            f"{plan['ranks_per_tar']:.1f}", f"{plan['bytes_most_over_mean']:.2f}",
            f"{plan['plan_seconds_per_rank']:.3f}", f"{plan['index_seconds']:.2f}",
        )  # fmt: skip
    console.print(table)
    table = Table(title="Predicted against measured")
    for title in ("", "predicted", "measured", "ratio"):
        table.add_column(title, justify="right" if title else "left")
    for name, part in body["two_ranks"]["ranks"].items():
        times = [f"{part[f'{kind}_seconds'] * 1e3:,.1f} ms" for kind in ("predicted", "measured")]
        table.add_row(f"gloo, ranks: {name}", *times, f"{part['predicted_over_measured']:.2f}")
    for part in body["published"]:
        rates = [f"{part[f'{kind}_images_per_second']:,.0f} images/s a GPU" for kind in ("predicted", "reported")]
        name = f"MLPerf, {part['gpus']:,} H100, batch {part['rank_batch']}"
        table.add_row(name, *rates, f"{part['predicted_over_reported']:.2f}")
    console.print(table)


if __name__ == "__main__":
    exit_with(lambda: command.main(standalone_mode=False))
