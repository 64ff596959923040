"""The sides of the loader benchmark for one view: our Loader and its peers, as fast as each is commonly written."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.loader_data import Crop, Job

if TYPE_CHECKING:
    from torch import Tensor

    from pipelines.recipe import Inputs

Epoch = Iterator[tuple[Mapping[str, "Tensor"], "Tensor"]]
"""Batches of one pass: views by name, [B, 3, size, size] float32, normalised; labels [B] int64."""
Side = Callable[[Job], Iterator[Epoch]]
OURS = "mstl"
ON_ORIGINALS = "imagefolder on originals"
"""What re-encoding buys: the same peer on the files as they were."""
NEEDS = {"litdata": "litdata"}
"""Side → the package it needs beyond what MSTL itself does."""
_AREA = {"scale": (0.08, 1.0), "ratio": (3 / 4, 4 / 3), "antialias": True}


def recipe(crop: Crop, size: int) -> Inputs:
    """The recipe that our side runs, and whose work the peers do."""
    from pipelines.recipe import multi_view_ct, supervised_natural

    return multi_view_ct(size) if crop == "views" else supervised_natural(size, random_resized_crop=crop == "area")


def ours(job: Job) -> Iterator[Epoch]:
    """The Loader, on the CPU, with `threads` DALI threads."""
    from pipelines.loader import Loader

    loader = Loader(
        recipe(job.crop, job.size), job.shards, "train", rank=0, world=1, batch=job.batch, epochs=sys.maxsize,
        device="cpu", seed=0, shuffle=True, remainder="drop", threads=job.threads,
    )  # fmt: skip
    while True:
        yield ((batch.views, batch.labels) for batch in loader)


def imagefolder(job: Job, *, originals: bool = False) -> Iterator[Epoch]:
    """torchvision's ImageFolder and transforms in a torch DataLoader; decoding and resizing by Pillow."""
    from torchvision.datasets import ImageFolder  # type: ignore[import-untyped]

    return batches(ImageFolder(str(job.originals if originals else job.images), _pillow_transform(job)), job)


def torchvision_io(job: Job) -> Iterator[Epoch]:
    """The same with torchvision.io's decoder and transforms v2 on uint8 tensors: vectorised resizing."""
    from torchvision.datasets import ImageFolder

    return batches(ImageFolder(str(job.images), tensor_transform(job), loader=decode_file), job)


def webdataset(job: Job) -> Iterator[Epoch]:
    """webdataset on our tars, decoded and transformed as in `torchvision_io`, batches made in the workers.

    Only what is needed is decoded, and batches are collated into shared memory.
    """
    import webdataset as wds
    from torch.utils.data import DataLoader, default_collate

    transform = tensor_transform(job)

    def sample(parts: tuple[bytes, bytes]) -> tuple[Tensor, int]:
        return transform(decode_bytes(parts[0])), int(parts[1])

    tars = sorted(str(path) for path in (job.shards / "train").glob("*.tar"))
    samples = wds.WebDataset(tars, shardshuffle=len(tars)).shuffle(1000).to_tuple("jpg;png", "cls").map(sample)
    batched = samples.batched(job.batch, collation_fn=default_collate, partial=True)
    return _passes(DataLoader(batched, batch_size=None, **_workers(job)))


def litdata(job: Job) -> Iterator[Epoch]:
    """litdata on its own format with the same bytes, decoded and transformed as in `torchvision_io`."""
    from litdata import StreamingDataLoader, StreamingDataset  # type: ignore[import-untyped]

    transform = tensor_transform(job)

    def sample(stored: Mapping[str, Any]) -> tuple[Tensor, int]:
        return transform(decode_bytes(stored["image"])), stored["label"]

    dataset = StreamingDataset(str(litdata_folder(job)), shuffle=True, transform=sample)
    return _passes(
        StreamingDataLoader(dataset, batch_size=job.batch, shuffle=True, drop_last=True, **_workers(job))
    )  # fmt: skip


SIDES: Mapping[str, Side] = {
    OURS: ours,
    "imagefolder": imagefolder,
    ON_ORIGINALS: partial(imagefolder, originals=True),
    "torchvision.io": torchvision_io,
    "webdataset": webdataset,
    "litdata": litdata,
}


def missing(side: str) -> str | None:
    """The package that this side needs and that is not installed."""
    needed = NEEDS.get(side)
    return needed if needed and find_spec(needed) is None else None


def litdata_folder(job: Job) -> Path:
    """Where litdata's copy of a job's images lies."""
    return job.images.parent / f"{job.images.name}-litdata"


def write_litdata(job: Job) -> None:
    """The class folders of a job in litdata's format, encoded bytes as they are; once for several jobs."""
    from litdata import optimize
    from torchvision.datasets import ImageFolder

    if not litdata_folder(job).exists():
        optimize(
            _litdata_item, ImageFolder(str(job.images)).samples, str(litdata_folder(job)), chunk_bytes="16MB",
            num_workers=1, verbose=False, start_method="spawn",
        )  # fmt: skip


def _litdata_item(sample: tuple[str, int]) -> dict[str, Any]:
    return {"image": Path(sample[0]).read_bytes(), "label": sample[1]}


def batches(dataset: Any, job: Job) -> Iterator[Epoch]:
    """Shuffled batches of a dataset from a torch DataLoader, pass after pass."""
    from torch.utils.data import DataLoader

    return _passes(DataLoader(dataset, batch_size=job.batch, shuffle=True, drop_last=True, **_workers(job)))


def _workers(job: Job) -> dict[str, Any]:
    return {"num_workers": job.threads, "persistent_workers": True, "multiprocessing_context": "fork"}


def _passes(loader: Any) -> Iterator[Epoch]:
    while True:
        yield ((images if isinstance(images, dict) else {"x": images}, labels) for images, labels in loader)


def decode_bytes(data: bytes) -> Tensor:
    """[3, H, W] uint8 of an encoded image, by torchvision.io."""
    import torch
    from torchvision.io import ImageReadMode, decode_image  # type: ignore[import-untyped]

    image: Tensor = decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)
    return image


def decode_file(path: str) -> Tensor:
    """[3, H, W] uint8 of an image file."""
    return decode_bytes(Path(path).read_bytes())


def _pillow_transform(job: Job) -> Callable[[Any], Tensor]:
    from torchvision import transforms  # type: ignore[import-untyped]

    inputs = recipe(job.crop, job.size)
    resize = transforms.Resize((inputs.resize, inputs.resize), antialias=True)
    crop = [transforms.RandomResizedCrop(job.size, **_AREA)] if job.crop == "area" else [
        resize, transforms.RandomCrop(job.size)
    ]  # fmt: skip
    flip, last = transforms.RandomHorizontalFlip(inputs.flip), transforms.Normalize(inputs.mean, inputs.std)
    composed: Callable[[Any], Tensor] = transforms.Compose([*crop, flip, transforms.ToTensor(), last])
    return composed


def tensor_transform(job: Job) -> Callable[[Tensor], Tensor]:
    """The work of our recipe in transforms v2, from a uint8 image to a normalised float one."""
    import torch
    from torchvision.transforms import v2  # type: ignore[import-untyped]

    inputs = recipe(job.crop, job.size)
    resize = v2.Resize((inputs.resize, inputs.resize), antialias=True)
    crop = [v2.RandomResizedCrop(job.size, **_AREA)] if job.crop == "area" else [resize, v2.RandomCrop(job.size)]
    last = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(inputs.mean, inputs.std)]
    composed: Callable[[Tensor], Tensor] = v2.Compose([*crop, v2.RandomHorizontalFlip(inputs.flip), *last])
    return composed
