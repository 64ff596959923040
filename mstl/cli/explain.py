"""`mstl explain`: where a trained run looks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mstl.cli.store_options import SHARD_SET, cache_options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table


@click.command("explain", context_settings={"show_default": True})
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=click.Path(path_type=Path))
@click.option("--split", default="test", help="Which split: train, val or test.")
@click.option("--images", multiple=True, type=click.Path(path_type=Path),
              help="Image files, or folders of them, instead of a split; again for more.")  # fmt: skip
@click.option("--masks", type=click.Path(path_type=Path), metavar="DIR",
              help="Lung masks to measure the maps against, NAME_mask.png or NAME.png for the image NAME.")  # fmt: skip
@click.option("--class", "class_name", metavar="NAME", help="The class to explain.  [default: the positive one]")
@click.option("--count", type=click.IntRange(1), default=6, help="How many images the grid shows at most.")
@click.option("--out", type=click.Path(path_type=Path),
              help="PNG of the grid.  [default: RUN/evaluation/SPLIT/heatmaps.png]")  # fmt: skip
@click.option("--shards", type=SHARD_SET, metavar="DIR|URL", help="Another shard set.  [default: the run's own]")
@cache_options
def command(
    runs: tuple[Path, ...],
    split: str,
    images: tuple[Path, ...],
    masks: Path | None,
    class_name: str | None,
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
    mstl explain runs/plain runs/attentive --out figure4.png
    mstl explain runs/finetune --images slices --masks masks --out lungs.png

    Of a split with two classes only images of the positive one are shown, the first there are; with more classes each
    is explained for its own. --images shows files spread evenly over their names; a mask X_mask.png beside X.png is
    no image. Several runs stand side by side as in the paper's figure 4. Blue is low, red is high, each map on its own
    scale. `mstl report` shows a grid at its default place.

    \b
    With --masks (PNG, 0 outside the lungs), all images that have one are measured, and beside OUT.png there are
    OUT.csv         an image and map a line: share of the map in the lungs, its lift over the lungs' share of the
                    image, whether its peak is in them, areas under the deletion and insertion curves
    OUT.json        means with 95 % intervals
    OUT-curves.png  the mean curves
    `chance` in them is a map of noise: what the figures are of a map that knows nothing. The curves cost 42 images of
    the network for each image and map.
    """
    from rich.console import Console

    from mstl.cli.progress import rich_progress
    from mstl.evaluation.explain import explain_run
    from mstl.places import heatmap_path
    from shards.cache import CacheOptions

    if images and shards is not None:
        raise click.UsageError("--images are files of their own, and --shards a set: name one of them")
    if out is None and (images or shards is not None or len(runs) > 1):
        raise click.UsageError("name a place with --out: a run's own is for its own split")
    target = out or heatmap_path(runs[0], split)
    copies = CacheOptions(folder=cache, limit_bytes=cache_limit)
    with rich_progress() as progress:
        done = explain_run(
            runs[0], beside=runs[1:], split=split, images=images, masks=masks, class_name=class_name, count=count,
            out=target, shards=shards, cache=copies, progress=progress,
        )  # fmt: skip
    for note in done.notes:
        click.echo(note, err=True)
    for run in dict.fromkeys(row["run"] for row in done.summary):
        Console().print(_table(run, [row for row in done.summary if row["run"] == run]))
    click.echo(f"Wrote {target} ({done.shown} images)")
    for file in done.files[1:]:
        click.echo(f"Wrote {file} ({done.measured} images measured)")


def _table(run: str, rows: Sequence[dict[str, Any]]) -> Table:
    """Means with their intervals; figures as fractions of 1."""
    from rich.markup import escape
    from rich.table import Table

    from mstl.evaluation.explain_measure import FIGURES

    table = Table(title=escape(f"Heatmaps of {run} against lung masks: means, 95 % intervals"))
    table.add_column("map")
    for name in FIGURES:
        table.add_column(name.replace("_", "\n"), justify="right", no_wrap=True)
    for row in rows:
        table.add_row(row["map"], *(_with_interval(row[name]) for name in FIGURES))
    table.caption = f"lungs are {rows[0]['lung_area']['mean']:.1%} of the images; chance is a map of noise"
    return table


def _with_interval(value: dict[str, Any]) -> str:
    if value["mean"] is None:
        return "–"
    if value["low"] is None:
        return f"{value['mean']:.3f}"
    return f"{value['mean']:.3f}\n{value['low']:.2f}–{value['high']:.2f}".replace("-", "−")
