"""Images a second of our Loader against its peers, on the same files with the same crops, runs in turn.

Run with `mstl bench loader` or `python -m benchmarks.loader`; README.md says what the figures mean.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from benchmarks import loader_peers, loader_split, machine
from benchmarks.loader_cases import ALL_SIDES, CASES, Case, Sources
from benchmarks.loader_chart import draw
from benchmarks.loader_data import LEAST_CPU_SECONDS, Job
from benchmarks.loader_peers import OURS
from mstl.cli.boundary import exit_with
from shards.errors import MstlError
from shards.files import write_atomic

if TYPE_CHECKING:
    from shards.progress import Progress

PACKAGES = ("mstl", "torch", "torchvision", "nvidia-dali-cuda130", "webdataset", "pillow", "numpy")
RESULTS = Path(__file__).parent / "results"


def measure(case: Case, job: Job, side: str) -> machine.Run:
    """One pass to warm up, then whole passes until `seconds` are over; for a process of its own.

    Whole passes, since a DataLoader starts and ends one with nothing prepared: its queue costs and gives it nothing.
    """
    import torch

    torch.set_num_threads(1)
    passes = case.sides[side](job)
    for views, labels in next(passes):
        assert len(views) == (7 if case.crop == "views" else 1), (side, sorted(views))
        for images in views.values():
            assert images.shape == (len(labels), 3, job.size, job.size), (side, images.shape)
            assert images.dtype == torch.float32, (side, images.dtype)
    count, elapsed, used = 0, 0.0, 0.0
    began, cpu_began = time.perf_counter(), machine.tree_cpu_seconds(os.getpid())
    while elapsed < job.seconds or used < LEAST_CPU_SECONDS:
        count += sum(len(labels) for _, labels in next(passes))
        elapsed, used = time.perf_counter() - began, machine.tree_cpu_seconds(os.getpid()) - cpu_began
    return machine.Run(images=count, seconds=elapsed, cpu_seconds=used)


@click.command("loader", context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.option("--case", "names", multiple=True, type=click.Choice([*CASES, "all"]), default=("area", "area-256"),
              help="What to measure (repeatable).")  # fmt: skip
@click.option("--sides", metavar="NAME,...",
              help=f"Peers to measure beside ours, of: {', '.join(ALL_SIDES[1:])}.  [default: all]")  # fmt: skip
@click.option("--raw", type=click.Path(path_type=Path), metavar="DIR",
              help="Class folders of JPEGs or PNGs; without it pictures are generated.")  # fmt: skip
@click.option("--ct", type=click.Path(path_type=Path), metavar="DIR",
              help="Raw folder of covid19-ct for the case views; without it slices are generated.")  # fmt: skip
@click.option("--images", type=click.IntRange(1), default=1000, help="Images in a pass; files of --raw are repeated.")
@click.option("--size", type=click.IntRange(8), default=224, help="Side of the crops in pixels.")
@click.option("--batch", type=click.IntRange(1), default=64, help="Images in a batch.")
@click.option("--threads", type=click.IntRange(1), default=2, help="DALI threads, and worker processes of each peer.")
@click.option("--seconds", type=click.FloatRange(0, min_open=True), default=10.0, help="Least time of a run.")
@click.option("--repeats", type=click.IntRange(1), default=5, help="Runs of each side.")
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE",
              help="The JSON to write; a chart beside it.  [default: benchmarks/results/loader-TIME.json]")  # fmt: skip
def command(
    names: tuple[str, ...], sides: str | None, raw: Path | None, ct: Path | None, images: int, size: int, batch: int,
    threads: int, seconds: float, repeats: int, out: Path | None,
) -> None:  # fmt: skip
    """Measure our Loader against its peers: same files, same crops, runs in turn.

    \b
    Examples:
      mstl bench loader --raw data/raw/imagenet/train
      mstl bench loader --case all --raw data/raw/imagenet/train --ct data/raw/covid19-ct
      taskset -c 0 mstl bench loader --threads 1                         one core
      mstl bench loader --sides imagefolder,torchvision.io --repeats 3   fewer peers
    """
    from mstl.cli.progress import rich_progress

    if images < max(batch, threads):
        raise MstlError(
            f"--images {images}",
            why=f"a pass must fill a batch of {batch} and feed {threads} workers",
            remedy=f"Give at least {max(batch, threads)}, or a smaller --batch or --threads",
        )
    wanted = _wanted(sides)
    skipped = {side: package for side in wanted if (package := loader_peers.missing(side))}
    for side, package in skipped.items():
        click.echo(f"Leaving out {side}: {package} is not installed (pip install 'mstl[bench]')", err=True)
    wanted = [side for side in wanted if side not in skipped]
    date, hardware = datetime.now(UTC), machine.hardware()
    out = out or RESULTS / f"loader-{date:%Y%m%dT%H%M%SZ}.json"
    machine.require_writable(out)
    sources = Sources(raw=raw, ct=ct, images=images)
    cases: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="mstl-bench-") as folder, rich_progress() as progress:
        root = Path(folder)
        for name in CASES if "all" in names else names:
            case = CASES[name]
            job = Job(
                images=root / (f"{case.crop}-images" if case.resize or case.crop == "views" else "images"),
                originals=root / "images", shards=root / f"{name}-shards", crop=case.crop, size=size, batch=batch,
                threads=threads, seconds=seconds,
            )  # fmt: skip
            cases[name] = _measure_case(case, job, wanted, sources, root, repeats, progress)
    body = {
        "benchmark": "loader",
        "date": date.isoformat(timespec="seconds"),
        "hardware": hardware,
        "versions": machine.versions([*PACKAGES, *(package for side in wanted if (package := _package(side)))]),
        "settings": {"size": size, "batch": batch, "threads": threads, "seconds": seconds, "repeats": repeats},
        "skipped": skipped,
        "cases": cases,
    }
    write_atomic(out, (json.dumps(body, indent=1) + "\n").encode())
    draw(body, OURS, out.with_suffix(".png"))
    _show(body)
    click.echo(f"Wrote {out} and {out.with_suffix('.png').name}")


def _wanted(sides: str | None) -> list[str]:
    """Our side and the peers asked for, in the order they are known by."""
    asked = set(ALL_SIDES[1:] if sides is None else (name.strip() for name in sides.split(",")))
    unknown = sorted(asked - set(ALL_SIDES))
    if unknown:
        raise MstlError(
            f"--sides {sides}", why=f"{unknown[0]!r} is no side", remedy=f"Choose of {', '.join(ALL_SIDES[1:])}"
        )
    return [side for side in ALL_SIDES if side == OURS or side in asked]


def _package(side: str) -> str | None:
    return loader_peers.NEEDS.get(side)


def _measure_case(
    case: Case, job: Job, wanted: Sequence[str], sources: Sources, root: Path, repeats: int, progress: Progress
) -> dict[str, Any]:
    taking_part = tuple(side for side in wanted if side in case.sides)
    about = sources.prepare(case, taking_part, job, root, progress)
    if about["images"] < job.batch:
        raise MstlError(
            f"--batch {job.batch}", why=f"there are {about['images']} images", remedy="Give a smaller --batch"
        )
    runs = machine.alternate(partial(measure, case, job), taking_part, repeats, progress)
    cuts = machine.alternate(partial(loader_split.measure_cut, job), loader_split.CUTS, repeats, progress)
    waiting = loader_split.waiting(job)
    return {
        "task": case.task, "data": about, **machine.summary(runs, OURS),
        "split": {**loader_split.split(cuts), **waiting},
    }  # fmt: skip


def _show(body: Mapping[str, Any]) -> None:
    from rich.console import Console

    settings, console = body["settings"], Console()
    for case in body["cases"].values():
        data, parts = case["data"], case["split"]
        table = machine.rates_table(case, {side: side for side in case["sides"]})
        table.title = (
            f"{case['task']}\n{data['images']} images ({data['distinct_images']} distinct, {data['kind']}), "
            f"{data['mean_bytes'] / 1e3:.0f} kB, to {settings['size']} px"
        )
        table.caption = (
            f"{body['hardware']['cpu']}, {body['hardware']['cores_allowed']} of {body['hardware']['cores']} cores, "
            f"{settings['threads']} threads; medians of {settings['repeats']} runs (least to most)\n"
            f"CPU ms an image of ours: reading {parts['read_cpu_ms']:.2f}, decoding {parts['decode_cpu_ms']:.2f}, "
            f"augmenting {parts['augment_cpu_ms']:.2f}; a consumer that computes {loader_split.IDLE_SHARE} times as "
            f"long as a batch takes waits {parts['wait_share_computing']:.0%} of the time"
        )
        console.print(table)


if __name__ == "__main__":
    exit_with(lambda: command.main(standalone_mode=False))
