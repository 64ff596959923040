"""`mstl evaluate`: what a trained run is worth on a split."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mstl.cli.store_options import SHARD_SET, cache_options
from shards.schema import MAX_SEED

if TYPE_CHECKING:
    from rich.table import Table

MOST_CLASSES = 20  # longer lists are read from metrics.json
CLASS_COLUMNS = ("sensitivity", "specificity", "precision", "auc")


@click.command("evaluate", context_settings={"show_default": True})
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--split", default="test", help="Which split: train, val or test.")
@click.option("--shards", type=SHARD_SET, metavar="DIR|URL", help="Another shard set.  [default: the run's own]")
@cache_options
@click.option("--batch", type=click.IntRange(1), default=64, help="Images at a time; it changes no result.")
@click.option("--positive", metavar="CLASS", help="The positive of two classes.  [default: COVID, else the last]")
@click.option(
    "--operating",
    default="youden",
    metavar="RULE",
    help="Where a probability becomes a yes: youden (the greatest sensitivity + specificity on val), sensitivity=0.95 "
    "(the highest threshold that has it on val), or a threshold.",
)
@click.option("--resamples", type=click.IntRange(100), default=2000, help="Of the bootstrap.")
@click.option("--seed", type=click.IntRange(0, MAX_SEED), default=0, help="Of the bootstrap.")
def command(
    run: Path,
    split: str,
    shards: str | Path | None,
    cache: Path | None,
    cache_limit: int | None,
    batch: int,
    positive: str | None,
    operating: str,
    resamples: int,
    seed: int,
) -> None:
    """Measure RUN on a split and write metrics, predictions and figures to RUN/evaluation/SPLIT.

    \b
    mstl evaluate runs/finetune
    mstl evaluate runs/finetune --split val --operating sensitivity=0.95
    mstl evaluate runs/finetune --shards data/shards/other-hospital

    \b
    metrics.json      all metrics with 95 % intervals, the positive class, data digest, versions
    predictions.csv   one line an image: sample_id, key, patient, label, probability
    roc.png, pr.png, reliability.png, confusion.png

    The operating point and a temperature that calibrates the probabilities are chosen on the val split, which is
    evaluated first where that has not been done, and written to RUN/evaluation/operating.json. What is measured on
    another shard set stands beside it, in RUN/evaluation/SPLIT-on-SOURCE-DIGEST.
    """
    from rich.console import Console

    from mstl.cli.progress import rich_progress
    from mstl.evaluation.evaluate import evaluate_run
    from mstl.evaluation.intervals import described
    from mstl.evaluation.places import evaluation_folder
    from shards.cache import CacheOptions

    copies = CacheOptions(folder=cache, limit_bytes=cache_limit)
    with rich_progress() as progress:
        body = evaluate_run(
            run,
            split=split,
            shards=shards,
            batch=batch,
            cache=copies,
            positive=positive,
            operating=operating,
            resamples=resamples,
            seed=seed,
            progress=progress,
        )
    console = Console(highlight=False, markup=False)
    console.print(_table(run, body))
    if 0 < len(body.get("per_class", ())) <= MOST_CLASSES:
        console.print(_class_table(body))
    for line in [*_choices(body), described(body["bootstrap"]), *_cautions(body)]:
        console.print(line, soft_wrap=True)
    where = body["shards"]
    folder = evaluation_folder(run, split, source=where["source"], digest=where["digest"], own=where["same_as_run"])
    console.print(f"Written to {folder}", soft_wrap=True)


def _table(run: Path, body: dict[str, Any]) -> Table:
    from rich.table import Table

    table = Table(title=f"{run.name}, {body['split']} split of {body['shards']['source']}, n = {body['n']}")
    operating = body["operating"]
    chosen = operating if operating["origin"] != "default" else None
    table.add_column("metric")
    table.add_column("at 0.5" if chosen else "value", justify="right")
    table.add_column("95 % interval", justify="right")
    if chosen:
        table.add_column(f"at {chosen['threshold']:.3f}", justify="right")
        table.add_column("95 % interval", justify="right")
    for name in body["metrics"]:
        cells = _cells(body, name)
        if chosen:
            cells += _cells(chosen, name) if name in chosen["metrics"] else ["", ""]
        table.add_row(name, *cells)
    positive = "" if body["positive"] is None else f"positive class: {body['positive']}; "
    table.caption = (
        f"{positive}of brier and ece, less is better; chance alone makes ece larger, the more so the fewer the images"
    )
    return table


def _class_table(body: dict[str, Any]) -> Table:
    from rich.table import Table

    table = Table(title="each class against the rest")
    for name in ("class", "n", *CLASS_COLUMNS):
        table.add_column(name, justify="left" if name == "class" else "right")
    for row in body["per_class"]:
        table.add_row(row["class"], str(row["n"]), *("\n".join(_cells(row, name, 2)) for name in CLASS_COLUMNS))
    return table


def _cells(part: dict[str, Any], name: str, digits: int = 3) -> list[str]:
    value = part["metrics"][name]
    return ["undefined" if value is None else f"{value:.{digits}f}", span_text(part["intervals"][name], digits=digits)]


def span_text(span: dict[str, Any] | None, *, signed: bool = False, digits: int = 3) -> str:
    """An interval of a record as text; a dash where it has none."""
    if span is None or span["low"] is None:
        return "–"
    low, high = (f"{span[side]:{'+' if signed else ''}.{digits}f}".replace("-", "−") for side in ("low", "high"))
    return f"{low} to {high}"


def _choices(body: dict[str, Any]) -> list[str]:
    """Where the operating point and the temperature come from."""
    operating, calibration = body["operating"], body["calibration"]
    lines = []
    if operating["origin"] == "val":
        images = f"{operating['n']} {operating['split']} images"
        lines.append(f"Operating point {operating['threshold']:.3f}: {operating['rule']} on {images}")
    elif operating["origin"] == "given":
        lines.append(f"Operating point {operating['threshold']:.3f}: as given")
    elif operating["threshold"] is not None:
        lines.append(f"Operating point 0.5, since none could be chosen: {operating['why']}")
    if calibration["temperature"] is None:
        lines.append(f"No temperature was fitted: {calibration['why']}")
    else:
        before, after = (part["metrics"]["ece"] for part in (body, calibration))
        images = f"{calibration['n']} {calibration['split']} images"
        lines.append(
            f"Temperature {calibration['temperature']:.2f}, fitted on {images}: ece {before:.3f} → {after:.3f}"
        )
    return lines


def _cautions(body: dict[str, Any]) -> list[str]:
    found = []
    if body["operating"]["same_images"]:
        found.append("What was chosen on val was chosen on these very images: what it gives here is optimistic.")
    withheld = [name for name, span in body["intervals"].items() if span is not None and span["low"] is None]
    if withheld and body["bootstrap"]["clusters"] > 1:
        found.append(f"No interval for {', '.join(withheld)}: undefined in more than 5 % of the resamples")
    points = [name for name, span in body["intervals"].items() if span and span["low"] is not None]
    if any(body["intervals"][name]["low"] == body["intervals"][name]["high"] for name in points):
        found.append("An interval without width says that all resamples agree, not that the value is certain.")
    return found
