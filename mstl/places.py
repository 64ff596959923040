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


def heatmap_path(run: Path, split: str) -> Path:
    """A run's heatmap grid of a split."""
    return run / "evaluation" / split / "heatmaps.png"


def checkpoint_folders(root: Path) -> list[Path]:
    """The checkpoints in a run's folder of them, newest first; whether they are whole is another question."""
    found = [folder for folder in root.glob("step-*") if folder.name.removeprefix("step-").isdigit()]
    return sorted(found, key=step_of, reverse=True)


def step_of(folder: Path) -> int:
    """The number of steps done at a checkpoint."""
    return int(folder.name.removeprefix("step-"))


def way_on(run: Path) -> str:
    """What the command that started a run does when it is given again, for the end of an error message."""
    if checkpoint_folders(run / "checkpoints"):
        return "the same command continues from the newest checkpoint"
    return "nothing was saved yet, so the same command starts over"
