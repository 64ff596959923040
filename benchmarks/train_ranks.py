"""Training steps on ranks: sides take turns, step by step alike."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks import machine
from benchmarks.roofline import enough_memory, peak_bytes
from benchmarks.train_profile import profile
from benchmarks.train_sides import LEAD_STEPS, OURS, REAL, SYNTHETIC, Settings, Side, build_side
from launch.engine import start_processes
from launch.processes import device, set_environment
from mstl.distributed import rank, world_size

Job = tuple[str, str, str]
"""Network, side, feed."""


def launched() -> bool:
    """Whether a launcher (torchrun, deepspeed) has started this process as one rank of several."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def measure_here(every: Sequence[Settings], traces: Path | None) -> list[dict[str, Any]]:
    """Measure as the rank that a launcher made of this process; every rank calls it, rank 0's answer counts."""
    set_environment()
    start_processes()
    try:
        with enough_memory():
            return [measure(device(), each, traces if number == 0 else None) for number, each in enumerate(every)]
    finally:
        dist.destroy_process_group()


def measure(on: torch.device, settings: Settings, traces: Path | None) -> dict[str, Any]:
    """What one rank measures; all call it. traces: where profiles are written, if they are wanted."""
    sides = {
        (model, side): build_side(side, model, settings, on) for model in settings.models for side in settings.sides
    }
    jobs: list[Job] = [(model, side, feed) for feed in settings.feeds for model, side in sides
                       if feed in sides[model, side].feeds]  # fmt: skip
    times: dict[Job, dict[str, Any]] = {job: {"wall_ms": [], "cpu_ms": [], "wait_ms": []} for job in jobs}
    for number in range(1 + settings.turns):  # in the first, memory is found, networks are compiled, cuDNN chooses
        # The order turns round, so that no side is always behind the same other.
        for job in jobs[number % len(jobs) :] + jobs[: number % len(jobs)]:
            taken = _turn(sides[job[:2]], job[2], settings.steps, on)
            if number:
                for name in ("wall_ms", "cpu_ms", "wait_ms"):
                    times[job][name].append(taken[name])
            times[job]["last_loss"] = taken["last_loss"]
    found: dict[str, Any] = {model: {} for model in settings.models}
    for job in jobs:
        model, side, feed = job
        found[model].setdefault(feed, {})[side] = _figures(times[job], settings.batch * world_size())
    for (model, side), built in sides.items():
        found[model][SYNTHETIC][side] |= {**_memory(built, on), "backends": built.backends}
    profiles = {}
    if traces is not None:
        feed = settings.feeds[-1]
        for model in settings.models:
            if (model, OURS) in sides:
                trace = traces / f"trace-{model}.json" if rank() == 0 else None
                profiles[model] = {"feed": feed, **profile(sides[model, OURS], feed, on, trace)}
    name = torch.cuda.get_device_name(on) if on.type == "cuda" else "CPU"
    return {
        "ranks": world_size(), "batch": settings.batch, "device": name, "device_type": on.type,
        "threads": torch.get_num_threads(), "models": found, "profiles": profiles,
    }  # fmt: skip


def _turn(side: Side, feed: str, steps: int, on: torch.device) -> dict[str, float]:
    """Some steps in a row; times of one in ms, CPU time of all ranks and their workers together."""
    with closing(side.feeds[feed]()) as batches:
        for batch in islice(batches, LEAD_STEPS if feed == REAL else 0):
            side.step(batch)
        meet(on)
        cpu, waited = machine.tree_cpu_seconds(os.getpid()), 0.0
        wall = time.perf_counter()
        for _ in range(steps):
            asked = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - asked
            loss = side.step(batch)
        meet(on)
        spent = [time.perf_counter() - wall, machine.tree_cpu_seconds(os.getpid()) - cpu, waited]
    everyone = torch.tensor(spent, dtype=torch.float64, device=on)
    if world_size() > 1:
        dist.all_reduce(everyone[1:2])
    spent[1] = float(everyone[1])
    return {**{name: 1e3 * value / steps for name, value in zip(("wall_ms", "cpu_ms", "wait_ms"), spent, strict=True)},
            "last_loss": float(loss)}  # fmt: skip


def meet(on: torch.device) -> None:
    """Wait for this rank's device and for the other ranks."""
    if on.type == "cuda":
        torch.cuda.synchronize(on)
    dist.barrier()


def _figures(taken: dict[str, Any], images: int) -> dict[str, Any]:
    """Times of every turn, their medians, and what they come to in images (or pairs of views) a second."""
    median = {name: statistics.median(taken[name]) for name in ("wall_ms", "cpu_ms", "wait_ms")}
    return {**taken, "median": median, "images_per_second": 1e3 * images / median["wall_ms"]}


def _memory(side: Side, on: torch.device) -> dict[str, int]:
    """Bytes that live from step to step on this rank, and the most that a step needs beyond them."""
    held = side.held()
    with closing(side.feeds[SYNTHETIC]()) as batches:
        batch = next(batches)
        peak = peak_bytes(lambda: side.step(batch), on)
    return {"held_bytes": held, "peak_bytes": held + peak}
