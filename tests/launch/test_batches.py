"""Splitting a batch: every row in one part, in order, with all that belongs to it."""

from __future__ import annotations

import pytest
import torch

from launch.batches import split
from pipelines.batch import Batch


def batch(images: int, *, boxes: bool) -> Batch:
    views = {name: torch.randn(images, 3, 4, 4).contiguous(memory_format=torch.channels_last) for name in ("q", "k")}
    return Batch(
        views=views,
        labels=torch.arange(images) % 2,
        sample_ids=torch.arange(images) + 100,
        boxes=torch.rand(images, 4) if boxes else None,
        located=torch.arange(images) % 3 == 0 if boxes else None,
    )


@pytest.mark.parametrize(
    ("images", "parts", "sizes"),
    [(8, 1, [8]), (8, 2, [4, 4]), (7, 3, [3, 2, 2]), (7, 4, [3, 2, 2]), (3, 4, [3]), (1, 2, [1]), (0, 2, [0])],
)
@pytest.mark.parametrize("boxes", [True, False])
def test_every_row_is_in_one_part(images: int, parts: int, sizes: list[int], boxes: bool) -> None:
    whole = batch(images, boxes=boxes)
    found = split(whole, parts)
    assert [len(part) for part in found] == sizes
    for name in ("labels", "sample_ids", "boxes", "located"):
        columns = [getattr(part, name) for part in found]
        if getattr(whole, name) is None:
            assert columns == [None] * len(found)
        else:
            assert torch.equal(torch.cat(columns), getattr(whole, name))
    for name, view in whole.views.items():
        assert torch.equal(torch.cat([part.views[name] for part in found]), view)
        for part in found:
            assert part.views[name].is_contiguous(memory_format=torch.channels_last)
