"""`mstl sample`: the synthetic data of the demo and the tests."""

from __future__ import annotations

from pathlib import Path

import click

from shards.schema import MAX_SEED


@click.command("sample", context_settings={"show_default": True})
@click.option("--out", type=click.Path(path_type=Path), default=Path("data/raw"), help="Folder for the raw data.")
@click.option("--seed", type=click.IntRange(0, MAX_SEED), default=0, help="Same seed, same bytes.")
def command(out: Path, seed: int) -> None:
    """Write synthetic ImageNet, COVIDx and COVID19-CT in the real raw layouts, to try everything without data.

    \b
    mstl sample --out data/raw
    mstl shard --src covidx --root data/raw/covidx
    """
    from mstl.cli.progress import rich_progress
    from shards.sample import write_samples

    with rich_progress() as progress:
        write_samples(out, seed=seed, progress=progress)
    click.echo(f"Wrote imagenet, covidx and covid19-ct to {out}")
