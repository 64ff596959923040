"""SSTL-M's seven views for the loader benchmark: our Loader, and the same work in torchvision's transforms v2.

The peer is given the lung boxes, which our side finds for itself. It resizes the image once for both views, cuts the
regions out of the decoded image, and augments each of the seven on its own: on one grey channel as ours does, or in
colour as the paper's recipe is commonly written, where hue, saturation and grayscale are computed too (and change
nothing in grey images).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from benchmarks.loader_data import Job, boxes_file
from benchmarks.loader_peers import OURS, Epoch, Side, batches, decode_file, ours, recipe

if TYPE_CHECKING:
    from torch import Tensor

    from pipelines.recipe import Inputs


class SevenViews:
    """Map-style dataset of class folders as `export_images` writes them: seven views of an image by name, and a label.

    boxes: [samples, 4] lung boxes by sample id, as fractions of the image. colour: work on three channels.
    """

    def __init__(self, job: Job, boxes: NDArray[np.float32], *, colour: bool) -> None:
        from torchvision.datasets import ImageFolder  # type: ignore[import-untyped]

        self._inputs = recipe(job.crop, job.size)
        self._boxes = boxes
        self._decode = decode_file if colour else _decode_grey
        self._samples = ImageFolder(str(job.images)).samples
        self._view, self._region = (
            _augment(self._inputs, flip=flip, colour=colour) for flip in (self._inputs.flip, 0.0)
        )

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> tuple[dict[str, Tensor], int]:
        from pipelines.lobes import TEMPLATE

        path, label = self._samples[index]
        image = self._decode(path)
        box = self._boxes[int(Path(path).stem)]
        whole = _resized(image, self._inputs.resize)
        views = {name: self._view(whole) for name in ("q", "k")}
        for name, place in TEMPLATE.items():
            views[name] = self._region(_resized(_cut(image, box, place), self._inputs.resize))
        return views, label


def torchvision_v2(job: Job, *, colour: bool = False) -> Iterator[Epoch]:
    """`SevenViews` in a torch DataLoader; torchvision.io decodes, v2 resizes uint8 tensors (vectorised)."""
    return batches(SevenViews(job, np.load(boxes_file(job)), colour=colour), job)


SIDES: Mapping[str, Side] = {
    OURS: ours,
    "torchvision v2": torchvision_v2,
    "torchvision v2 in colour": partial(torchvision_v2, colour=True),
}


def _decode_grey(path: str) -> Tensor:
    import torch
    from torchvision.io import ImageReadMode, decode_image  # type: ignore[import-untyped]

    data = torch.frombuffer(bytearray(Path(path).read_bytes()), dtype=torch.uint8)
    image: Tensor = decode_image(data, mode=ImageReadMode.GRAY)
    return image


def _resized(image: Tensor, side: int) -> Tensor:
    from torchvision.transforms.v2.functional import resize  # type: ignore[import-untyped]

    done: Tensor = resize(image, [side, side], antialias=True)
    return done


def _cut(image: Tensor, box: NDArray[np.float32], place: tuple[float, float, float, float]) -> Tensor:
    """The part of an image at `place` (centre and size as fractions) of a box, to whole pixels, one at least."""
    height, width = image.shape[-2:]
    x, y, w, h = place
    box_width, box_height = box[2] - box[0], box[3] - box[1]
    left, right = (round(float(box[0] + at * box_width) * width) for at in (x - w / 2, x + w / 2))
    top, bottom = (round(float(box[1] + at * box_height) * height) for at in (y - h / 2, y + h / 2))
    left, top = min(left, width - 1), min(top, height - 1)
    return image[..., top : max(bottom, top + 1), left : max(right, left + 1)]


def _augment(inputs: Inputs, *, flip: float, colour: bool) -> Callable[[Tensor], Tensor]:
    import torch
    from torchvision.transforms import v2  # type: ignore[import-untyped]

    strengths = (inputs.brightness, inputs.contrast, inputs.saturation, inputs.hue)
    jitter = v2.RandomApply([v2.ColorJitter(*(strengths if colour else strengths[:2]))], p=inputs.jitter)
    steps = [v2.RandomCrop(inputs.image_size), v2.RandomHorizontalFlip(flip), jitter,
             v2.RandomGrayscale(inputs.grayscale if colour else 0.0), v2.ToDtype(torch.float32, scale=True),
             _three_channels, v2.Normalize(inputs.mean, inputs.std)]  # fmt: skip
    composed: Callable[[Tensor], Tensor] = v2.Compose(steps)
    return composed


def _three_channels(image: Tensor) -> Tensor:
    return image.expand(3, -1, -1)
