"""A training step under our engine against plain torch DDP and stock DeepSpeed, and the way to the first step.

Run with `mstl bench engine` or `python -m benchmarks.engine`. All sides live in the same processes with the same
network, batch and optimizer, and take turns block by block: what slows the machine slows all of them alike.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from benchmarks import machine
from mstl.cli.boundary import exit_with
from shards.files import write_atomic

PACKAGES = ("mstl", "torch", "deepspeed")
RESULTS = Path(__file__).parent / "results"
OURS = "mstl"
TITLES = {OURS: "our engine", "ddp": "torch DDP", "deepspeed": "DeepSpeed, stage 0, as it comes"}


@click.command("engine", context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--model", "models", multiple=True, default=("resnet50",), metavar="NAME", help="A network; repeatable.")
@click.option("--ranks", type=click.IntRange(1), default=2, help="Processes, each on a GPU of its own or on the CPU.")
@click.option("--batch", type=click.IntRange(2), default=4, help="Images a rank.")
@click.option("--size", type=click.IntRange(32), default=224, help="Side of an image.")
@click.option("--precision", type=click.Choice(["off", "bf16"]), default="off", help="What autocast computes in.")
@click.option("--blocks", type=click.IntRange(1), default=15, help="Turns of each side.")
@click.option("--steps", type=click.IntRange(1), default=2, help="Steps in a turn.")
@click.option("--startup", is_flag=True, help="Measure the way from the command to the first step as well.")
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE",
              help="The JSON to write.  [default: benchmarks/results/engine-TIME.json]")  # fmt: skip
def command(
    models: tuple[str, ...], ranks: int, batch: int, size: int, precision: str, blocks: int, steps: int, startup: bool,
    out: Path | None,
) -> None:  # fmt: skip
    """Measure a step of our engine against torch DDP and stock DeepSpeed.

    \b
    Examples:
      mstl bench engine                                     resnet50 on 2 ranks, some minutes on two cores
      mstl bench engine --model resnet14 --batch 16 --size 64
      mstl bench engine --startup                           and what `mstl train` does before its first step
    """
    from benchmarks import engine_startup, engine_steps
    from mstl.cli.progress import rich_progress

    date, hardware = datetime.now(UTC), machine.hardware()
    out = out or RESULTS / f"engine-{date:%Y%m%dT%H%M%SZ}.json"
    machine.require_writable(out)
    settings = {"ranks": ranks, "batch": batch, "size": size, "precision": precision, "blocks": blocks, "steps": steps}
    body: dict[str, Any] = {
        "benchmark": "engine",
        "date": date.isoformat(timespec="seconds"),
        "hardware": hardware,
        "versions": machine.versions(PACKAGES),
        "settings": settings,
        "cases": {},
    }
    with rich_progress() as progress:
        progress.start(len(models) + startup, "measuring")
        for model in models:
            body["cases"][model] = engine_steps.measure(engine_steps.Settings(model=model, **settings))  # type: ignore[arg-type]
            progress.advance()
        if startup:
            body["startup"] = engine_startup.measure(ranks)
            progress.advance()
    write_atomic(out, (json.dumps(body, indent=1) + "\n").encode())
    _show(body)
    click.echo(f"Wrote {out}")


def _show(body: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console, settings = Console(), body["settings"]
    for model, case in body["cases"].items():
        table = Table(
            title=f"{model}, {settings['ranks']} ranks on {case['device']}, {settings['batch']} images of "
            f"{settings['size']} px a rank, precision {settings['precision']}",
            caption="medians (least to most); the ratio is of medians, the last column of CPU time of all ranks",
        )
        for title in ("", "ms a step", "ours/side", "CPU ms a step", "ours/side, CPU"):
            table.add_column(title, justify="left" if not title else "right")
        for side, found in case["sides"].items():
            ratios = case["ratios"].get(side, {})
            cells = []
            for name in ("wall_ms", "cpu_ms"):
                values = found[name]
                cells.append(f"{found['median'][name]:,.0f} ({min(values):,.0f} to {max(values):,.0f})")
                cells.append(f"{ratios[name]:.3f}" if ratios else "")
            table.add_row(TITLES[side], *cells)
        console.print(table)
    if "startup" in body:
        table = Table(title=f"From `mstl train --ranks {settings['ranks']}` to its first step", caption="seconds")
        table.add_column("part")
        table.add_column("s", justify="right")
        for part, seconds in body["startup"]["parts"].items():
            table.add_row(part, f"{seconds:.2f}")
        table.add_row("together", f"{body['startup']['seconds']:.2f}", style="bold")
        console.print(table)


if __name__ == "__main__":
    exit_with(lambda: command.main(standalone_mode=False))
