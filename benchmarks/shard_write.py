"""Images a second written into shards, against a plain webdataset.ShardWriter loop; what workers add; peak memory.

Run with `python -m benchmarks.shard_write`; README.md says what the figures mean.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from benchmarks import machine
from benchmarks.loader_data import draw_images, link_images
from mstl.cli.boundary import exit_with
from shards.files import write_atomic

if TYPE_CHECKING:
    from shards.progress import Progress
    from shards.sources import Listing

PACKAGES = ("mstl", "webdataset", "pillow", "numpy")
RESULTS = Path(__file__).parent / "results"
PEER = "webdataset"
SAMPLES_PER_SHARD = 1000
LOOK_SECONDS = 0.05


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """Where the class folders are and where to write, how many worker processes, and how images are checked."""

    images: Path
    scratch: Path
    workers: int


def _listing(job: Job) -> Listing:
    from shards.sources import read_source

    return read_source("folder", job.images)


def peer(job: Job) -> machine.Run:
    """The loop of webdataset's documentation: read a file, hand the sample to a ShardWriter; no index, no digest."""
    import webdataset as wds

    items = _listing(job).items
    return _timed(lambda: _peer_loop(items, job.scratch, wds.ShardWriter), len(items))


def _peer_loop(items: Any, scratch: Path, writer: Any) -> None:
    with writer(str(scratch / "%06d.tar"), maxcount=SAMPLES_PER_SHARD, maxsize=1e12, verbose=0) as sink:
        for i, item in enumerate(items):
            about = {"label": item.label, "origin": item.origin, "split": item.split}
            data = Path(item.blob.path).read_bytes()
            sink.write({"__key__": f"{i:08d}", "jpg": data, "cls": item.label, "json": about})


def ours(job: Job, *, workers: int, decode: bool) -> machine.Run:
    """`write_shards`, from the listing to the published set: index, digests of samples, tars and indexes, manifest."""
    from shards.writer import WriteOptions, write_shards

    listing = _listing(job)
    options = WriteOptions(
        samples_per_shard=SAMPLES_PER_SHARD, val_fraction=0, decode=decode, max_bad=0, workers=workers
    )
    return _timed(lambda: write_shards(listing, job.scratch / "set", options), len(listing.items))


def decoding(job: Job, *, processes: int) -> machine.Run:
    """Decoding alone in so many processes that share nothing: what the machine's cores add at best."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    paths = [item.blob.path for item in _listing(job).items]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        for done in [pool.submit(_decode, paths[:1]) for _ in range(processes)]:
            done.result()  # imports are no part of it
        shares = [paths[i::processes] for i in range(processes)]
        return _timed(lambda: list(pool.map(_decode, shares)), len(paths))


def _decode(paths: list[str]) -> None:
    from shards.check import check_bytes

    for path in paths:
        check_bytes(Path(path).read_bytes())


def _timed(work: Callable[[], object], images: int) -> machine.Run:
    began, cpu_began = time.perf_counter(), machine.tree_cpu_seconds(os.getpid())
    work()
    seconds = time.perf_counter() - began
    return machine.Run(
        images=images, seconds=seconds, cpu_seconds=max(0.01, machine.tree_cpu_seconds(os.getpid()) - cpu_began)
    )


def sides(workers: int) -> dict[str, Callable[[Job], machine.Run]]:
    """Name → side. Pass-through sides believe the headers of images (`--check header`)."""
    found: dict[str, Callable[[Job], machine.Run]] = {
        PEER: peer,
        "pass-through, 1 worker": partial(ours, workers=1, decode=False),
        "full checks, 1 worker": partial(ours, workers=1, decode=True),
        "decoding alone, 1 process": partial(decoding, processes=1),
    }
    if workers > 1:
        found[f"pass-through, {workers} workers"] = partial(ours, workers=workers, decode=False)
        found[f"full checks, {workers} workers"] = partial(ours, workers=workers, decode=True)
        found[f"decoding alone, {workers} processes"] = partial(decoding, processes=workers)
    return found


def measure(job: Job, side: str) -> machine.Run:
    """One run of a side into an empty folder; for a process of its own."""
    shutil.rmtree(job.scratch, ignore_errors=True)
    job.scratch.mkdir()
    run = sides(job.workers)[side](job)
    shutil.rmtree(job.scratch)
    return run


def ratios(summarised: Mapping[str, Any], workers: int) -> dict[str, float]:
    """What the benchmark is for, from medians of images a second."""
    rate = {side: found["median"]["images_per_second"] for side, found in summarised["sides"].items()}
    found = {"pass-through, 1 worker / webdataset": rate["pass-through, 1 worker"] / rate[PEER]}
    if workers > 1:
        one, many = "1 worker", f"{workers} workers"
        found |= {
            f"pass-through, {many} / webdataset": rate[f"pass-through, {many}"] / rate[PEER],
            f"full checks, {many} / {one}": rate[f"full checks, {many}"] / rate[f"full checks, {one}"],
            f"decoding alone, {workers} processes / 1": (
                rate[f"decoding alone, {workers} processes"] / rate["decoding alone, 1 process"]
            ),
        }
    return found


def peak_memory(images: int, workers: int, scratch: Path, progress: Progress) -> dict[str, Any]:
    """Convert so many small generated images with full checks and watch the memory of the whole process tree.

    Memory is the proportional set size in MB: pages that processes share count once.
    """
    import psutil

    folder = scratch / "many"
    noise_images(images, folder, progress)
    process = psutil.Process()
    peak, end = 0.0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not end.wait(LOOK_SECONDS):
            total = 0
            for one in (process, *process.children(recursive=True)):
                try:
                    total += one.memory_full_info().pss
                except psutil.NoSuchProcess:
                    continue
            peak = max(peak, total / 1e6)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        job = Job(images=folder, scratch=scratch / "many-out", workers=workers)
        job.scratch.mkdir()
        run = ours(job, workers=workers, decode=True)
    finally:
        end.set()
        watcher.join()
    shutil.rmtree(folder)
    shutil.rmtree(job.scratch)
    return {"images": images, "workers": workers, "peak_pss_mb": peak, "seconds": run.seconds}


def noise_images(images: int, folder: Path, progress: Progress) -> None:
    """Small JPEGs of noise, all different, in ten classes."""
    import io

    import numpy as np
    from PIL import Image

    progress.start(images, "generating images")
    rng = np.random.default_rng(0)
    for i in range(images):
        place = folder / f"class{i % 10}"
        if i < 10:
            place.mkdir(parents=True)
        out = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(out, "JPEG")
        (place / f"{i:06d}.jpg").write_bytes(out.getvalue())
        progress.advance()


def small_copies(folder: Path, side: int, progress: Progress) -> None:
    """Replace the images of class folders by JPEG copies whose shorter side has at most so many pixels."""
    from PIL import Image

    files = sorted(folder.glob("*/*"))
    made: dict[Path, bytes] = {}
    progress.start(len(files), "resizing images")
    for path in files:
        original = path.resolve()
        if original not in made:
            with Image.open(original) as image:
                scale = min(1.0, side / min(image.size))
                size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
                target = folder.parent / f"small-{len(made):06d}.jpg"
                image.convert("RGB").resize(size).save(target, "JPEG", quality=90)
            made[original] = bytes(str(target), "utf-8")
        path.unlink()
        path.symlink_to(made[original].decode())
        progress.advance()


@click.command(context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.option("--raw", type=click.Path(path_type=Path), metavar="DIR",
              help="Class folders of JPEGs or PNGs; without it pictures are generated.")  # fmt: skip
@click.option("--images", type=click.IntRange(1), default=20_000, help="Images of a run; distinct ones are repeated.")
@click.option("--resize", type=click.IntRange(16), help="First bring the shorter side down to this, as JPEG.")
@click.option("--many", type=click.IntRange(0), default=50_000, help="Images of the memory run; 0 leaves it out.")
@click.option("--workers", type=click.IntRange(1), default=2, help="Worker processes of the parallel sides.")
@click.option("--repeats", type=click.IntRange(1), default=5, help="Runs of each side.")
@click.option(
    "--scratch", type=click.Path(path_type=Path), default=Path("/dev/shm"), help="Where everything is written."
)
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE",
              help="The JSON to write.  [default: benchmarks/results/shard-write-TIME.json]")  # fmt: skip
def command(
    raw: Path | None, images: int, resize: int | None, many: int, workers: int, repeats: int, scratch: Path,
    out: Path | None,
) -> None:  # fmt: skip
    """Measure writing shards against webdataset's ShardWriter, and what worker processes and memory do.

    \b
    Examples:
      python -m benchmarks.shard_write --raw data/raw/imagenet/train
      python -m benchmarks.shard_write --raw data/raw/imagenet/train --resize 256
    """
    from mstl.cli.progress import rich_progress

    date, hardware = datetime.now(UTC), machine.hardware()
    out = out or RESULTS / f"shard-write-{date:%Y%m%dT%H%M%SZ}.json"
    machine.require_writable(out)
    with tempfile.TemporaryDirectory(prefix="mstl-bench-", dir=scratch) as name, rich_progress() as progress:
        root = Path(name)
        job = Job(images=root / "images", scratch=root / "out", workers=workers)
        if raw is None:
            draw_images(min(images, 200), root / "drawn", progress)
        link_images(_copied(raw or root / "drawn", root / "source", progress), images, job.images)
        if resize is not None:
            small_copies(job.images, resize, progress)
        sizes = [path.stat().st_size for path in job.images.glob("*/*")]
        data = {
            "kind": "generated" if raw is None else "files", "images": len(sizes),
            "distinct_images": len({path.resolve() for path in job.images.glob("*/*")}), "resized_to": resize,
            "mean_bytes": round(statistics.fmean(sizes)),
        }  # fmt: skip
        found = machine.alternate(partial(measure, job), tuple(sides(workers)), repeats, progress)
        summarised = machine.summary(found, PEER)
        summarised["ratios"] = ratios(summarised, workers)
        memory = peak_memory(many, workers, root, progress) if many else None
    body = {
        "benchmark": "shard_write", "date": date.isoformat(timespec="seconds"), "hardware": hardware,
        "versions": machine.versions(PACKAGES), "data": data,
        "settings": {"workers": workers, "repeats": repeats, "samples_per_shard": SAMPLES_PER_SHARD,
                     "scratch": "memory" if str(scratch).startswith("/dev/shm") else "disk"},
        **summarised, "memory": memory,
    }  # fmt: skip
    write_atomic(out, (json.dumps(body, indent=1) + "\n").encode())
    _show(body)
    click.echo(f"Wrote {out}")


def _copied(raw: Path, folder: Path, progress: Progress, most: int = 3000) -> Path:
    """Class folders with copies of up to so many images, so that no side reads from a slow disk."""
    files = list(islice((path for path in sorted(raw.glob("*/*")) if path.is_file()), most))
    progress.start(len(files), "copying images")
    for path in files:
        (folder / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / path.parent.name / path.name)
        progress.advance()
    folder.mkdir(exist_ok=True)
    return folder


def _show(body: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for title in ("", "images/s", "images/CPU-s", "MB/s"):
        table.add_column(title, justify="right" if title else "left")
    for side, found in body["sides"].items():
        rates = [run["images_per_second"] for run in found["runs"]]
        median = found["median"]["images_per_second"]
        table.add_row(
            side, f"{median:,.0f} ({min(rates):,.0f} to {max(rates):,.0f})",
            f"{found['median']['images_per_cpu_second']:,.0f}", f"{median * body['data']['mean_bytes'] / 1e6:,.0f}",
        )  # fmt: skip
    console = Console()
    console.print(table)
    for name, ratio in body["ratios"].items():
        console.print(f"{name}: {ratio:.2f}")
    if body["memory"]:
        console.print(f"peak memory over {body['memory']['images']:,} images: {body['memory']['peak_pss_mb']:,.0f} MB")


if __name__ == "__main__":
    exit_with(lambda: command.main(standalone_mode=False))
