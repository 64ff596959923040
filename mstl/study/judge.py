"""What a study's node needs after training, in a process of its own: evaluation and heatmaps, or a LEEP measurement.

Started by `mstl.study.runner` as `python -m mstl.study.judge evaluate|leep …`, so that each imports torch once.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from mstl.cli.boundary import exit_with, take_sigterm
from mstl.cli.progress import rich_progress
from mstl.places import heatmap_path
from mstl.study.state import LEEP_NAME
from shards.cache import CacheOptions
from shards.files import write_atomic
from shards.progress import Progress
from shards.remote_store import location


def evaluate(run: Path, splits: list[str], count: int, progress: Progress) -> None:
    """Measure a run on those splits that it lacks, and draw `count` heatmaps of the first one where there are none."""
    from mstl.evaluation.evaluate import evaluate_run
    from mstl.evaluation.explain import explain_run

    for split in splits:
        if not (run / "evaluation" / split / "metrics.json").is_file():
            evaluate_run(run, split=split, progress=progress)
    if count and not heatmap_path(run, splits[0]).is_file():
        explain_run(run, split=splits[0], count=count, out=heatmap_path(run, splits[0]), progress=progress)


def leep(
    source: str, network: str, seed: int, image_size: int, shards: str, split: str, out: Path, progress: Progress
) -> None:
    """Write OUT/leep.json: the LEEP of a run, or of the untrained network where `source` is "none", on a split."""
    from mstl.evaluation.leep_run import as_body, open_target, score_sources
    from mstl.evaluation.leep_sources import open_sources

    runs, untrained = ([], [network]) if source == "none" else ([Path(source)], [])
    sources = open_sources(runs, untrained=untrained, seed=seed)
    target = open_target(location(shards), split=split, cache=CacheOptions(), progress=progress)
    scored = score_sources(sources, target, image_size=image_size, progress=progress)
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / LEEP_NAME, (json.dumps(as_body(scored, target), indent=1, allow_nan=False) + "\n").encode())


def main(words: list[str]) -> None:
    """Do what the words ask for."""
    with rich_progress() as progress:
        match words:
            case ["evaluate", run, splits, count]:
                evaluate(Path(run), splits.split(","), int(count), progress)
            case ["leep", source, network, seed, image_size, shards, split, out]:
                leep(source, network, int(seed), int(image_size), shards, split, Path(out), progress)
            case _:
                raise AssertionError(f"the runner does not say {words}")


if __name__ == "__main__":
    take_sigterm()
    exit_with(lambda: main(sys.argv[1:]))
