"""A shard set of fixed bytes, for tests of moving it."""

from __future__ import annotations

import hashlib
from pathlib import Path

from shards.schema import Manifest, Shard


def write_set(folder: Path, *, fill: bytes = b"t", tar_bytes: int = 1000) -> Manifest:
    """A shard set of two train tars and one of val, its tars being any bytes."""
    splits: dict[str, tuple[Shard, ...]] = {"train": (), "val": ()}
    for number, (split, name) in enumerate((("train", "000000"), ("train", "000001"), ("val", "000000"))):
        tar = fill * tar_bytes + b"%d" % number
        index = b"v1.2 2\n" + b"".join(b"png 512 9 %b%d%d.png\n" % (fill, number, sample) for sample in range(2))
        path = folder / split / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".tar").write_bytes(tar)
        path.with_suffix(".idx").write_bytes(index)
        splits[split] += (
            Shard(
                path=f"{split}/{name}.tar",
                index=f"{split}/{name}.idx",
                samples=2,
                first_id=2 * number,
                bytes=len(tar),
                sha256=hashlib.sha256(tar).hexdigest(),
                index_sha256=hashlib.sha256(index).hexdigest(),
            ),
        )
    manifest = Manifest(
        source="test", modality="ct", classes=("a", "b"), splits=splits, options={}, seed=0, tool_version="0",
        refused=0, duplicates=0, titles={}, class_counts={"train": (4, 0), "val": (2, 0)},
    )  # fmt: skip
    manifest.save(folder)
    (folder / "quarantine.jsonl").write_text("")
    return manifest
