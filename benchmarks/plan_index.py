"""What it costs to hand the plan to DALI as index files, by size of the chunks kept together, and how well it shuffles.

Run with `mstl bench plan` or `python -m benchmarks.plan_index`; README.md says what the figures mean. Planning and
index files are measured on a made-up set of ImageNet's size, whose tars are empty and only their names real; reading on
small generated images, so that what a sample costs the reader is not hidden behind its decoding.
"""

from __future__ import annotations

import json
import resource
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks import machine
from benchmarks.plan_reading import CHUNKS, SHUFFLED, chunk_side, orders, read_speed, shuffling, small_set
from mstl.cli.boundary import exit_with
from pipelines.order import IndexedShard, SplitOrder
from shards.files import write_atomic
from shards.index import Component, format_index
from shards.plan import Plan

PACKAGES = ("mstl", "numpy", "nvidia-dali-cuda130")
RESULTS = Path(__file__).parent / "results"
WORLDS = (1, 8)
RANK_BATCH = 256
MOST_PAIRS = 30_000
"""Index files written and given to DALI at most; beyond them a part of the epoch is measured. DALI maps a file for each
pair, and does not build where they are more than half of vm.max_map_count (65,530 by default)."""


def made_up_split(samples: int, per_tar: int, folder: Path) -> SplitOrder:
    """A split whose tars are holes of the right size, with index lines as long as ImageNet's."""
    shards, firsts = [], range(0, samples, per_tar)
    sizes = np.random.default_rng(0).integers(20_000, 200_000, samples)
    for number, first in enumerate(firsts):
        lines, at = [], 0
        for i in range(first, min(first + per_tar, samples)):
            key, parts = f"n{i % 1000:08d}_{i}", []
            for extension, size in (("jpg", int(sizes[i])), ("cls", 3), ("json", 399), ("i64", 16)):
                parts.append(Component(extension, at + 512, size, f"{key}.{extension}"))
                at += 512 + -(-size // 512) * 512
            lines.append(parts)
        text = format_index(lines).encode()
        tar = folder / f"{number:06d}.tar"
        with tar.open("wb") as file:
            file.truncate(at + 1024)
        ends = np.flatnonzero(np.frombuffer(text, dtype=np.uint8) == ord("\n")) + 1
        shards.append(IndexedShard(tar=str(tar), size_bytes=at + 1024, text=text, ends=ends))
    starts = np.array(firsts, dtype=np.int64)
    return SplitOrder(shards=tuple(shards), starts=starts, first_ids=starts)


def measure_costs(samples: int, per_tar: int, chunk: int, folder: str) -> list[dict[str, Any]]:
    """Planning an epoch for rank 0 of each world, writing its index files and building DALI with them.

    For a process of its own: memory is the growth of its peak.
    """
    split = made_up_split(samples, per_tar, Path(folder))
    return [_costs(split, samples, chunk, world) for world in sorted(WORLDS, reverse=True)]


def _costs(split: SplitOrder, samples: int, chunk: int, world: int) -> dict[str, Any]:
    plan = Plan(samples=samples, world=world, batch=world * RANK_BATCH, epochs=1, seed=0, shuffle=True,
                remainder="drop", chunk=chunk)  # fmt: skip
    began = time.perf_counter()
    positions = plan.filled(0, 0)
    planned = time.perf_counter() - began
    cuts = np.flatnonzero(np.diff(split.locate(positions)[0])) + 1
    found = {"chunk": chunk, "world": world, "plan_seconds": planned, "pairs": len(cuts) + 1}
    if len(cuts) >= MOST_PAIRS:
        positions = positions[: cuts[MOST_PAIRS - 1]]
    with tempfile.TemporaryDirectory(prefix="mstl-order-") as folder:
        began = time.perf_counter()
        tars, indexes = split.write(positions, Path(folder))
        written = time.perf_counter() - began
        found |= {
            "written_pairs": len(indexes),
            "write_seconds": written,
            "index_mb": sum(Path(index).stat().st_size for index in indexes) / 1e6,
            "disk_mb": sum(Path(index).stat().st_blocks for index in indexes) * 512 / 1e6,
            **_build(tars, indexes),
        }
    return found


def _build(tars: Sequence[str], indexes: Sequence[str]) -> dict[str, float]:
    """Seconds that DALI takes to build a reader of these pairs, and the memory it adds in MB."""
    from nvidia.dali import pipeline_def

    from pipelines.inputs import read

    @pipeline_def  # type: ignore[untyped-decorator]
    def reader() -> tuple[Any, ...]:
        return read(tars, indexes)

    made: Callable[..., Any] = reader
    before, began = _resident_mb(), time.perf_counter()
    pipeline = made(batch_size=RANK_BATCH, num_threads=1, device_id=None, seed=0)
    pipeline.build()
    return {"build_seconds": time.perf_counter() - began, "build_mb": _resident_mb() - before}


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


@click.command("plan", context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.option("--samples", type=click.IntRange(1), default=1_281_167, help="Samples of the made-up set.")
@click.option("--per-tar", type=click.IntRange(1), default=1000, help="Samples of a tar, in both sets.")
@click.option("--chunk", "chunks", multiple=True, type=click.IntRange(1), default=CHUNKS,
              help="Samples kept together (repeatable).")  # fmt: skip
@click.option("--images", type=click.IntRange(100), default=20_000, help="Small images that are read.")
@click.option("--repeats", type=click.IntRange(1), default=5, help="Runs of each side of the reading.")
@click.option("--scratch", type=click.Path(path_type=Path), help="Where index files and images are written.")
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS / "plan-index.json")
def command(
    samples: int, per_tar: int, chunks: tuple[int, ...], images: int, repeats: int, scratch: Path | None, out: Path
) -> None:
    """Measure the plan as index files: planning, writing, building, reading and how well it shuffles."""
    from mstl.cli.progress import rich_progress

    date, hardware = datetime.now(UTC), machine.hardware()
    machine.require_writable(out)
    costs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="mstl-bench-", dir=scratch) as folder, rich_progress() as progress:
        progress.start(len(chunks), "planning")
        for chunk in chunks:
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                costs += process.submit(measure_costs, samples, per_tar, chunk, folder).result()
            progress.advance()
        shards = small_set(images, per_tar, Path(folder) / "small", progress)
        sides = (*(chunk_side(chunk) for chunk in chunks), SHUFFLED)
        runs = machine.alternate(partial(read_speed, shards), sides, repeats, progress)
        shuffled = {side: shuffling(*orders(shards, side)) for side in sides}
    body = {
        "benchmark": "plan_index", "date": date.isoformat(timespec="seconds"), "hardware": hardware,
        "versions": machine.versions(PACKAGES),
        "settings": {"samples": samples, "per_tar": per_tar, "images": images, "repeats": repeats,
                     "rank_batch": RANK_BATCH},
        "costs": costs, **machine.summary(runs, sides[0]), "shuffling": shuffled,
    }  # fmt: skip
    write_atomic(out, (json.dumps(body, indent=1) + "\n").encode())
    _show(body)
    click.echo(f"Wrote {out}")


def _show(body: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=max(120, Console().width))
    costs = Table(title=f"One epoch of {body['settings']['samples']:,} samples, rank 0")
    for title in ("chunk", "ranks", "plan s", "pairs", "written", "write s", "index MB", "on disk MB", "build s",
                  "build MB"):  # fmt: skip
        costs.add_column(title, justify="right")
    for row in body["costs"]:
        costs.add_row(
            f"{row['chunk']}", f"{row['world']}", f"{row['plan_seconds']:.2f}", f"{row['pairs']:,}",
            f"{row['written_pairs']:,}", f"{row['write_seconds']:.1f}", f"{row['index_mb']:.0f}",
            f"{row['disk_mb']:.0f}", f"{row['build_seconds']:.1f}", f"{row['build_mb']:.0f}",
        )  # fmt: skip
    reading = Table(title=f"Reading and decoding {body['settings']['images']:,} small images")
    for title in ("", "images/s", "images/CPU-s", "epochs' rank correlation", "with the tars' order",
                  "batch mates kept", "by chance"):  # fmt: skip
        reading.add_column(title, justify="right" if title else "left")
    for side, found in body["shuffling"].items():
        median = body["sides"][side]["median"]
        reading.add_row(
            side, f"{median['images_per_second']:,.0f}", f"{median['images_per_cpu_second']:,.0f}",
            f"{found['rank_correlation']:+.3f}", f"{found['stored_correlation']:+.3f}",
            f"{found['batch_mates_kept']:.2%}", f"{found['batch_mates_by_chance']:.2%}",
        )  # fmt: skip
    console.print(costs)
    console.print(reading)


if __name__ == "__main__":
    exit_with(lambda: command.main(standalone_mode=False))
