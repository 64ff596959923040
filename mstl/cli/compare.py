"""`mstl compare`: two trained runs on the same images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mstl.cli.store_options import SHARD_SET, cache_options
from shards.schema import MAX_SEED

if TYPE_CHECKING:
    from rich.table import Table


@click.command("compare", context_settings={"show_default": True})
@click.argument("run_a", metavar="RUN_A", type=click.Path(path_type=Path))
@click.argument("run_b", metavar="RUN_B", type=click.Path(path_type=Path))
@click.option("--split", default="test", help="Which split: train, val or test.")
@click.option("--shards", type=SHARD_SET, metavar="DIR|URL",
              help="The shard set both were evaluated on.  [default: each run's own]")  # fmt: skip
@cache_options
@click.option("--resamples", type=click.IntRange(100), default=2000, help="Of the bootstrap.")
@click.option("--seed", type=click.IntRange(0, MAX_SEED), default=0, help="Of the bootstrap.")
@click.option("--out", type=click.Path(path_type=Path), help="A JSON file for all of it.")
def command(
    run_a: Path,
    run_b: Path,
    split: str,
    shards: str | Path | None,
    cache: Path | None,
    cache_limit: int | None,
    resamples: int,
    seed: int,
    out: Path | None,
) -> None:
    """Say by how much RUN_B is better than RUN_A on the images of a split, and how sure that is.

    \b
    mstl compare runs/scratch runs/finetune
    mstl compare runs/scratch runs/finetune --split val --out gain.json
    mstl compare runs/scratch runs/finetune --shards data/shards/other-hospital

    Both must have been evaluated (`mstl evaluate`) on the same shard set. Intervals come from a paired bootstrap, of
    patients where all are known; DeLong's test compares the areas under the ROC curves, McNemar's the decisions.
    """
    from rich.console import Console

    from mstl.cli.progress import rich_progress
    from mstl.evaluation.compare import cautions, compare_runs
    from mstl.evaluation.intervals import described
    from mstl.study.checks import check_output
    from shards.cache import CacheOptions
    from shards.files import write_atomic

    if out is not None:
        check_output(out)
    with rich_progress() as progress:
        body = compare_runs(
            run_a, run_b, split=split, shards=shards, cache=CacheOptions(folder=cache, limit_bytes=cache_limit),
            resamples=resamples, seed=seed, progress=progress,
        )  # fmt: skip
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(out, (json.dumps(body, indent=1, allow_nan=False) + "\n").encode())
    console = Console(highlight=False, markup=False)
    console.print(_table(body))
    for line in [*_tests(body), described(body["bootstrap"]), *cautions(body)]:
        console.print(line, soft_wrap=True)
    if out is not None:
        console.print(f"Written to {out}", soft_wrap=True)


def _table(body: dict[str, Any]) -> Table:
    from rich.table import Table

    from mstl.cli.evaluate import span_text

    title = f"{body['split']} split of {body['shards']['source']}, n = {body['n']}"
    table = Table(title=f"{title}, positive: {body['positive']}" if body["positive"] else title)
    for name in ("metric", "A", "B", "B − A", "95 % interval"):
        table.add_column(name, justify="left" if name == "metric" else "right")
    sections = [body["metrics"]]
    if body["operating"] is not None:
        sections.append(body["operating"]["metrics"])
    for index, rows in enumerate(sections):
        if index:
            thresholds = (f"{body[run]['threshold']:.3f}" for run in "ab")
            table.add_row("at threshold", *thresholds, "", "")
        for name, row in rows.items():
            values = ("" if row[key] is None else f"{row[key]:.3f}" for key in ("a", "b"))
            change = "undefined" if row["difference"] is None else _signed(row["difference"])
            table.add_row(name, *values, change, span_text(row["interval"], signed=True))
        table.add_section()
    table.caption = f"A: {body['a']['run']}, B: {body['b']['run']}. Of brier and ece, less is better."
    return table


def _tests(body: dict[str, Any]) -> list[str]:
    lines = []
    if body["delong"] is not None:
        found = body["delong"]
        span = "" if found["low"] is None else f" [{_signed(found['low'])}, {_signed(found['high'])}]"
        z = "" if found["z"] is None else f", z = {found['z']:.2f}"
        lines.append(f"DeLong: AUC B − A {_signed(found['difference'])}{span}{z}, {_p(found['p'])}")
    tests = [("McNemar, decisions at the more probable class", body["mcnemar"])]
    if body["operating"] is not None:
        tests.append(("McNemar, decisions at the operating points", body["operating"]["mcnemar"]))
    for name, found in tests:
        counts = f"only A right {found['only_a']}, only B right {found['only_b']}"
        lines.append(f"{name}: {counts}, {found['method']}, {_p(found['p'])}")
    return lines


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def _p(value: float | None) -> str:
    if value is None:
        return "p undefined"
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"
