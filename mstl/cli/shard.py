"""`mstl shard`: raw data to a shard set."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from shards.schema import MAX_SEED

if TYPE_CHECKING:
    from shards.schema import Manifest


class Fraction(click.ParamType[float]):
    """A fraction between 0 and 1, also written as per cent."""

    name = "fraction"

    def convert(self, value: float | str, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """ "1%" and "0.01" are the same."""
        text = str(value).strip()
        try:
            number = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            self.fail(f"{text!r} is neither a number nor per cent, such as 0.01 or 1%", param, ctx)
        if not 0 <= number <= 1:
            self.fail(f"{text!r} is not between 0 and 1 (0 % and 100 %)", param, ctx)
        return number


@click.command(
    name="shard",
    epilog="The build can be interrupted: the same command goes on where it stopped and ends with the same bytes "
    "(with --force it starts anew).",
)
@click.option(
    "--src", required=True, metavar="NAME", help="Layout of the raw data: imagenet, covidx, covid19-ct, folder."
)
@click.option("--root", type=click.Path(path_type=Path), help="Where the raw data lies.  [default: data/raw/NAME]")
@click.option("--out", type=click.Path(path_type=Path), help="The shard set to make.  [default: data/shards/NAME]")
@click.option(
    "--seed",
    type=click.IntRange(0, MAX_SEED),
    default=0,
    show_default=True,
    help="Decides the order of samples and the carved validation part.",
)
@click.option("--samples-per-shard", type=click.IntRange(1), default=1000, show_default=True, help="Samples in a tar.")
@click.option("--resize", type=click.IntRange(16), metavar="N",
              help="Shorter side in pixels for larger images; without it the original bytes are kept.")  # fmt: skip
@click.option("--quality", type=click.IntRange(1, 100), default=90, show_default=True,
              help="JPEG quality of what --resize makes smaller; it makes PNGs of PNGs and of all images of covidx and "
              "covid19-ct.")  # fmt: skip
@click.option("--val-fraction", type=Fraction(), default="10%", show_default=True,
              help="Training patients that become val when the source has no val part.")  # fmt: skip
@click.option("--max-bad", type=Fraction(), default="1%", show_default=True,
              help="Images that may be refused (see quarantine.jsonl) before the build fails.")  # fmt: skip
@click.option("--workers", type=click.IntRange(1), default=lambda: len(os.sched_getaffinity(0)),
              show_default="CPU cores", help="Processes that decode and write.")  # fmt: skip
@click.option("--force", is_flag=True, help="Build anew, and replace what is there once that is complete.")
def command(
    src: str,
    root: Path | None,
    out: Path | None,
    seed: int,
    samples_per_shard: int,
    resize: int | None,
    quality: int,
    val_fraction: float,
    max_bad: float,
    workers: int,
    force: bool,
) -> None:
    """Convert raw data to WebDataset shards: tars with indexes for DALI, and a manifest.

    Every image is decoded once; broken ones are left out and listed. Samples are shuffled once with the seed. What is
    there already with the same options is kept.

    \b
    Examples:
      mstl shard --src covid19-ct                      data/raw/covid19-ct -> data/shards/covid19-ct
      mstl shard --src imagenet --root /mnt/ilsvrc --resize 256 --workers 16
      mstl shard --src folder --root my_images --out data/shards/mine
    """
    from mstl.cli.progress import rich_progress
    from shards.sources import read_source
    from shards.writer import WriteOptions, find_built, write_shards

    root, out = root or Path("data/raw") / src, out or Path("data/shards") / src
    options = WriteOptions(
        seed=seed,
        samples_per_shard=samples_per_shard,
        resize=resize,
        quality=quality,
        val_fraction=val_fraction,
        max_bad=max_bad,
        workers=workers,
    )
    listing = read_source(src, root)
    for note in listing.notes:
        click.secho(f"note: {note}", fg="yellow", err=True)
    manifest = None if force else find_built(listing, out, options)
    if manifest is not None:
        click.echo(
            f"{out} is there already, built from files of the same names and sizes with the same options: nothing to do"
        )
    else:
        with rich_progress() as progress:
            manifest = write_shards(listing, out, options, progress, force=force)
    _show(manifest, out)


def _show(manifest: Manifest, out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{manifest.source}: {out}")
    table.add_column("split")
    for title in ("samples", "shards", "MB"):
        table.add_column(title, justify="right")
    table.add_column("samples per class")
    for split in manifest.splits:
        shards, counts = manifest.shards(split), manifest.class_counts(split)
        if len(counts) <= 10:
            classes = ", ".join(f"{name} {count}" for name, count in zip(manifest.classes, counts, strict=True))
        else:
            low, high = min(counts), max(counts)
            classes = f"{len(counts)} classes, {low if low == high else f'{low} to {high}'} each"
        size = sum(shard.bytes for shard in shards) / 1e6
        table.add_row(split, f"{manifest.samples(split):,}", f"{len(shards)}", f"{size:,.1f}", classes)
    console = Console()
    console.print(table)
    if manifest.refused:
        click.secho(f"{manifest.refused} images were refused: {out / 'quarantine.jsonl'}", fg="yellow")
