"""The real reader follows the plan sample by sample at every chunk size, also where chunks straddle tars."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from nvidia.dali import pipeline_def

from pipelines.inputs import read
from pipelines.order import open_split
from shards.plan import Plan
from shards.schema import load_manifest


@pytest.mark.parametrize("chunk", [1, 3, 8])
def test_the_reader_gives_the_samples_of_the_plan_in_its_order(chunk: int, noise_shards: Path, tmp_path: Path) -> None:
    """23 samples in tars of 5, 5, 5, 5 and 3, on two ranks over three epochs."""
    manifest = load_manifest(noise_shards)
    split = open_split(noise_shards, manifest, "train")
    plan = Plan(
        samples=23, world=2, batch=4, epochs=3, seed=1, shuffle=True, remainder="keep", chunk=chunk
    )  # fmt: skip

    @pipeline_def
    def graph(tars: list[str], indexes: list[str]):
        return read(tars, indexes)

    for rank in range(2):
        folder = tmp_path / str(rank)
        folder.mkdir()
        positions = np.concatenate([plan.filled(rank, epoch) for epoch in range(3)])
        tars, indexes = split.write(positions, folder)
        changes = 1 + int((np.diff(positions // 5) != 0).sum())
        assert len(tars) == len(indexes) == changes  # neighbours of the same tar share a pair
        pipeline = graph(tars, indexes, batch_size=plan.rank_batch, num_threads=1, device_id=None)
        pipeline.build()
        seen = [
            pipeline.run()[1].as_array()[: plan.valid(step), 0]
            for _ in range(3)
            for step in range(plan.steps_per_epoch)
        ]
        expected = [plan.rank_step(rank, epoch, step) for epoch in range(3) for step in range(plan.steps_per_epoch)]
        assert [ids.tolist() for ids in seen] == [split.ids(row).tolist() for row in expected]
