"""`mstl evaluate`: what a trained run is worth on a split."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mstl.cli.store_options import SHARD_SET, cache_options

if TYPE_CHECKING:
    from rich.table import Table


@click.command("evaluate", context_settings={"show_default": True})
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--split", default="test", help="Which split: train, val or test.")
@click.option("--shards", type=SHARD_SET, metavar="DIR|URL", help="Another shard set.  [default: the run's own]")
@cache_options
@click.option("--batch", type=click.IntRange(1), default=64, help="Images at a time; it changes no result.")
def command(
    run: Path, split: str, shards: str | Path | None, cache: Path | None, cache_limit: int | None, batch: int
) -> None:
    """Measure RUN on a split and write metrics, predictions and figures to RUN/evaluation/SPLIT.

    \b
    mstl evaluate runs/finetune
    mstl evaluate runs/finetune --split val
    mstl evaluate runs/finetune --shards data/shards/other-hospital

    \b
    metrics.json      all figures, the positive class, data digest, versions
    predictions.csv   one line an image: sample_id, key, patient, label, probability
    roc.png, confusion.png
    """
    from rich.console import Console

    from mstl.cli.progress import rich_progress
    from mstl.evaluation.evaluate import evaluate_run
    from shards.cache import CacheOptions

    copies = CacheOptions(folder=cache, limit_bytes=cache_limit)
    with rich_progress() as progress:
        body = evaluate_run(run, split=split, shards=shards, batch=batch, cache=copies, progress=progress)
    console = Console()
    console.print(_table(run, body))
    console.print(f"Written to {run / 'evaluation' / split}", highlight=False, soft_wrap=True)


def _table(run: Path, body: dict[str, Any]) -> Table:
    from rich.table import Table

    table = Table(title=f"{run.name}, {body['split']} split of {body['shards']['source']}, n = {body['n']}")
    table.add_column("metric")
    table.add_column("%", justify="right")
    for name, value in body["metrics"].items():
        table.add_row(name, "undefined" if value is None else f"{100 * value:.1f}")
    if body["positive"] is not None:
        table.caption = f"positive class: {body['positive']}"
    return table
