"""Generated pictures that differ like photographs do, and copies of them that are the same picture all the same."""

import io
from collections.abc import Iterator

import numpy as np
from PIL import Image


def picture(seed: int, size: tuple[int, int] = (160, 120)) -> Image.Image:
    """A grey picture of soft shapes in three sizes; every seed another one."""
    random = np.random.default_rng(seed)
    grey = np.zeros((size[1], size[0]))
    for side, strength in ((4, 60), (10, 40), (30, 20)):
        coarse = Image.fromarray(random.normal(0, strength, (side, side)).astype(np.float32))
        grey += np.asarray(coarse.resize(size, Image.Resampling.BICUBIC))
    return Image.fromarray(np.clip(grey + 110, 0, 225).astype(np.uint8))


def saved(image: Image.Image, kind: str = "PNG", **options: int) -> bytes:
    """The bytes of an image file."""
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def copies(image: Image.Image) -> Iterator[tuple[str, bytes]]:
    """Name and file of the same picture, changed as pictures are on their way from one data set to the next."""
    width, height = image.size
    half = image.resize((width // 2, height // 2), Image.Resampling.BICUBIC)
    cropped = image.crop((1, 1, width - 1, height - 1))
    yield "jpeg of quality 60", saved(image, "JPEG", quality=60)
    yield "half the size", saved(half)
    yield "brighter", saved(image.point(lambda value: min(255, value + 30)))
    yield "less contrast", saved(image.point(lambda value: value * 7 // 10 + 30))
    yield "without a border pixel", saved(cropped)
    yield "without a column", saved(image.crop((0, 0, width - 1, height)))
    yield "in colour", saved(image.convert("RGB"))
    changed = cropped.resize((width // 2, height // 2)).point(lambda value: min(255, value + 30))
    yield "all together", saved(changed, "JPEG", quality=60)
