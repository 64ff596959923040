"""Small raw data sets for the tests of this folder."""

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from shards.sources import Blob, Item, Listing


def pixels(seed: int, size: tuple[int, int] = (12, 9), channels: int = 3) -> np.ndarray:
    """Random uint8 pixels of a size (width, height)."""
    shape = (size[1], size[0], channels) if channels > 1 else (size[1], size[0])
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(seed: int, kind: str = "PNG", size: tuple[int, int] = (12, 9), channels: int = 3, **options) -> bytes:
    """A small image file, different for every seed."""
    out = io.BytesIO()
    Image.fromarray(pixels(seed, size, channels)).save(out, kind, **options)
    return out.getvalue()


def put(path: Path, data: bytes) -> Path:
    """Write a file, making its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def tar_of(files: dict[str, bytes]) -> bytes:
    """An uncompressed tar."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def zip_of(files: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


def listing_of(root: Path, images: dict[str, bytes], **changes) -> Listing:
    """A listing of the images: name → bytes, names like train/0/name.png or train/0/name@patient.png."""
    items = []
    for name, data in images.items():
        path = put(root / name, data)
        split, label, _ = name.split("/")
        stem, _, patient = path.stem.partition("@")
        items.append(
            Item(key=stem, split=split, label=int(label), patient=patient or None,
                 blob=Blob(str(path), len(data)), origin=name)
        )  # fmt: skip
    fields = {
        "source": "toy",
        "modality": "ct",
        "classes": ("no", "yes"),
        "items": tuple(items),
        "expected": None,
        "notes": (),
    }
    return Listing(**{**fields, **changes})


def toy_images(train: int = 23, val: int = 7, test: int = 5) -> dict[str, bytes]:
    """Named images of two classes, PNG and JPEG, for listing_of."""
    return {
        f"{split}/{i % 2}/{split}_{i}@p{i // 2}.{'jpg' if i % 3 == 0 else 'png'}": encoded(
            100 * at + i, "JPEG" if i % 3 == 0 else "PNG", (10 + i % 4, 9)
        )
        for at, (split, count) in enumerate((("train", train), ("val", val), ("test", test)))
        for i in range(count)
    }


def content(folder):
    """Relative path → bytes of every file in a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def members(path):
    """The members of a tar with their data."""
    with tarfile.open(path, "r:") as tar:
        return [(member, tar.extractfile(member).read()) for member in tar]
