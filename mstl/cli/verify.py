"""`mstl verify`: whether a shard set is still as it was written."""

from __future__ import annotations

import os
from pathlib import Path

import click

from mstl.cli.store_options import SHARD_SET


@click.command("verify")
@click.argument("where", type=SHARD_SET, metavar="DIR|URL")
@click.option("--workers", type=click.IntRange(1), default=lambda: len(os.sched_getaffinity(0)),
              show_default="CPU cores", help="Processes that read (a set in a folder).")  # fmt: skip
def command(where: str | Path, workers: int) -> None:
    """Read every tar and index of a shard set, in a folder or at a URL, and compare them with its manifest.

    Names each damaged file, and the samples of a damaged tar where they can be told. Exits with 1 when there are any.

    \b
    Example:
      mstl verify data/shards/covid19-ct
      mstl verify s3://bucket/covid19-ct
    """
    from mstl.cli.progress import rich_progress
    from shards.errors import MstlError
    from shards.remote_store import shown
    from shards.remote_verify import find_remote_damage
    from shards.schema import load_manifest
    from shards.verify import damaged_set, describe_samples, find_damage

    with rich_progress() as progress:
        if isinstance(where, Path):
            manifest = load_manifest(where)
            damages = find_damage(where, manifest, progress, workers=workers)
        else:
            manifest, damages = find_remote_damage(where, progress)
    for damage in damages:
        click.echo(f"{damage.path}: {damage.why}")
        if damage.samples:
            click.echo(f"  {describe_samples(damage, most=20)}")
    shards = [shard for part in manifest.splits.values() for shard in part]
    if damages:
        sum_up = damaged_set(Path(where), damages)
        raise MstlError(f"shard set {shown(where)}", why=sum_up.why, remedy=sum_up.remedy)
    click.echo(f"{len(shards):,} shards, {sum(shard.samples for shard in shards):,} samples, all as written")
