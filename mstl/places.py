"""Where things lie when the user does not say."""

from __future__ import annotations

from pathlib import Path


def run_folder(out: Path | None, stage: str, ssl: str | None = None) -> Path:
    """The run folder of a job: `out`, or the default."""
    # Imported here: `mstl train --help` need not wait for pydantic.
    from mstl.recipes import recipe_name

    return out or Path("runs") / recipe_name(stage, ssl)


def shard_folder(source: str) -> Path:
    """The shard set of a source."""
    return Path("data/shards") / source
