"""Where our Loader's time goes: reading, decoding and augmenting, by cutting the graph off; and who waits for whom."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import machine
from benchmarks.loader_data import LEAST_CPU_SECONDS, Job
from benchmarks.loader_peers import recipe

if TYPE_CHECKING:
    from nvidia.dali.pipeline import Pipeline

CUTS = ("read", "decode", "whole")
IDLE_SHARE = 1.5
"""How long the consumer of the second part takes over a batch, in times of what the Loader alone takes."""


def measure_cut(job: Job, cut: str) -> machine.Run:
    """Our graph up to a cut, over one epoch in the plan's order after a warm-up, for a process of its own."""
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="mstl-order-") as folder:
        tars, indexes, steps = _epoch_order(job, Path(folder))
        pipeline = _pipeline(job, cut, tars, indexes)
        pipeline.build()
    for _ in range(min(steps, 4)):
        pipeline.run()
    count, elapsed, used = 0, 0.0, 0.0
    began, cpu_began = time.perf_counter(), machine.tree_cpu_seconds(os.getpid())
    while elapsed < job.seconds or used < LEAST_CPU_SECONDS:
        for _ in range(steps):
            pipeline.run()
        count += steps * job.batch
        elapsed, used = time.perf_counter() - began, machine.tree_cpu_seconds(os.getpid()) - cpu_began
    return machine.Run(images=count, seconds=elapsed, cpu_seconds=used)


def waiting(job: Job) -> dict[str, float]:
    """Share of the time that a consumer waits for batches (`Loader.wait_seconds`), measured in a fresh process.

    `wait_share`: it does nothing else. `wait_share_computing`: it takes IDLE_SHARE times the Loader's own time over
    each batch and leaves the CPU alone, as a step on a GPU does.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(_waiting, job).result()


def _waiting(job: Job) -> dict[str, float]:
    import torch

    torch.set_num_threads(1)
    batch_seconds, alone = _consume(job, 0.0)
    _, computing = _consume(job, IDLE_SHARE * batch_seconds)
    return {"wait_share": alone, "wait_share_computing": computing}


def _consume(job: Job, pause_seconds: float) -> tuple[float, float]:
    """Seconds a batch, and the share of them that was spent waiting for it."""
    from pipelines.loader import Loader

    loader = Loader(
        recipe(job.crop, job.size), job.shards, "train", rank=0, world=1, batch=job.batch, epochs=sys.maxsize,
        device="cpu", seed=0, shuffle=True, remainder="drop", threads=job.threads,
    )  # fmt: skip
    for _ in loader:
        pass
    waited, began, batches = loader.wait_seconds, time.perf_counter(), 0
    while time.perf_counter() - began < job.seconds:
        for _ in loader:
            time.sleep(pause_seconds)
            batches += 1
    elapsed, waited = time.perf_counter() - began, loader.wait_seconds - waited
    loader.close()
    return elapsed / batches, waited / elapsed


def split(runs: dict[str, list[machine.Run]]) -> dict[str, float]:
    """CPU milliseconds an image of each part: medians of the cuts, each less the one before."""
    import statistics

    total = {cut: statistics.median(1e3 * run.cpu_seconds / run.images for run in done) for cut, done in runs.items()}
    return {
        "read_cpu_ms": total["read"],
        "decode_cpu_ms": total["decode"] - total["read"],
        "augment_cpu_ms": total["whole"] - total["decode"],
    }


def _epoch_order(job: Job, folder: Path) -> tuple[list[str], list[str], int]:
    from pipelines.order import open_split
    from shards.plan import Plan, default_chunk
    from shards.schema import load_manifest

    manifest = load_manifest(job.shards)
    samples = manifest.samples("train")
    plan = Plan(samples=samples, world=1, batch=job.batch, epochs=1, seed=0, shuffle=True, remainder="drop",
                chunk=default_chunk(samples))  # fmt: skip
    return (*open_split(job.shards, manifest, "train").write(plan.filled(0, 0), folder), plan.steps_per_epoch)


def _pipeline(job: Job, cut: str, tars: list[str], indexes: list[str]) -> Pipeline:
    from nvidia.dali import pipeline_def

    from pipelines import inputs as graph

    inputs = recipe(job.crop, job.size)
    if cut == "whole":
        return graph.build_pipeline(
            inputs, tars, indexes, batch=job.batch, threads=job.threads, device="cpu", device_id=0, seed=0
        )

    @pipeline_def  # type: ignore[untyped-decorator]
    def cut_off() -> tuple[Any, ...]:
        encoded, named = graph.read(tars, indexes)
        return (encoded if cut == "read" else graph.decode(encoded, inputs, "cpu"), named)

    made: Callable[..., Pipeline] = cut_off
    return made(batch_size=job.batch, num_threads=job.threads, device_id=None, seed=0)
