"""A Loader over all splits: for learning without labels."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from pipelines.loader import Loader
from pipelines.recipe import evaluation
from shards.schema import MANIFEST_NAME, load_manifest


def test_every_image_of_every_split_comes_once_an_epoch(noise_shards: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(noise_shards, tmp_path / "set")
    manifest = load_manifest(folder)
    one, two, three, four, five = manifest.shards("train")
    counts = {"train": (15, 0, 0), "val": (5, 0, 0), "test": (3, 0, 0)}
    (folder / MANIFEST_NAME).unlink()
    replace(manifest, splits={"test": (five,), "train": (one, two, three), "val": (four,)}, class_counts=counts).save(
        folder
    )
    loader = Loader(
        evaluation(32), folder, "all",
        rank=0, world=1, batch=8, epochs=2, device="cpu", seed=3, shuffle=True, remainder="keep",
    )  # fmt: skip
    for _ in range(2):
        batches = list(loader)
        assert sorted(i for batch in batches for i in batch.sample_ids.tolist()) == list(range(23))
        assert all(batch.labels.tolist() == [i % 3 for i in batch.sample_ids.tolist()] for batch in batches)
