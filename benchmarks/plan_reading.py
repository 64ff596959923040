"""Reading small images in the plan's order and in DALI's own shuffled one: speed, and how well each shuffles."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import machine
from benchmarks.loader_data import LEAST_CPU_SECONDS
from shards.plan import Plan
from shards.schema import load_manifest

if TYPE_CHECKING:
    from nvidia.dali.pipeline import Pipeline

    from shards.progress import Progress

CHUNKS = (1, 8, 10, 32, 40, 128, 1000)
SHUFFLED = "DALI's shuffle"
"""random_shuffle with initial_fill 1024 and shuffle_after_epoch: what DALI offers without a plan."""
INITIAL_FILL = 1024
BATCH = 256
Ids = NDArray[np.int64]


def chunk_side(chunk: int) -> str:
    """The name of the side that reads the plan with this chunk."""
    return f"plan, chunk {chunk}"


def small_set(images: int, per_tar: int, folder: Path, progress: Progress) -> Path:
    """A shard set of small JPEGs of noise."""
    from benchmarks.shard_write import noise_images
    from shards.sources import read_source
    from shards.writer import WriteOptions, write_shards

    noise_images(images, folder / "images", progress)
    options = WriteOptions(samples_per_shard=per_tar, val_fraction=0, max_bad=0, decode=False)
    write_shards(read_source("folder", folder / "images"), folder / "shards", options, progress)
    return folder / "shards"


def read_speed(shards: Path, side: str) -> machine.Run:
    """Whole epochs of reading and decoding after a warm-up, for a process of its own; building is left out."""
    with tempfile.TemporaryDirectory(prefix="mstl-order-") as folder:
        pipeline, steps, images = _pipeline(shards, side, Path(folder), decode=True)
    for _ in range(min(4, steps)):
        pipeline.run()
    count, used = 0, 0.0
    began, cpu_began = time.perf_counter(), machine.tree_cpu_seconds(os.getpid())
    while used < LEAST_CPU_SECONDS:
        for _ in range(steps):
            pipeline.run()
        count += images
        used = machine.tree_cpu_seconds(os.getpid()) - cpu_began
    return machine.Run(images=count, seconds=time.perf_counter() - began, cpu_seconds=used)


def orders(shards: Path, side: str) -> tuple[Ids, Ids]:
    """Sample ids of two epochs in the order they are read."""
    if side != SHUFFLED:
        plan = _plan(shards, side)
        return plan.order(0), plan.order(1)
    with tempfile.TemporaryDirectory(prefix="mstl-order-") as folder:
        pipeline, steps, images = _pipeline(shards, side, Path(folder), decode=False)
    epochs = []
    for _ in range(2):
        outputs = [pipeline.run() for _ in range(steps)]
        epochs.append(np.concatenate([named.as_array()[:, 0] for _, named in outputs])[:images])
    return epochs[0], epochs[1]


def shuffling(first: Ids, second: Ids) -> dict[str, float]:
    """How much two epochs' orders of sample ids have in common.

    rank_correlation: of a sample's places in the two (Spearman's), over samples in both; stored_correlation: of its
    place in the first and its id, which is its place in the tars; batch_mates_kept: of the pairs of samples that share
    a batch in the first epoch, the share that do so again; `batch_mates_by_chance`: what a random order would keep.
    """
    places = [dict(zip(order.tolist(), range(len(order)), strict=True)) for order in (first, second)]
    common = sorted(places[0].keys() & places[1].keys())
    one, other = (np.array([place[i] for i in common]) for place in places)
    batches = np.stack([one // BATCH, other // BATCH])
    together = np.unique(batches, axis=1, return_counts=True)[1]
    before = np.unique(batches[0], return_counts=True)[1]
    return {
        "rank_correlation": _rank_correlation(one, other),
        "stored_correlation": _rank_correlation(one, np.array(common)),
        "batch_mates_kept": float(_pairs(together) / _pairs(before)),
        "batch_mates_by_chance": (BATCH - 1) / (len(common) - 1),
    }


def _rank_correlation(one: Ids, other: Ids) -> float:
    first, second = (np.argsort(np.argsort(values)).astype(np.float64) for values in (one, other))
    return float(np.corrcoef(first, second)[0, 1])


def _pairs(counts: Ids) -> float:
    return float((counts * (counts - 1)).sum()) / 2


def _plan(shards: Path, side: str) -> Plan:
    samples = load_manifest(shards).samples("train")
    return Plan(samples=samples, world=1, batch=BATCH, epochs=2, seed=0, shuffle=True, remainder="drop",
                chunk=int(side.rpartition(" ")[2]))  # fmt: skip


def _pipeline(shards: Path, side: str, folder: Path, *, decode: bool) -> tuple[Pipeline, int, int]:
    """A built pipeline of encoded or decoded images and [2] int64 (sample_id, label); steps and images of an epoch."""
    from nvidia.dali import fn, pipeline_def, types

    from pipelines.inputs import IMAGE_EXTENSIONS, read
    from pipelines.order import open_split

    manifest = load_manifest(shards)
    if side == SHUFFLED:
        parts = manifest.shards("train")
        tars, indexes = [str(shards / part.path) for part in parts], [str(shards / part.index) for part in parts]
        images = manifest.samples("train")
        steps = -(-images // BATCH)
    else:
        plan = _plan(shards, side)
        tars, indexes = open_split(shards, manifest, "train").write(plan.filled(0, 0), folder)
        steps, images = plan.steps_per_epoch, plan.used

    @pipeline_def  # type: ignore[untyped-decorator]
    def graph() -> tuple[Any, ...]:
        if side == SHUFFLED:
            encoded, named = fn.readers.webdataset(  # type: ignore[misc]  # its stub cannot know that two come out
                paths=tars, index_paths=indexes, ext=[IMAGE_EXTENSIONS, "i64"], dtypes=[types.UINT8, types.INT64],
                missing_component_behavior="error", random_shuffle=True, initial_fill=INITIAL_FILL,
                shuffle_after_epoch=True, pad_last_batch=True,
            )  # fmt: skip
        else:
            encoded, named = read(tars, indexes)
        return (fn.decoders.image(encoded, output_type=types.RGB) if decode else encoded), named

    made: Callable[..., Pipeline] = graph
    pipeline = made(batch_size=BATCH, num_threads=2, device_id=None, seed=0)
    pipeline.build()
    return pipeline, steps, images
