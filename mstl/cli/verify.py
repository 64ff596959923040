"""`mstl verify`: whether a shard set is still as it was written."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("verify")
@click.argument("folder", type=click.Path(path_type=Path))
def command(folder: Path) -> None:
    """Read every tar and index of the shard set FOLDER and compare them with its manifest.

    Names each damaged file, and the samples of a damaged tar where they can be told. Exits with 1 when there are any.

    \b
    Example:
      mstl verify data/shards/covid19-ct
    """
    from mstl.cli.progress import rich_progress
    from shards.schema import load_manifest
    from shards.verify import damaged_set, describe_samples, find_damage

    manifest = load_manifest(folder)
    with rich_progress() as progress:
        damages = find_damage(folder, manifest, progress)
    for damage in damages:
        click.echo(f"{damage.path}: {damage.why}")
        if damage.samples:
            click.echo(f"  {describe_samples(damage, most=20)}")
    shards = [shard for part in manifest.splits.values() for shard in part]
    if damages:
        raise damaged_set(folder, damages)
    click.echo(f"{len(shards):,} shards, {sum(shard.samples for shard in shards):,} samples, all as written")
