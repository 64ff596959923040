"""`mstl leep`: how well trained networks would transfer to a data set, without training on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mstl.cli.store_options import SHARD_SET, cache_options
from shards.schema import MAX_SEED

if TYPE_CHECKING:
    from rich.table import Table


@click.command("leep", context_settings={"show_default": True})
@click.argument("sources", nargs=-1, metavar="RUN_OR_WEIGHTS...", type=click.Path(path_type=Path))
@click.option("--shards", type=SHARD_SET, metavar="DIR|URL", required=True, help="The target: a shard set with labels.")
@click.option("--split", default="train", help="Which split of it: train, val or test.")
@click.option("--untrained", multiple=True, metavar="MODEL",
              help="A network of random weights, as the paper's 'w/o TL'; again for more.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0, MAX_SEED), default=0, help="Of untrained networks.")
@click.option("--image-size", type=click.IntRange(8),
              help="Of the target's images, in pixels.  [default: what a run was trained at, else 224]")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder for leep.json and leep.png.")
@click.option("--json", "as_json", is_flag=True, help="Print what leep.json holds instead of a table.")
@cache_options
def command(
    sources: tuple[Path, ...],
    shards: str | Path,
    split: str,
    untrained: tuple[str, ...],
    seed: int,
    image_size: int | None,
    out: Path | None,
    as_json: bool,
    cache: Path | None,
    cache_limit: int | None,
) -> None:
    """Score how well supervised networks would transfer to a target (LEEP, paper eq. 7), without training on it.

    \b
    mstl leep runs/stl_n runs/stl_m --shards data/shards/covid19-ct
    mstl leep resnet50.safetensors --untrained resnet50 --shards data/shards/covid19-ct --out leep

    Sources are runs of supervised stages, weights files with their classifier (as --init-from takes them), and
    untrained networks: these get a random head of 1000 classes, and their batch norm is calibrated on the target's
    images. Self-supervised runs have no source classes, so no LEEP. The target's images are prepared as for evaluation:
    resized, centre crop.

    A score is at most 0; a source that says nothing of the target's classes has −H(Y), minus the entropy of its
    labels. The paper prints no unit; its table 6 is possible in bits only. Scores of sources with other numbers of
    classes are compared with care: more classes fit few images better.
    """
    from rich.console import Console

    from mstl.cli.progress import rich_progress
    from mstl.evaluation.leep_figure import leep_figure
    from mstl.evaluation.leep_run import as_body, open_target, score_sources
    from mstl.evaluation.leep_sources import open_sources
    from mstl.study.checks import check_output
    from shards.cache import CacheOptions
    from shards.files import write_atomic

    if out is not None:
        check_output(out / "leep.json")
    opened = open_sources(sources, untrained=untrained, seed=seed)
    with rich_progress() as progress:
        copies = CacheOptions(folder=cache, limit_bytes=cache_limit)
        target = open_target(shards, split=split, cache=copies, progress=progress)
        scored = score_sources(opened, target, image_size=image_size, progress=progress)
    body = as_body(scored, target)
    text = json.dumps(body, indent=1, allow_nan=False) + "\n"
    if as_json:
        click.echo(text, nl=False)
    else:
        Console().print(_table(body))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        about = body["target"]
        title = f"Transfer to {about['source']}, {split} split, n = {about['n']}"
        write_atomic(out / "leep.png", leep_figure(scored, title=title))
        write_atomic(out / "leep.json", text.encode())
        click.echo(f"Written to {out}", err=as_json)


def _table(body: dict[str, Any]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    target, rows = body["target"], body["sources"]
    table = Table(title=f"LEEP on {target['source']}, {target['split']} split, n = {target['n']}")
    table.add_column("source", overflow="fold")
    table.add_column("network", no_wrap=True)
    table.add_column("trained on", overflow="fold")
    for name in ("classes", "nats", "bits"):
        table.add_column(name, justify="right", no_wrap=True)
    notes: list[str] = []
    for row in rows:
        marks = ""
        for note in row["notes"]:
            if note not in notes:
                notes.append(note)
            marks += f" [{notes.index(note) + 1}]"
        scores = ["–", "–"] if row["nats"] is None else [f"{row['nats']:.4f}", f"{row['bits']:.4f}"]
        table.add_row(
            escape(("untrained" if row["kind"] == "untrained" else row["name"]) + marks),
            row["model"].removesuffix("-attn0"),
            "–" if row["kind"] == "weights" else " → ".join(row["chain"]),
            "–" if row["source_classes"] is None else str(row["source_classes"]),
            *scores,
        )
    lines = [f"saying nothing, −H(Y): {target['floor_nats']:.4f} nats, {target['floor_bits']:.4f} bits"]
    lines += [escape(f"[{number}] {note}") for number, note in enumerate(notes, start=1)]
    sizes = sorted({row["image_size"] for row in rows if row["nats"] is not None})
    lines.append(f"images of {' and '.join(map(str, sizes))} pixels")
    if len({row["source_classes"] for row in rows if row["source_classes"] is not None}) > 1:
        lines.append("sources differ in their number of classes: compare with care")
    table.caption = "\n".join(lines)
    table.caption_justify = "left"
    return table
