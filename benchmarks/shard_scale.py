"""What a shard set of many millions of images costs to know and to plan: a manifest of so many shards, made up.

Run with `python -m benchmarks.shard_scale`; README.md says what the figures mean. No image is made: the shards, their
digests and sizes are invented, the manifest and the plan are the real ones.
"""

from __future__ import annotations

import hashlib
import json
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click

from benchmarks import machine
from mstl.cli.boundary import exit_with
from shards.files import write_atomic
from shards.plan import Plan
from shards.schema import MANIFEST_NAME, Manifest, Shard, load_manifest

PACKAGES = ("mstl", "numpy")
RESULTS = Path(__file__).parent / "results"
MEAN_BYTES = 115_000  # of an image and its tar headers: ImageNet's


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A set to make up, and the training to plan on it."""

    name: str
    images: int
    classes: int
    samples_per_shard: int
    world: int
    batch: int


CASES = (
    Case(name="imagenet-1k", images=1_281_167, classes=1000, samples_per_shard=1000, world=8, batch=2048),
    Case(name="imagenet-21k", images=14_197_122, classes=21_841, samples_per_shard=1000, world=64, batch=8192),
    Case(name="one-billion", images=1_000_000_000, classes=1000, samples_per_shard=1000, world=1024, batch=65_536),
    Case(name="large-shards", images=1_000_000_000, classes=1000, samples_per_shard=10_000, world=1024, batch=65_536),
)


def made_up(case: Case) -> Manifest:
    """The manifest of the case: full shards but for the last, classes of equal size."""
    shards = []
    for number, first in enumerate(range(0, case.images, case.samples_per_shard)):
        digest = hashlib.sha256(number.to_bytes(8)).hexdigest()
        samples = min(case.samples_per_shard, case.images - first)
        shards.append(
            Shard(
                path=f"train/{number:06d}.tar",
                index=f"train/{number:06d}.idx",
                samples=samples,
                first_id=first,
                bytes=samples * MEAN_BYTES,
                sha256=digest,
                index_sha256=digest,
            )
        )
    low, rest = divmod(case.images, case.classes)
    counts = tuple(low + (label < rest) for label in range(case.classes))
    return Manifest(
        source=case.name, modality="natural", classes=tuple(f"n{label:08d}" for label in range(case.classes)),
        splits={"train": tuple(shards)}, options={}, seed=0, tool_version="made up", refused=0, duplicates=0,
        class_counts={"train": counts}, titles={},
    )  # fmt: skip


def measure_manifest(case: Case, folder: str) -> dict[str, Any]:
    """Write and read the manifest; for a process of its own, so that its peak memory is that of reading alone."""
    began = time.perf_counter()
    manifest = load_manifest(Path(folder))
    seconds = time.perf_counter() - began
    assert manifest.samples("train") == case.images
    return {"load_seconds": seconds, "load_peak_mb": _peak_mb()}


def measure_plan(case: Case) -> dict[str, Any]:
    """Plan one rank: its first step, and steps after that; for a process of its own."""
    plan = Plan(
        samples=case.images, world=case.world, batch=case.batch, epochs=2, seed=0, shuffle=True, remainder="drop"
    )  # fmt: skip
    began = time.perf_counter()
    plan.rank_step(case.world - 1, 1, 0)
    first = time.perf_counter() - began
    steps = min(500, plan.steps_per_epoch)
    began = time.perf_counter()
    for step in range(steps):
        plan.rank_step(case.world - 1, 1, step)
    return {
        "first_step_seconds": first,
        "step_microseconds": (time.perf_counter() - began) / steps * 1e6,
        "steps_per_epoch": plan.steps_per_epoch,
        "plan_peak_mb": _peak_mb(),
    }


def _write(case: Case, folder: str) -> dict[str, Any]:
    manifest = made_up(case)
    began = time.perf_counter()
    manifest.save(Path(folder))
    seconds = time.perf_counter() - began
    return {
        "shards": len(manifest.shards("train")),
        "terabytes": sum(shard.bytes for shard in manifest.shards("train")) / 1e12,
        "manifest_mb": (Path(folder) / MANIFEST_NAME).stat().st_size / 1e6,
        "save_seconds": seconds,
    }


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def measure(case: Case) -> dict[str, Any]:
    """All figures of a case, each part in a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        found: dict[str, Any] = {"images": case.images, "samples_per_shard": case.samples_per_shard}
        found |= {"classes": case.classes, "world": case.world, "batch": case.batch}
        for function, arguments in ((_write, (case, folder)), (measure_manifest, (case, folder)),
                                    (measure_plan, (case,))):  # fmt: skip
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                found |= process.submit(function, *arguments).result()
    return found


@click.command("shard-scale")
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS / "shard-scale.json", show_default=True)
@click.option("--case", "names", multiple=True, type=click.Choice([case.name for case in CASES]),
              help="Only these (repeatable).  [default: all]")  # fmt: skip
def command(out: Path, names: tuple[str, ...]) -> None:
    """Measure manifests and plans of made-up shard sets: ImageNet-1k, ImageNet-21k and a billion images.

    The billion stands twice: in shards of a thousand and of ten thousand images.
    """
    from rich.console import Console
    from rich.table import Table

    machine.require_writable(out)
    report = {
        "benchmark": "shard_scale", "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": machine.hardware(), "versions": machine.versions(PACKAGES),
        "cases": {case.name: measure(case) for case in CASES if not names or case.name in names},
    }  # fmt: skip
    write_atomic(out, (json.dumps(report, indent=1) + "\n").encode())
    table = Table(expand=False)
    for title in ("", "images", "shards", "manifest MB", "save s", "load s", "load MB", "first step s", "step µs",
                  "plan MB"):  # fmt: skip
        table.add_column(title, justify="right" if title else "left")
    for name, found in report["cases"].items():
        table.add_row(
            name, f"{found['images']:,}", f"{found['shards']:,}", f"{found['manifest_mb']:,.1f}",
            f"{found['save_seconds']:.2f}", f"{found['load_seconds']:.2f}", f"{found['load_peak_mb']:,.0f}",
            f"{found['first_step_seconds']:.3f}", f"{found['step_microseconds']:.0f}", f"{found['plan_peak_mb']:,.0f}",
        )  # fmt: skip
    Console(width=max(120, Console().width)).print(table)
    click.echo(f"written: {out}")


if __name__ == "__main__":
    exit_with(lambda: command(standalone_mode=False))
