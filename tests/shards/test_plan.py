"""The plan's promises, for all ranks in one process."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from shards.errors import MstlError
from shards.plan import Plan, default_chunk


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    world = draw(st.integers(1, 64))
    remainder = draw(st.sampled_from(["keep", "drop", "pad"]))
    batch = world * draw(st.integers(1, 7))
    samples = draw(st.integers(1, 700))
    assume(samples >= {"keep": world, "drop": batch, "pad": 1}[remainder])
    return Plan(
        samples=samples, world=world, batch=batch, epochs=3, seed=draw(st.integers(0, 2**40)),
        shuffle=draw(st.booleans()), remainder=remainder, chunk=draw(st.sampled_from([None, 1, 3, 32])),
    )  # fmt: skip


def everything(plan: Plan, epoch: int) -> list[int]:
    """Positions of all ranks, step by step."""
    return [int(p) for s in range(plan.steps_per_epoch) for r in range(plan.world) for p in plan.rank_step(r, epoch, s)]


@given(plan=plans())
def test_no_sample_twice_and_none_lost_beyond_the_stated_remainder(plan: Plan) -> None:
    for epoch in (0, 1):
        seen = Counter(everything(plan, epoch))
        assert set(seen) <= set(range(plan.samples))
        if plan.remainder == "pad":
            assert len(seen) == plan.samples
            assert sum(seen.values()) - plan.samples < plan.world
        else:
            assert max(seen.values()) == 1
            assert plan.samples - len(seen) == plan.left_out
            assert plan.left_out == plan.samples % (plan.world if plan.remainder == "keep" else plan.batch) or (
                plan.remainder == "keep" and plan.left_out == plan.samples % plan.batch % plan.world
            )


@given(plan=plans())
def test_every_rank_has_equal_steps_of_equal_size(plan: Plan) -> None:
    sizes = {tuple(len(b) for b in plan.rank_batches(r, 0)) for r in range(plan.world)}
    assert sizes == {tuple(plan.valid(s) for s in range(plan.steps_per_epoch))}
    (steps,) = sizes
    assert all(size == plan.rank_batch for size in steps[:-1])
    assert 0 < steps[-1] <= plan.rank_batch


@given(plan=plans())
def test_filled_is_the_real_batches_with_trimmable_fillers(plan: Plan) -> None:
    rank = plan.world - 1
    filled = plan.filled(rank, 1).reshape(plan.steps_per_epoch, plan.rank_batch)
    for step, row in enumerate(filled):
        real = plan.rank_step(rank, 1, step)
        assert row[: plan.valid(step)].tolist() == real.tolist()
        assert set(row.tolist()) == set(real.tolist())


@given(plan=plans())
def test_order_is_deterministic_and_positional(plan: Plan) -> None:
    twin = Plan(**{name: getattr(plan, name) for name in plan.__dataclass_fields__})
    plan.order(2), plan.order(0)  # asking for others first changes nothing
    assert plan.order(1).tolist() == twin.order(1).tolist()
    assert everything(plan, 1) == plan.order(1).tolist()
    if not plan.shuffle:
        assert plan.order(1).tolist() == [i % plan.samples for i in range(plan.used)]


@given(plan=plans(), data=st.data())
def test_any_part_of_an_order_is_that_part(plan: Plan, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, plan.used))
    stop = data.draw(st.integers(start, plan.used))
    assert plan.part(1, start, stop).tolist() == plan.order(1)[start:stop].tolist()


def make(**changes: object) -> Plan:
    values = {"samples": 1000, "world": 2, "batch": 10, "epochs": 2, "seed": 0, "shuffle": True, "remainder": "keep"}
    return Plan(**{**values, **changes})


def test_epochs_and_seeds_differ() -> None:
    orders = [make().order(0), make().order(1), make(seed=1).order(0)]
    for one, other in pairwise([*orders, orders[0]]):
        assert np.mean(one == other) < 0.02


@pytest.mark.parametrize("chunk", [1, 8, 32, 100])
@pytest.mark.parametrize("world", [1, 64])
def test_orders_of_consecutive_epochs_are_unrelated(chunk: int, world: int) -> None:
    """Spearman's correlation of places, of two epochs and of an epoch and the tars: 0 to five standard deviations.

    Chunks move as one, so its deviation is that of so many chunks, 1/√(chunks - 1).
    """
    samples = 32_000
    plan = make(samples=samples, world=world, batch=640, epochs=6, chunk=chunk)
    places = np.stack([np.argsort(plan.order(epoch)) for epoch in range(6)])
    bound = 5 / np.sqrt(samples / chunk - 1)
    for one, other in pairwise([np.arange(samples), *places]):
        assert abs(np.corrcoef(one, other)[0, 1]) < bound
    assert np.corrcoef(places[0], np.roll(places[0], chunk))[0, 1] < bound  # neighbours in the tars come far apart
    if chunk > 1:
        within = places % chunk  # inside the chunks too
        assert all(abs(np.corrcoef(one, other)[0, 1]) < 5 / np.sqrt(samples) for one, other in pairwise(within))


def test_shuffle_is_uniform() -> None:
    """All 6 orders of 3 samples, and all 8 orders of 4 samples in chunks of 2, come about equally often."""
    for samples, chunk, orders in ((3, 1, 6), (4, 2, 8)):
        plan = make(samples=samples, world=1, batch=1, chunk=chunk)
        counts = Counter(tuple(plan.order(epoch).tolist()) for epoch in range(200 * orders))
        assert len(counts) == orders
        assert min(counts.values()) > 150


def test_chunks_stay_together_and_are_shuffled_within() -> None:
    order = make(samples=320, chunk=32).order(0)
    chunks = order.reshape(10, 32)
    assert all(len(set((row // 32).tolist())) == 1 for row in chunks)
    assert sorted((chunks[:, 0] // 32).tolist()) == list(range(10))
    assert (chunks[:, 0] // 32).tolist() != list(range(10))
    assert all((np.diff(row) != 1).any() for row in chunks)


def test_a_short_last_chunk_loses_nothing() -> None:
    plan = make(samples=70, chunk=32, world=1, batch=1)
    assert sorted(plan.order(0).tolist()) == list(range(70))


def test_a_short_last_chunk_may_stand_anywhere() -> None:
    places = set()
    for epoch in range(30):
        order = make(samples=70, chunk=32, world=1, batch=1).order(epoch)
        assert sorted(order.tolist()) == list(range(70))
        places.add(int(np.flatnonzero(order >= 64)[0]))
        assert set(order[min(np.flatnonzero(order >= 64)) :][:6].tolist()) == set(range(64, 70))
    assert places == {0, 32, 64}


def test_a_billion_samples_are_planned_without_laying_them_out() -> None:
    plan = make(samples=10**9, world=1024, batch=65_536, chunk=1000)
    some = [plan.rank_step(rank, 1, step) for rank, step in ((0, 0), (1023, 0), (5, plan.steps_per_epoch - 1))]
    together = np.concatenate(some)
    assert len(np.unique(together)) == len(together) and together.max() < 10**9


def test_default_chunk() -> None:
    assert [default_chunk(n) for n in (1, 65536, 65537)] == [1, 1, 10]


def test_order_cannot_be_changed_by_its_readers() -> None:
    with pytest.raises(ValueError, match="read-only"):
        make().order(0)[0] = 5


def test_known_remainders() -> None:
    """425 slices at batch 256 are 2 steps: 256 and 169, of which 4 ranks can share 168."""
    keep = make(samples=425, world=4, batch=256)
    assert (keep.steps_per_epoch, keep.valid(0), keep.valid(1), keep.left_out) == (2, 64, 42, 1)
    drop = make(samples=425, world=4, batch=256, remainder="drop")
    assert (drop.steps_per_epoch, drop.left_out) == (1, 169)
    pad = make(samples=425, world=4, batch=256, remainder="pad", shuffle=False)
    assert (pad.steps_per_epoch, pad.valid(1), pad.used) == (2, 43, 428)
    assert pad.order(0)[-4:].tolist() == [424, 0, 1, 2]
    tiny = make(samples=2, world=8, batch=8, remainder="pad", shuffle=False)
    assert [tiny.rank_step(r, 0, 0).tolist() for r in range(8)] == [[0], [1]] * 4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch": 10, "world": 4}, ["10", "4 ranks", "multiple of 4", "8"]),
        ({"batch": 2, "world": 4}, ["multiple of 4, for example 4"]),
        ({"samples": 3, "world": 4, "batch": 4}, ["3 samples", "need at least 4", "fewer ranks"]),
        ({"samples": 9, "remainder": "drop"}, ["9 samples", "need at least 10"]),
        ({"samples": 0}, ["samples 0", "at least 1"]),
        ({"seed": -1}, ["seed -1"]),
        ({"chunk": 0}, ["chunk 0"]),
        ({"remainder": "wrap"}, ["'wrap'", "keep, drop, pad"]),
    ],
)
def test_refusals_name_cause_and_remedy(changes: dict[str, object], words: list[str]) -> None:
    with pytest.raises(MstlError) as error:
        make(**changes)
    for word in words:
        assert word in str(error.value)


def test_out_of_range_is_an_error() -> None:
    with pytest.raises(IndexError, match="rank 2 of 2"):
        make().rank_step(2, 0, 0)
    with pytest.raises(IndexError, match="step 100 of 100"):
        make().valid(100)
