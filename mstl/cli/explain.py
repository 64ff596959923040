"""`mstl explain`: where a trained run looks."""

from __future__ import annotations

from pathlib import Path

import click

from mstl.cli.store_options import SHARD_SET, cache_options


@click.command("explain", context_settings={"show_default": True})
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--split", default="test", help="Which split: train, val or test.")
@click.option("--count", type=click.IntRange(1), default=6, help="How many images at most, the first of the split.")
@click.option("--out", type=click.Path(path_type=Path), help="PNG.  [default: RUN/evaluation/SPLIT/heatmaps.png]")
@click.option("--shards", type=SHARD_SET, metavar="DIR|URL", help="Another shard set.  [default: the run's own]")
@cache_options
def command(
    run: Path,
    split: str,
    count: int,
    out: Path | None,
    shards: str | Path | None,
    cache: Path | None,
    cache_limit: int | None,
) -> None:
    """Draw Grad-CAM and, for networks that end in attention, the attention map of RUN as one grid of images.

    \b
    mstl explain runs/finetune
    mstl explain runs/finetune --split val --count 4 --out heatmaps.png

    With two classes only images of the positive one are shown; with more, each is explained for its own class.
    Blue is low, red is high, each map on its own scale. `mstl report` shows a grid at its default place.
    """
    from mstl.cli.progress import rich_progress
    from mstl.evaluation.explain import explain_run
    from mstl.study.records import heatmap_path
    from shards.cache import CacheOptions

    target = out or heatmap_path(run, split)
    copies = CacheOptions(folder=cache, limit_bytes=cache_limit)
    with rich_progress() as progress:
        shown = explain_run(run, split=split, count=count, out=target, shards=shards, cache=copies, progress=progress)
    click.echo(f"Wrote {target} ({shown} images)")
