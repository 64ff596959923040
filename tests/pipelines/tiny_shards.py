"""Small shard sets written without the writer, so that the loader is tested on its own."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from shards.schema import Manifest, Shard

CLASSES = ("a", "b", "c")


@dataclass(frozen=True)
class Picture:
    """One image as it goes into a tar: encoded bytes and their extension."""

    data: bytes
    extension: str


def encode(pixels: np.ndarray, extension: str = "png", mode: str | None = None) -> Picture:
    """Encode an array; JPEG in full colour resolution."""
    image = Image.fromarray(pixels, mode=mode) if mode else Image.fromarray(pixels)
    buffer = io.BytesIO()
    if extension == "jpg":
        image.save(buffer, "JPEG", quality=95, subsampling=0)
    else:
        image.save(buffer, "PNG")
    return Picture(buffer.getvalue(), extension)


def decode_with_pillow(picture: Picture) -> np.ndarray:
    """The HWC RGB array Pillow sees; an alpha channel is dropped, not blended."""
    return np.asarray(Image.open(io.BytesIO(picture.data)).convert("RGB"))


def noise(count: int, side: int = 24) -> list[Picture]:
    """Distinct small images of different shapes."""
    random = np.random.default_rng(7)
    sizes = random.integers(side, 2 * side, (count, 2))
    return [encode(random.integers(0, 256, (h, w, 3), dtype=np.uint8)) for h, w in sizes.tolist()]


def write_shard_set(out: Path, pictures: Sequence[Picture], per_shard: int, split: str = "train") -> Path:
    """Write tars, DALI indexes and the manifest; sample i has label i % 3."""
    (out / split).mkdir(parents=True)
    shards = []
    for number, first in enumerate(range(0, len(pictures), per_shard)):
        ids = range(first, min(first + per_shard, len(pictures)))
        shards.append(_write_shard(out, f"{split}/{number:06d}", ids, pictures))
    Manifest(
        source="test", modality="ct", classes=CLASSES, splits={split: tuple(shards)},
        options={}, seed=0, tool_version="0", refused=0, duplicates=0, titles={},
        class_counts={split: tuple(len(range(c, len(pictures), len(CLASSES))) for c in range(len(CLASSES)))},
    ).save(out)  # fmt: skip
    return out


def _write_shard(out: Path, stem: str, ids: range, pictures: Sequence[Picture]) -> Shard:
    tar_path, index_path = out / f"{stem}.tar", out / f"{stem}.idx"
    with tarfile.open(tar_path, "w") as tar:
        for i in ids:
            label = i % len(CLASSES)
            parts = {
                pictures[i].extension: pictures[i].data,
                "cls": str(label).encode(),
                "json": json.dumps({"sample_id": i}).encode(),
                "i64": struct.pack("<qq", i, label),
            }
            for extension, data in parts.items():
                member = tarfile.TarInfo(f"s{i:05d}.{extension}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    lines: dict[str, list[str]] = {}
    with tarfile.open(tar_path) as tar:
        for member in tar:
            key, extension = member.name.split(".")
            lines.setdefault(key, []).append(f"{extension} {member.offset_data} {member.size} {member.name}")
    index_path.write_text(f"v1.2 {len(lines)}\n" + "".join(" ".join(line) + "\n" for line in lines.values()))
    return Shard(
        path=f"{stem}.tar", index=f"{stem}.idx", samples=len(ids), first_id=ids.start,
        bytes=tar_path.stat().st_size, sha256=hashlib.sha256(tar_path.read_bytes()).hexdigest(),
        index_sha256=hashlib.sha256(index_path.read_bytes()).hexdigest(),
    )  # fmt: skip
