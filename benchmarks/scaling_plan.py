"""The real plan at the world sizes of the predictions: what every rank gets, reads and misses."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.plan_index import made_up_split
from pipelines.order import SplitOrder
from shards.errors import MstlError
from shards.plan import Plan, Remainder

MOST_PAIRS = 8_000  # index files that a loader writes at a time


@dataclass(frozen=True, slots=True)
class Set:
    """A split to plan: `rank_batch` images a rank, or a fixed global `batch` shared by the ranks."""

    name: str
    samples: int
    per_tar: int
    remainder: Remainder
    rank_batch: int | None = None
    batch: int | None = None


SETS = (
    Set("imagenet, 256 a GPU", 1_281_167, 1000, "drop", rank_batch=256),
    Set("imagenet, 32 a GPU", 1_281_167, 1000, "drop", rank_batch=32),
    Set("covid19-ct, 256 in all", 425, 1000, "keep", batch=256),
)


def simulate(given: Set, world: int, folder: Path) -> dict[str, Any]:
    """One shuffled epoch of every rank; what the plan refuses is told in its own words.

    Every position is counted, so that "no sample twice, none but the remainder left out" is seen and not believed.
    """
    batch = given.batch or world * (given.rank_batch or 1)
    told: dict[str, Any] = {"set": given.name, "gpus": world, "global_batch": batch}
    try:
        plan = Plan(samples=given.samples, world=world, batch=batch, epochs=1, seed=0, shuffle=True,
                    remainder=given.remainder)  # fmt: skip
    except MstlError as error:
        return {**told, "refused": str(error)}
    if plan.valid(plan.steps_per_epoch - 1) < 2:
        # Batch norm needs two images of a rank, which training checks before it starts.
        return {**told, "refused": "a rank would hold one image in a step, and batch normalisation needs two"}
    starts = np.arange(0, given.samples, given.per_tar, dtype=np.int64)
    order = SplitOrder(shards=(), starts=starts, first_ids=starts)
    sizes = np.random.default_rng(0).lognormal(np.log(110e3), 0.5, given.samples)  # about ImageNet's spread
    seen = np.zeros(given.samples, dtype=np.int64)
    tars, pairs, read, own = [], [], [], []
    began = time.perf_counter()
    for rank in range(world):
        positions = np.concatenate(plan.rank_batches(rank, 0))
        numbers, _ = order.locate(positions)
        seen[positions] += 1
        own.append(len(positions))
        tars.append(len(np.unique(numbers)))
        pairs.append(int(np.count_nonzero(np.diff(numbers))) + 1)
        read.append(float(sizes[positions].sum()))
    seconds = time.perf_counter() - began
    assert seen.max() == 1 and seen.sum() == plan.used and len(set(own)) == 1
    return {
        **told,
        "steps_per_epoch": plan.steps_per_epoch,
        "samples_per_rank": own[0],
        "left_out": plan.left_out,
        "left_out_share": plan.left_out / given.samples,
        "tars": len(starts),
        "tars_per_rank": {"least": min(tars), "mean": float(np.mean(tars)), "most": max(tars)},
        "pairs_per_rank": {"least": min(pairs), "mean": float(np.mean(pairs)), "most": max(pairs)},
        "ranks_per_tar": float(np.sum(tars) / len(starts)),
        "bytes_most_over_mean": max(read) / float(np.mean(read)),
        "plan_seconds_per_rank": seconds / world,
        **_index(given, plan, folder),
    }


def _index(given: Set, plan: Plan, folder: Path) -> dict[str, float]:
    """Seconds and megabytes of the first rank's first index files, with index lines of the real length."""
    split = made_up_split(given.samples, given.per_tar, folder)
    positions = plan.filled(0, 0)
    cuts = np.flatnonzero(np.diff(split.locate(positions)[0])) + 1
    if len(cuts) >= MOST_PAIRS:
        positions = positions[: cuts[MOST_PAIRS - 1]]
    place = folder / "index"
    place.mkdir()
    began = time.perf_counter()
    _, indexes = split.write(positions, place)
    return {
        "index_files": len(indexes),
        "index_seconds": time.perf_counter() - began,
        "index_mb": sum(Path(index).stat().st_size for index in indexes) / 1e6,
    }
