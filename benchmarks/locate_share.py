"""What finding the lungs costs: CPU time of the SSTL-M graph as it is, and with the box given, runs in turn.

Run with `mstl bench locate` or `python -m benchmarks.locate_share`. Every run is a fresh process; only its CPU time
counts, since that is what neighbours on the machine change least.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import click

from benchmarks import machine
from benchmarks.loader_cases import CASES, Sources
from benchmarks.loader_data import Job, lung_boxes
from benchmarks.loader_split import measure_cut
from mstl.cli.boundary import exit_with
from shards.errors import MstlError
from shards.files import write_atomic

if TYPE_CHECKING:
    from nvidia.dali.data_node import DataNode

PACKAGES = ("mstl", "torch", "nvidia-dali-cuda130", "numpy")
RESULTS = Path(__file__).parent / "results"
SIDES = ("whole", "box given")
"""The graph of training, and the same cutting its regions out of one box for all images: the median of theirs."""


def measure(job: Job, box: tuple[float, ...], side: str) -> machine.Run:
    """Whole passes after a warm-up until `job.seconds` are over, for a process of its own."""
    if side == "whole":
        return measure_cut(job, "whole")
    from nvidia.dali import types

    from pipelines import lobes

    def given(grey: DataNode) -> tuple[DataNode, DataNode]:  # noqa: ARG001  # not looked at: that is what is saved
        return types.Constant(list(box), dtype=types.FLOAT), types.Constant([0.0], dtype=types.FLOAT)

    with patch.object(lobes, "locate", given):
        return measure_cut(job, "whole")


def milliseconds(runs: list[machine.Run]) -> list[float]:
    """CPU time of each run, per image."""
    return [1e3 * run.cpu_seconds / run.images for run in runs]


@click.command("locate", context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.option("--ct", type=click.Path(path_type=Path), metavar="DIR",
              help="Raw folder of covid19-ct; without it slices are generated.")  # fmt: skip
@click.option("--images", type=click.IntRange(2), default=400, help="Slices to generate, without --ct.")
@click.option("--size", type=click.IntRange(8), default=224, help="Side of the crops in pixels.")
@click.option("--batch", type=click.IntRange(1), default=64, help="Images in a batch.")
@click.option("--threads", type=click.IntRange(1), default=2, help="DALI threads.")
@click.option("--seconds", type=click.FloatRange(0, min_open=True), default=5.0, help="Least time of a run.")
@click.option("--repeats", type=click.IntRange(1), default=5, help="Runs of each side.")
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE",
              help="The JSON to write.  [default: benchmarks/results/locate-TIME.json]")  # fmt: skip
def command(
    ct: Path | None, images: int, size: int, batch: int, threads: int, seconds: float, repeats: int, out: Path | None
) -> None:
    """Measure which share of SSTL-M's input graph goes into finding the lungs.

    \b
    Examples:
      mstl bench locate --ct data/raw/covid19-ct
      mstl bench locate --threads 1 --repeats 3
    """
    from mstl.cli.progress import rich_progress

    date, hardware = datetime.now(UTC), machine.hardware()
    out = out or RESULTS / f"locate-{date:%Y%m%dT%H%M%SZ}.json"
    machine.require_writable(out)
    with tempfile.TemporaryDirectory(prefix="mstl-bench-") as folder, rich_progress() as progress:
        root = Path(folder)
        job = Job(
            images=root / "images", originals=root / "images", shards=root / "shards", crop="views", size=size,
            batch=batch, threads=threads, seconds=seconds,
        )  # fmt: skip
        about = Sources(raw=None, ct=ct, images=images).prepare(CASES["views"], ("mstl",), job, root, progress)
        if about["images"] < batch:
            raise MstlError(
                f"--batch {batch}", why=f"there are {about['images']} images", remedy="Give a smaller --batch"
            )
        boxes = lung_boxes(job)
        box = tuple(statistics.median(boxes[:, at].tolist()) for at in range(4))
        runs = machine.alternate(partial(measure, job, box), SIDES, repeats, progress)
    body = {
        "benchmark": "locate",
        "date": date.isoformat(timespec="seconds"),
        "hardware": hardware,
        "versions": machine.versions(PACKAGES),
        "settings": {"size": size, "batch": batch, "threads": threads, "seconds": seconds, "repeats": repeats},
        "data": about,
        **summary({side: milliseconds(done) for side, done in runs.items()}),
    }
    write_atomic(out, (json.dumps(body, indent=1) + "\n").encode())
    whole, given = body["median_cpu_ms"].values()
    click.echo(
        f"{whole:.2f} ms of CPU time an image, {given:.2f} with the box given: finding it takes "
        f"{body['share']:.1%} (least of each: {body['share_of_least']:.1%})\nWrote {out}"
    )


def summary(cpu_ms: dict[str, list[float]]) -> dict[str, Any]:
    """Every run, the medians, and the share of the whole that goes when the box is given: of medians, and of leasts."""

    def share(pick: Any) -> float:
        whole, given = (pick(cpu_ms[side]) for side in SIDES)
        return float(1 - given / whole)

    return {
        "cpu_ms": cpu_ms,
        "median_cpu_ms": {side: statistics.median(runs) for side, runs in cpu_ms.items()},
        "share": share(statistics.median),
        "share_of_least": share(min),
    }


if __name__ == "__main__":
    exit_with(lambda: command.main(standalone_mode=False))
