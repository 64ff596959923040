"""`mstl predict`: what a trained run says of image files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.table import Table

    from mstl.use.predict import Answer, Predicted

MOST_CLASSES = 3  # of more, the table shows the most probable ones


@click.command("predict", context_settings={"show_default": True})
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--heatmaps", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
              help="Draw where the network looks, one PNG an image.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="Write all of it as JSON: an object an image, with the run's digest and versions.")  # fmt: skip
@click.option("--window", metavar="WINDOW",
              help="Of DICOM values: lung, mediastinum or CENTER,WIDTH.  [default: as the run's shards were made]",
              )  # fmt: skip
@click.option("--batch", type=click.IntRange(1), default=16, help="Images at a time.")
def command(
    run: Path, images: tuple[Path, ...], heatmaps: Path | None, out: Path | None, window: str | None, batch: int
) -> None:
    """Ask the classifier of RUN about IMAGES: files (PNG, JPEG, TIFF, BMP, GIF, WebP, DICOM), folders or patterns.

    \b
    mstl predict runs/finetune slice.png
    mstl predict runs/finetune scans/ --heatmaps heatmaps --out answers.json
    mstl predict runs/finetune 'scans/**/*.dcm' --window lung

    Images are read as `mstl evaluate` reads shards. An image is positive from the operating point on that
    `mstl evaluate RUN` chose on val images, else from 0.5 on; where it fitted a temperature, the calibrated probability
    stands beside the network's own. In folders, hidden files and masks (NAME_mask.png beside NAME) are left out.

    An image that cannot be used is named, the others go on, and the exit code is 1. Cautions tell of images unlike
    those the network was trained on, by plain rules: no caution does not mean that an image is like them.

    Research software, not a medical device.
    """
    from rich.console import Console

    from mstl.cli.progress import rich_progress
    from mstl.use.images import none_left
    from mstl.use.network import NOT_A_DEVICE
    from mstl.use.predict import predict_files

    with rich_progress() as progress:
        done = predict_files(
            run, images, heatmaps=heatmaps, out=out, window=window, batch=batch, progress=progress
        )  # fmt: skip
    for name, reason in done.bad:
        click.secho(f"{name}: cannot be used: {reason}", fg="red", err=True)
    for answer in done.answers:
        for caution in answer.image.cautions:
            click.secho(f"{answer.image.named.name}: caution: {caution}", fg="yellow", err=True)
    for note in done.notes:
        click.echo(note, err=True)
    if done.answers:
        console = Console(highlight=False, markup=False)
        console.print(_table(done))
        for line in (*_below(done), NOT_A_DEVICE):
            console.print(line, soft_wrap=True)
    if out is not None:
        click.echo(f"Wrote {out}")
    if heatmaps is not None and done.answers:
        click.echo(f"Wrote {len(done.answers)} heatmaps to {heatmaps}")
    if done.bad:
        raise none_left(done.bad, len(done.bad) + len(done.answers))


def _table(done: Predicted) -> Table:
    from rich.markup import escape
    from rich.table import Table

    network = done.network
    classes = network.record.classes
    table = Table(title=f"{network.record.model}, weights {network.weights_sha256[:12]}")
    table.add_column("image", overflow="fold")
    if network.positive is None:
        table.add_column("says", overflow="fold")
        table.add_column("most probable", overflow="fold")
    else:
        table.add_column(f"P({escape(classes[network.positive])})", justify="right")
        if network.temperature is not None:
            table.add_column("calibrated", justify="right")
        table.add_column("says", overflow="fold")
    cautions = any(answer.image.cautions for answer in done.answers)
    if cautions:
        table.add_column("")
    for answer in done.answers:
        marks = ["caution" if answer.image.cautions else ""] if cautions else []
        table.add_row(escape(answer.image.named.name), *map(escape, _cells(answer, done)), *marks)
    return table


def _below(done: Predicted) -> list[str]:
    """Where the operating point and the temperature come from."""
    network = done.network
    if network.temperature is None:
        return [network.operating_text]
    return [network.operating_text, f"Calibrated with temperature {network.temperature:.2f}, which evaluation fitted"]


def _cells(answer: Answer, done: Predicted) -> list[str]:
    classes, positive = done.network.record.classes, done.network.positive
    said = classes[answer.says]
    if positive is not None:
        softer = [] if answer.calibrated is None else [f"{answer.calibrated[positive]:.3f}"]
        return [f"{answer.probabilities[positive]:.3f}", *softer, said]
    shown = answer.calibrated or answer.probabilities
    best = sorted(range(len(classes)), key=lambda index: -shown[index])[:MOST_CLASSES]
    return [said, ", ".join(f"{classes[index]} {shown[index]:.3f}" for index in best)]
