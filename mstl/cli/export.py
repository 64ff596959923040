"""`mstl export`: a trained network for other programs."""

from __future__ import annotations

from pathlib import Path

import click

from mstl.cli.store_options import cache_options


@click.command("export", context_settings={"show_default": True})
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--format", "form", type=click.Choice(["onnx", "torchscript", "safetensors"]), default="onnx",
              help="Of the file.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True, metavar="FILE",
              help="The file to write.")  # fmt: skip
@cache_options
def command(run: Path, form: str, out: Path, cache: Path | None, cache_limit: int | None) -> None:
    """Write the classifier of RUN for other programs, checked to say there what it says here.

    \b
    mstl export runs/finetune --out covid.onnx
    mstl export runs/finetune --format torchscript --out covid.pt
    mstl export runs/finetune --format safetensors --out covid.safetensors

    \b
    onnx         a graph for any runtime (needs pip install 'mstl[export]')
    torchscript  a graph for torch, also from C++
    safetensors  weights alone; `mstl train --init-from` takes them too

    The input is a batch of normalised images, the output their logits. How images are prepared (size, crop, mean, std),
    the classes, the positive one, the operating point and temperature of `mstl evaluate` and the digest of the weights
    stand in the file's metadata, of torchscript in FILE.json beside it.

    Before anything is written, both networks are run on noise and, where the run's shards are at hand, on 16 real
    images. Where a logit differs by more than 0.0001 (of the largest logit, where that is above 1) nothing is written.
    """
    from mstl.cli.progress import rich_progress
    from mstl.use.export import export_run
    from shards.cache import CacheOptions

    with rich_progress() as progress:
        done = export_run(
            run, form=form, out=out, cache=CacheOptions(folder=cache, limit_bytes=cache_limit), progress=progress
        )
    checked = done.checked
    click.echo(f"Logits differ by {checked.noise:.2g} at most on {checked.noise_images} images of noise")
    if checked.real is None:
        click.secho(f"Not checked on real images: {checked.why}", fg="yellow", err=True)
    else:
        click.echo(f"Logits differ by {checked.real:.2g} at most on {checked.real_images} real images")
    for file in done.files:
        click.echo(f"Wrote {file}")
