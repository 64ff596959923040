"""Images a second of our Loader against torchvision's ImageFolder and webdataset, on the same files.

Run with `python -m benchmarks.loader`; README.md says what the figures mean.
"""

from __future__ import annotations

import io
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from benchmarks import machine
from mstl.cli.boundary import exit_with
from shards.errors import MstlError
from shards.files import write_atomic

if TYPE_CHECKING:
    from torch import Tensor

    from shards.progress import Progress

Epoch = Iterator[tuple["Tensor", "Tensor"]]
"""Batches of one pass: images [B, 3, size, size] float32, normalised; labels [B] int64."""
OURS = "mstl"
SIDE_PACKAGES = {OURS: "mstl", "imagefolder": "torchvision", "webdataset": "webdataset"}
TASK = "RandomResizedCrop (area .08 to 1, ratio 3/4 to 4/3, bilinear, antialiased), flip .5, normalised float32 batches"
PACKAGES = ("mstl", "torch", "torchvision", "nvidia-dali-cuda130", "webdataset", "pillow", "numpy")
LEAST_CPU_SECONDS = 0.5  # of a run: the system counts in ticks of 10 ms
RESULTS = Path(__file__).parent / "results"
_SUFFIXES = (".jpg", ".jpeg", ".png")  # what shards hold byte for byte
_CLASS_FOLDERS = "Name a folder of class folders, such as train/ of ImageNet"


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What every side is given: class folders, the shard set made from them, and how to read them."""

    images: Path
    shards: Path
    size: int
    batch: int
    threads: int
    seconds: float


def ours(job: Job) -> Iterator[Epoch]:
    """The Loader, on the CPU, with `threads` DALI threads."""
    from pipelines.loader import Loader
    from pipelines.recipe import supervised_natural

    loader = Loader(
        supervised_natural(job.size, random_resized_crop=True), job.shards, "train", rank=0, world=1, batch=job.batch,
        epochs=sys.maxsize, device="cpu", seed=0, shuffle=True, remainder="drop", threads=job.threads,
    )  # fmt: skip
    while True:
        yield ((batch.views["x"], batch.labels) for batch in loader)


def imagefolder(job: Job) -> Iterator[Epoch]:
    """torchvision's ImageFolder in a torch DataLoader with `threads` worker processes; decoding by Pillow."""
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder  # type: ignore[import-untyped]

    loader = DataLoader(
        ImageFolder(str(job.images), _transform(job.size)), batch_size=job.batch, shuffle=True, drop_last=True,
        num_workers=job.threads, persistent_workers=True, multiprocessing_context="fork",
    )  # fmt: skip
    while True:
        yield iter(loader)


def webdataset(job: Job) -> Iterator[Epoch]:
    """webdataset on our tars with torchvision's transforms, batches made in `threads` worker processes.

    Only what is needed is decoded, and batches are collated into shared memory: as fast as it is commonly written.
    """
    import webdataset as wds
    from PIL import Image
    from torch.utils.data import DataLoader, default_collate

    transform = _transform(job.size)

    def sample(parts: tuple[bytes, bytes]) -> tuple[Tensor, int]:
        with Image.open(io.BytesIO(parts[0])) as image:
            return transform(image.convert("RGB")), int(parts[1])

    tars = sorted(str(path) for path in (job.shards / "train").glob("*.tar"))
    samples = wds.WebDataset(tars, shardshuffle=len(tars)).shuffle(1000).to_tuple("jpg;png", "cls").map(sample)
    batches = samples.batched(job.batch, collation_fn=default_collate, partial=True)
    loader = DataLoader(
        batches, batch_size=None, num_workers=job.threads, persistent_workers=True, multiprocessing_context="fork"
    )
    while True:
        yield iter(loader)


SIDES: Mapping[str, Callable[[Job], Iterator[Epoch]]] = {
    OURS: ours,
    "imagefolder": imagefolder,
    "webdataset": webdataset,
}


def _transform(size: int) -> Callable[[Any], Tensor]:
    from torchvision import transforms  # type: ignore[import-untyped]

    from pipelines.recipe import IMAGENET_MEAN, IMAGENET_STD

    steps = [
        transforms.RandomResizedCrop(size, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), antialias=True),
        transforms.RandomHorizontalFlip(0.5),
        transforms.ToTensor(),
        transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
    ]
    composed: Callable[[Any], Tensor] = transforms.Compose(steps)
    return composed


def measure(job: Job, side: str) -> machine.Run:
    """One pass to warm up, then whole passes until `seconds` are over; for a process of its own.

    Whole passes, since a DataLoader starts and ends one with nothing prepared: its queue costs and gives it nothing.
    """
    import torch

    torch.set_num_threads(1)
    passes = SIDES[side](job)
    for images, labels in next(passes):
        assert images.shape == (len(labels), 3, job.size, job.size), (side, images.shape)
        assert images.dtype == torch.float32, (side, images.dtype)
    count, elapsed, used = 0, 0.0, 0.0
    began, cpu_began = time.perf_counter(), machine.tree_cpu_seconds(os.getpid())
    while elapsed < job.seconds or used < LEAST_CPU_SECONDS:
        count += sum(len(labels) for _, labels in next(passes))
        elapsed, used = time.perf_counter() - began, machine.tree_cpu_seconds(os.getpid()) - cpu_began
    return machine.Run(images=count, seconds=elapsed, cpu_seconds=used)


def draw_images(images: int, folder: Path, progress: Progress) -> None:
    """Generated pictures as class folders: those of `mstl sample` with seed 0, class after class in turn."""
    from shards.sample import natural
    from shards.sample.paint import encode

    progress.start(images, "drawing images")
    for i in range(images):
        number, label = divmod(i, len(natural.CLASSES))
        wnid = natural.CLASSES[label][0]
        (folder / wnid).mkdir(parents=True, exist_ok=True)
        (folder / wnid / f"{wnid}_{number + 1}.JPEG").write_bytes(encode(natural.draw(0, label, (0, number)), "JPEG"))
        progress.advance()


def link_images(raw: Path, images: int, folder: Path) -> None:
    """JPEG and PNG files of class folders, in random order (always the same), repeated up to `images`, as links."""
    from shards.sources.listing import class_folders, image_files

    try:
        files = [path for part in class_folders(raw) for path in image_files(part) if path.suffix.lower() in _SUFFIXES]
    except OSError as error:
        raise MstlError(f"--raw {raw}", why=f"it cannot be read ({error.strerror})", remedy=_CLASS_FOLDERS) from error
    if not files:
        raise MstlError(f"--raw {raw}", why="no folder in it holds a JPEG or PNG", remedy=_CLASS_FOLDERS)
    random.Random(0).shuffle(files)
    for i, path in enumerate(islice(cycle(files), images)):
        (folder / path.parent.name).mkdir(parents=True, exist_ok=True)
        (folder / path.parent.name / f"{i:06d}_{path.name}").symlink_to(path.resolve())


def write_set(job: Job, images: int, progress: Progress) -> dict[str, Any]:
    """Convert the class folders to a shard set, several tars for each thread, and describe the images."""
    from shards.read import read_records
    from shards.sources import read_source
    from shards.writer import WriteOptions, write_shards

    per_shard = -(-images // (4 * job.threads))
    options = WriteOptions(samples_per_shard=per_shard, val_fraction=0, max_bad=0, workers=job.threads)
    manifest = write_shards(read_source("folder", job.images), job.shards, options, progress)
    records = read_records(job.shards, "train")
    return {
        "images": len(records),
        "distinct_images": len({record.sha256 for record in records}),
        "classes": len(manifest.classes),
        "mean_bytes": round(statistics.fmean(path.stat().st_size for path in job.images.glob("*/*"))),
        "mean_pixels": round(statistics.fmean(record.width * record.height for record in records)),
        "shards": len(manifest.shards("train")),
        "shard_set_digest": manifest.digest(),
    }


@click.command(context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.option("--raw", type=click.Path(path_type=Path), metavar="DIR",
              help="Class folders of JPEGs or PNGs; without it pictures are generated.")  # fmt: skip
@click.option("--images", type=click.IntRange(1), default=1000, help="Images in a pass; files of --raw are repeated.")
@click.option("--size", type=click.IntRange(8), default=224, help="Side of the crops in pixels.")
@click.option("--batch", type=click.IntRange(1), default=64, help="Images in a batch.")
@click.option("--threads", type=click.IntRange(1), default=2, help="DALI threads, and worker processes of each peer.")
@click.option("--seconds", type=click.FloatRange(0, min_open=True), default=10.0, help="Least time of a run.")
@click.option("--repeats", type=click.IntRange(1), default=5, help="Runs of each side.")
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE",
              help="The JSON to write.  [default: benchmarks/results/loader-TIME.json]")  # fmt: skip
def command(
    raw: Path | None, images: int, size: int, batch: int, threads: int, seconds: float, repeats: int, out: Path | None
) -> None:
    """Measure our Loader against ImageFolder and webdataset: same files, same crops, runs in turn.

    \b
    Examples:
      python -m benchmarks.loader --raw data/raw/imagenet/train
      taskset -c 0 python -m benchmarks.loader --threads 1      one core
    """
    from mstl.cli.progress import rich_progress

    if images < max(batch, threads):
        raise MstlError(
            f"--images {images}",
            why=f"a pass must fill a batch of {batch} and feed {threads} workers",
            remedy=f"Give at least {max(batch, threads)}, or a smaller --batch or --threads",
        )
    date, hardware = datetime.now(UTC), machine.hardware()
    out = out or RESULTS / f"loader-{date:%Y%m%dT%H%M%SZ}.json"
    machine.require_writable(out)
    with tempfile.TemporaryDirectory(prefix="mstl-bench-") as name, rich_progress() as progress:
        root = Path(name)
        job = Job(
            images=root / "images", shards=root / "shards", size=size, batch=batch, threads=threads, seconds=seconds
        )
        if raw is None:
            draw_images(images, job.images, progress)
        else:
            link_images(raw, images, job.images)
        body: dict[str, Any] = {
            "benchmark": "loader",
            "date": date.isoformat(timespec="seconds"),
            "hardware": hardware,
            "versions": machine.versions(PACKAGES),
            "data": {"kind": "generated" if raw is None else "files", **write_set(job, images, progress)},
            "task": TASK,
            "settings": {"size": size, "batch": batch, "threads": threads, "seconds": seconds, "repeats": repeats},
        }
        body |= machine.summary(machine.alternate(partial(measure, job), tuple(SIDES), repeats, progress), OURS)
    write_atomic(out, (json.dumps(body, indent=1) + "\n").encode())
    _show(body)
    click.echo(f"Wrote {out}")


def _show(body: Mapping[str, Any]) -> None:
    from rich.console import Console

    data, settings, used = body["data"], body["settings"], body["versions"]
    table = machine.rates_table(
        body, {side: f"{side} ({package} {used[package]})" for side, package in SIDE_PACKAGES.items()}
    )
    table.title = (
        f"{data['images']} images ({data['distinct_images']} distinct, {data['kind']}), "
        f"{data['mean_bytes'] / 1e3:.0f} kB and {data['mean_pixels'] / 1e6:.2f} megapixels, to {settings['size']} px"
    )
    table.caption = (
        f"{body['hardware']['cpu']}, {body['hardware']['cores_allowed']} of {body['hardware']['cores']} cores, "
        f"{settings['threads']} threads; medians of {settings['repeats']} runs (least to most)"
    )
    Console().print(table)


if __name__ == "__main__":
    exit_with(lambda: command.main(standalone_mode=False))
