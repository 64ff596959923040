"""`mstl locate`: where the lungs are, as training sees it."""

from __future__ import annotations

from pathlib import Path

import click

from shards.schema import SPLITS


@click.command("locate", context_settings={"show_default": True})
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True,
              help="Folder for boxes.json and the sheets.")  # fmt: skip
@click.option("--split", type=click.Choice(SPLITS), help="Of a shard set, this split alone.  [default: all]")
@click.option("--device", type=click.Choice(["cpu", "gpu"]), default="cpu", help="Where the graph runs.")
def command(images: tuple[Path, ...], out: Path, split: str | None, device: str) -> None:
    """Find the lungs in axial CT slices IMAGES (files, folders, a shard set) and show the five regions.

    \b
    Examples:
      mstl locate slice.png --out boxes
      mstl locate data/shards/covid19-ct --split train --out boxes

    Writes boxes.json: per image its size, the lung box and the five regions in pixels (x0, y0, x1, y1), and whether
    they fell back to the whole image because no lungs were found, or none that can be a chest's; and contact sheets
    with the boxes drawn. It looks as `mstl train --stage sstl_m` does at its own image size, so what it shows is what
    training crops.
    """
    from mstl.cli.progress import rich_progress
    from mstl.locate import locate_all

    with rich_progress() as progress:
        outcome = locate_all(images, out, split=split, device=device, progress=progress)
    click.echo(
        f"{out}: {outcome.located} images, lungs found in {outcome.located - outcome.fallbacks}, "
        f"{outcome.fallbacks} fell back to the whole image, {outcome.refused} could not be read"
    )
    if outcome.refused:
        click.secho(f"boxes.json names the {outcome.refused} that could not be read", fg="yellow", err=True)
