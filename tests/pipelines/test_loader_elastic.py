"""The Loader on another number of ranks, with images that cannot be read, and its output types."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_shards import Picture, encode, noise

from pipelines import windows
from pipelines.batch import Batch
from pipelines.loader import Loader
from pipelines.recipe import Inputs, multi_view_ct, supervised_cxr
from shards.errors import MstlError

RAW = Inputs(name="raw", image_size=32, resize=32, crop="centre", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
BAD = Picture(b"<html>not found</html>", "png")


def load(shards: Path, inputs: Inputs = RAW, **changes: Any) -> Loader:
    settings = {
        "rank": 0, "world": 1, "batch": 12, "epochs": 3, "device": "cpu", "seed": 3, "shuffle": True,
        "remainder": "keep", "threads": 1,
    }  # fmt: skip
    return Loader(inputs, shards, "train", **{**settings, **changes})


def take(loader: Loader, batches: int) -> list[Batch]:
    """So many batches, over the ends of epochs."""
    return list(islice(rest(loader), batches))


def rest(loader: Loader) -> Iterator[Batch]:
    for _ in range(loader.epoch, loader.plan.epochs):
        yield from loader


def ids(batches: list[Batch]) -> list[int]:
    return [i for batch in batches for i in batch.sample_ids.tolist()]


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (4, 3), (2, 6)])
@pytest.mark.parametrize("taken", [1, 2, 3, 4])
def test_what_is_left_of_an_epoch_is_shared_anew(noise_shards: Path, before: int, after: int, taken: int) -> None:
    """23 samples in steps of 12: one step and a rest, of which every number of ranks takes what it can share."""
    first = [load(noise_shards, world=before, rank=rank) for rank in range(before)]
    done = [take(loader, taken) for loader in first]
    states = [json.loads(json.dumps(loader.state_dict())) for loader in first]
    second = [load(noise_shards, world=after, rank=rank) for rank in range(after)]
    for rank, loader in enumerate(second):
        with pytest.raises(MstlError, match=rf"world size \(then {before}, now {after}\)"):
            loader.load_state_dict(states[0])
        assert loader.load_state_dict(states[rank % before], other_world=True) is True
    assert len({(loader.epoch, loader.step) for loader in second}) == 1
    ended = taken == 2 * len(first[0])
    epoch = second[0].epoch
    continued = [list(loader) for loader in second]
    if taken % 2:  # in the middle of an epoch
        counts = Counter(ids([b for part in done for b in part[taken - taken % 2 :]]) + ids(list(chain(*continued))))
        assert epoch == taken // 2 and max(counts.values()) == 1
        assert len(counts) == 12 + 11 - 11 % after
    else:
        assert not ended or epoch == taken // 2
    later = Counter(ids([b for loader in second for b in loader])) if second[0].epoch < 3 else None
    assert later is None or (max(later.values()) == 1 and len(later) == 12 + 11 - 11 % after)


def test_the_same_world_is_no_other_and_resumes_bit_by_bit(noise_shards: Path) -> None:
    loader = load(noise_shards, supervised_cxr(24))
    take(loader, 1)
    state = loader.state_dict()
    again = load(noise_shards, supervised_cxr(24))
    assert again.load_state_dict(state, other_world=True) is False
    for one, other in zip(rest(loader), rest(again), strict=True):
        assert torch.equal(one.views["x"], other.views["x"])


def test_on_another_world_only_the_ranks_may_differ(noise_shards: Path) -> None:
    loader = load(noise_shards)
    take(loader, 1)
    state = loader.state_dict()
    for changes, named in (
        ({"batch": 6}, "batch size"),
        ({"seed": 4}, "seed"),
        ({"inputs": replace(RAW, flip=0.5)}, "flip"),
    ):
        with pytest.raises(MstlError, match=named):
            load(noise_shards, world=2, **changes).load_state_dict(state, other_world=True)


def test_augmentation_after_a_change_of_world_is_repeatable(noise_shards: Path) -> None:
    loader = load(noise_shards, supervised_cxr(24), world=2)
    take(loader, 1)
    state = loader.state_dict()
    views = []
    for _ in range(2):
        again = load(noise_shards, supervised_cxr(24), world=1)
        again.load_state_dict(state, other_world=True)
        views.append([batch.views["x"] for batch in rest(again)])
    assert all(torch.equal(one, other) for one, other in zip(*views, strict=True))


def with_bad(make_shards: Callable[..., Path], *bad: int, count: int = 23) -> Path:
    pictures = noise(count)
    for place in bad:
        pictures[place] = BAD
    return make_shards(pictures, per_shard=5)


def test_unreadable_images_are_skipped_within_the_budget(make_shards: Callable[..., Path]) -> None:
    """Batches keep their size; the place of a bad image goes to another of its batch; everything else is as planned."""
    shards, whole = with_bad(make_shards, 7, 14), make_shards(noise(23), per_shard=5)
    loader = load(shards, batch=6, max_bad=0.1)
    for epoch in range(3):
        expected = [batch.sample_ids.tolist() for batch in take_epoch(load(whole, batch=6), epoch)]
        for batch, planned in zip(list(loader), expected, strict=True):
            seen = batch.sample_ids.tolist()
            assert len(seen) == len(planned) and {7, 14}.isdisjoint(seen)
            assert [now for now, then in zip(seen, planned, strict=True) if then not in (7, 14)] == [
                then for then in planned if then not in (7, 14)
            ]
            assert set(seen) <= set(planned)
            assert batch.labels.tolist() == [i % 3 for i in seen]
    assert sorted(one.sample_id for one in loader.unreadable) == [7, 14]
    assert loader.unreadable[0].tar.endswith(".tar") and loader.unreadable[0].reason


def take_epoch(loader: Loader, epoch: int) -> list[Batch]:
    for _ in range(epoch):
        list(loader)
    return list(loader)


def test_one_bad_image_too_many_ends_it_and_tells_all(make_shards: Callable[..., Path]) -> None:
    loader = load(with_bad(make_shards, 3, 9, 20), batch=6, max_bad=2 / 23, shuffle=False)
    with pytest.raises(MstlError, match=r"^3 images of .* data\.max_bad allows 2; first sample 3 in .*000000\.tar"):
        list(loader)
    with pytest.raises(MstlError, match="3 images of"):  # the budget stays spent
        list(loader)


def test_a_batch_without_any_readable_image_ends_it(make_shards: Callable[..., Path]) -> None:
    with pytest.raises(MstlError, match="a batch of 3 images: none of them can be read"):
        list(load(with_bad(make_shards, 3, 4, 5), batch=3, shuffle=False, max_bad=1.0))


@pytest.mark.parametrize("taken", range(1, 7))
def test_resume_is_bit_exact_after_skipping(
    make_shards: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, taken: int
) -> None:
    monkeypatch.setattr(windows, "WINDOW_PAIRS", 50)
    shards = with_bad(make_shards, 2, 11)
    options: dict[str, Any] = {"inputs": supervised_cxr(24), "batch": 6, "max_bad": 0.2}
    loader = load(shards, **options)
    take(loader, taken)
    state = json.loads(json.dumps(loader.state_dict()))
    again = load(shards, **options)
    again.load_state_dict(state)
    expected, resumed = list(rest(loader)), list(rest(again))
    assert len(expected) == len(resumed) == 12 - taken
    for one, other in zip(expected, resumed, strict=True):
        assert one.sample_ids.tolist() == other.sample_ids.tolist()
        assert torch.equal(one.views["x"], other.views["x"])


def test_skipping_begins_at_the_step_that_failed(make_shards: Callable[..., Path]) -> None:
    loader = load(with_bad(make_shards, 22), batch=4, shuffle=False, max_bad=0.1)
    seen = [batch.sample_ids.tolist() for batch in loader]
    assert seen[:5] == [list(range(first, first + 4)) for first in range(0, 20, 4)]
    assert seen[5] == [20, 21, 20]


@pytest.mark.parametrize("harm", ["cut", "gone"])
def test_a_shard_that_changes_under_way_is_named_and_never_skipped(make_shards: Callable[..., Path], harm: str) -> None:
    shards = make_shards(noise(23), per_shard=5)
    loader = load(shards, batch=6, max_bad=1.0)
    list(loader)
    loader.close()  # the next epoch opens the tars again
    tar = shards / "train/000002.tar"
    size = tar.stat().st_size
    if harm == "cut":
        with tar.open("r+b") as file:
            file.truncate(600)
    else:
        tar.unlink()
    told = f"it has 600 bytes and had {size}" if harm == "cut" else "it is gone"
    with pytest.raises(MstlError, match=f"000002.tar: {told} since this job began"):
        list(loader)


def test_views_in_bfloat16_keep_their_layout(noise_shards: Path) -> None:
    [one], [other] = take(load(noise_shards), 1), take(load(noise_shards, dtype=torch.bfloat16), 1)
    assert other.views["x"].dtype == torch.bfloat16
    assert other.views["x"].is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(one.views["x"].to(torch.bfloat16), other.views["x"])


def test_boxes_tell_whether_lungs_were_found(make_shards: Callable[..., Path]) -> None:
    flat = encode(np.full((64, 64, 3), 90, np.uint8))
    body = np.zeros((96, 96, 3), np.uint8)
    body[8:88, 4:92] = 170
    body[24:72, 16:42] = body[24:72, 54:80] = 20
    [batch] = take(load(make_shards([flat, encode(body)]), multi_view_ct(32), batch=2, shuffle=False), 1)
    assert batch.located is not None and batch.boxes is not None
    assert batch.located.dtype == torch.bool and batch.located.tolist() == [False, True]
    assert batch.boxes[0].tolist() == [0, 0, 1, 1]
