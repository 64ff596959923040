"""`mstl demo`: the whole chain on generated data, from raw images to the report."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click

from shards.schema import MAX_SEED

MODEL = "resnet14-attn5"
SOURCES = ("imagenet", "covidx", "covid19-ct")


class Run(NamedTuple):
    """One training of the demo: its folder's name, stage, first weights and recipe fields."""

    name: str
    stage: str
    init_from: str
    overrides: tuple[str, ...]


# Small enough for two CPU cores and a few minutes; the paper's recipes are the defaults of `mstl train`.
_SIZE = "data.image_size=64"
_FINETUNE = (_SIZE, "data.batch_size=16", "optim.epochs=5", "optim.lr=0.01", "optim.milestones=[4]")
RUNS = (
    Run(
        "stl_n",
        "stl_n",
        "none",
        (_SIZE, "data.batch_size=32", "optim.epochs=6", "optim.lr=0.03", "optim.milestones=[4]"),
    ),
    Run(
        "stl_m",
        "stl_m",
        "stl_n",
        (_SIZE, "data.batch_size=16", "optim.epochs=10", "optim.lr=0.01", "optim.milestones=[8]", "model.dropout=0.2"),
    ),
    Run(
        "sstl_m",
        "sstl_m",
        "stl_m",
        (_SIZE, "data.batch_size=20", "optim.epochs=3", "optim.lr=0.01", "loss.momentum=0.99"),
    ),
    Run("finetune", "finetune", "sstl_m", _FINETUNE),
    Run("finetune_without_transfer", "finetune", "none", _FINETUNE),
)
JUDGED = {"with transfer": "finetune", "without transfer": "finetune_without_transfer"}


@click.command("demo", context_settings={"show_default": True})
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/demo"), help="Folder for data and runs.")
@click.option("--seed", type=click.IntRange(0, MAX_SEED), default=0, help="Of the data and of the trainings.")
@click.option("--ranks", type=click.IntRange(1), default=1, help="Processes of each training.")
@click.option("--fresh", is_flag=True, help="Delete what an earlier demo left and start over.")
def command(out: Path, seed: int, ranks: int, fresh: bool) -> None:
    """Run the whole chain on generated data: no download and no GPU needed.

    Writes synthetic ImageNet, COVIDx and COVID19-CT, converts them to shards, trains STL-N, STL-M, SSTL-M and the
    fine-tuning of resnet14-attn5, the same fine-tuning without transfer, evaluates both on held-out images and
    writes OUT/report.html. Interrupted, the same command continues.
    """
    from rich.console import Console

    from mstl.cli.progress import rich_progress
    from shards.files import write_atomic

    console = Console(stderr=True, highlight=False)
    began = time.monotonic()
    if fresh and (out / "demo.json").is_file():
        shutil.rmtree(out)
    _claim(out, seed)

    def headline(text: str) -> None:
        console.print(f"[bold cyan]{time.monotonic() - began:5.0f} s[/]  [bold]{text}[/]")

    headline("Data: three synthetic sources in their raw layouts, converted to tar shards, checked for leakage")
    _make_shards(out, seed)
    for number, run in enumerate(RUNS, start=1):
        headline(f"Training {number} of {len(RUNS)}: {run.name}")
        _train(out, run, seed, ranks)

    headline("Evaluation on the held-out test images")
    from mstl.evaluation.evaluate import evaluate_run
    from mstl.evaluation.explain import explain_run
    from mstl.study.report import write_report

    with rich_progress() as progress:
        results = {name: evaluate_run(out / folder, split="test", progress=progress) for name, folder in JUDGED.items()}
    grid = out / "finetune" / "evaluation" / "test" / "heatmaps.png"
    explain_run(out / "finetune", split="test", count=5, out=grid)
    headline("Report")
    report = out / "report.html"
    write_report(
        report,
        title="MSTL demo",
        runs=[out / run.name for run in RUNS],
        images={"Grad-CAM and attention of the transferred network on positives": grid},
    )
    write_atomic(out / "results.json", (json.dumps(results, indent=1) + "\n").encode())
    _print_table(results)
    click.echo(f"Report: {report}   ({time.monotonic() - began:.0f} s)")


def _claim(out: Path, seed: int) -> None:
    """Mark the folder as a demo's, so that --fresh never deletes anything else; raises MstlError for another's."""
    from shards.errors import MstlError
    from shards.files import write_atomic

    mark = out / "demo.json"
    asked = {"seed": seed, "model": MODEL, "runs": [[*run[:3], *run.overrides] for run in RUNS]}
    if not mark.is_file() and out.is_dir() and any(out.iterdir()):
        raise MstlError(
            f"--out {out}", why="it holds files that are not a demo's", remedy="Name a new folder or an earlier demo's"
        )
    if mark.is_file() and mark.read_text() != json.dumps(asked):
        raise MstlError(
            f"--out {out}",
            why="it holds a demo of another seed or of another version of this program",
            remedy="Name another folder, or add --fresh to start over",
        )
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(mark, json.dumps(asked).encode())


def _make_shards(out: Path, seed: int) -> None:
    from mstl.cli.progress import rich_progress
    from shards.leakage import compare, open_sets
    from shards.sample import write_samples
    from shards.sources import read_source
    from shards.verdicts import read_verdicts, save_verdicts
    from shards.writer import WriteOptions, write_shards

    with rich_progress() as progress:
        write_samples(out / "raw", seed=seed, progress=progress)
        for source in SOURCES:
            listing = read_source(source, out / "raw" / source)
            write_shards(listing, out / "shards" / source, WriteOptions(seed=seed), progress)
        sets = open_sets([out / "shards" / source for source in SOURCES])
        if not all(read_verdicts(one.folder, one.digest) for one in sets):
            verdicts = [finding.verdict for finding in compare(sets, progress=progress)]
            for one in sets:
                save_verdicts(one.folder, one.digest, verdicts)


def _train(out: Path, run: Run, seed: int, ranks: int) -> None:
    from mstl.cli.train import start
    from mstl.stage_specs import STAGES

    options = {
        "stage": run.stage,
        "model": MODEL,
        "shards": out / "shards" / STAGES[run.stage].source,
        "out": out / run.name,
        "init_from": run.init_from if run.init_from == "none" else out / run.init_from,
        "seed": seed,
        "overrides": run.overrides,
    }
    code = start(options, ranks)
    if code:
        click.echo(f"Training of {run.name} ended with code {code}; mstl demo continues where it stopped", err=True)
        sys.exit(code)


def _print_table(results: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"COVID-19 on {_count(results.values())} held-out synthetic CT images, {MODEL}")
    table.caption = "One seed, few generated images: this shows that the chain works, not what transfer is worth."
    table.add_column("")
    names = ("accuracy", "f1", "auc", "sensitivity", "specificity")
    for name in names:
        table.add_column(name.upper() if name in ("f1", "auc") else name.capitalize(), justify="right")
    for row, result in results.items():
        metrics = result["metrics"]
        table.add_row(row, *("" if metrics.get(name) is None else f"{metrics[name]:.3f}" for name in names))
    Console().print(table)


def _count(results: Sequence[Any] | Any) -> int:
    return int(next(iter(results))["n"])
