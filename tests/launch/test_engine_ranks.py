"""The engine on two real gloo ranks: one update for all, whatever one of them meets, and no endless wait."""

from __future__ import annotations

import math
import os
import time
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from engine_cases import CPU, Small, batch, part_of, plain_training, recipe, run_ranks, small
from torch import Tensor, nn

from launch.engine import TIMEOUT_VARIABLE, DeepSpeedEngine
from launch.gradients import GradientBuckets
from mstl.together import together
from pipelines.batch import Batch
from shards.errors import MstlError

RATES = (0.1, 0.1, 0.01)
CASES = list(product((0, 1, 2), (1, 2), (0.0, 0.05)))
BROKEN = list(product((0, 1, 2), ("off", "fp16")))


def own_part(index: int, seed: int) -> Batch:
    return part_of(batch(seed, 12), 6 * index, 6 * index + 6)


def engine_of(module: Small, *fields: str) -> DeepSpeedEngine:
    return DeepSpeedEngine(module, recipe(*fields, images=12), CPU)


def updates(index: int, zero: int, parts: int, clip: float) -> dict[str, Any]:
    module = small(seed=index)  # rank 0's parameters count
    engine = engine_of(module, f"optim.clip={clip}", f"engine.zero={zero}", f"engine.accumulate={parts}")
    module.body[1].eval()
    norms = [engine.update(own_part(index, seed), rate).norm for seed, rate in enumerate(RATES)]
    return {"norms": norms, "state": module.state_dict()}


def broken(index: int, zero: int, choice: str) -> dict[str, Any]:
    """A step, one whose images hold a NaN on rank 1 alone, and another where training can go on."""
    module = small()
    engine = engine_of(module, f"engine.zero={zero}", f"precision.autocast={choice}")
    engine.update(own_part(index, 0), 0.1)
    before = {name: value.detach().clone() for name, value in module.named_parameters()}
    images = own_part(index, 1)
    if index == 1:
        images.views["x"][0] = math.nan
    result = engine.update(images, 0.1)
    same = all(torch.equal(before[name], value) for name, value in module.named_parameters())
    again = engine.update(own_part(index, 2), 0.1) if choice == "fp16" else None
    return {"result": (result.applied, result.stop), "same": same, "again": again, "scale": engine._scale,
            "state": module.state_dict()}  # fmt: skip


def resumed(index: int, zero: int) -> bool:
    """Whether a second engine goes on bitwise from the first one's snapshot."""
    modules = small(), small(seed=7)
    engines = [engine_of(module, f"engine.zero={zero}") for module in modules]
    engines[0].update(own_part(index, 0), 0.1)
    snapshot = engines[0].snapshot()
    assert (snapshot.shared is not None) == (index == 0)
    assert bool(snapshot.own) == (zero > 0)
    shared = [snapshot.shared]
    dist.broadcast_object_list(shared, src=0)  # as all ranks read one file
    engines[0].update(own_part(index, 1), 0.1)
    engines[1].restore(shared[0] or {}, snapshot.own)
    if snapshot.shared is None:  # running statistics are each rank's own, and the loop's to bring back
        modules[1].body[1].running_mean.copy_(modules[0].body[1].running_mean)
    engines[1].update(own_part(index, 1), 0.1)
    pairs = zip(modules[0].named_parameters(), modules[1].parameters(), strict=True)
    return all(torch.equal(one, other) for (_, one), other in pairs)


def buckets(index: int) -> dict[str, Any]:
    """Gradients summed in small buckets, and how many buckets were on their way when the first layer got its own."""
    torch.manual_seed(0)
    layers = nn.ModuleList(nn.Linear(5, 5) for _ in range(4))
    spare = nn.Linear(3, 3)
    parameters = [*spare.parameters(), *layers.parameters()]  # what is unused holds up the buckets behind its own
    found = GradientBuckets(parameters, bucket_bytes=200)
    sent: list[int] = []
    layers[0].weight.register_post_accumulate_grad_hook(lambda _: sent.append(found._sent))

    def backward(order: list[int], factor: float = 1.0) -> None:
        value = torch.full((2, 5), index + 1.0)
        for number in order:
            value = torch.tanh(layers[number](value))
        (value.sum() * factor).backward()

    backward([0, 1, 2, 3])  # not armed: accumulates, and reduces nothing
    alone = [parameter.grad.clone() for parameter in layers.parameters()]
    found.arm()
    backward([0, 1, 2, 3])
    squares = sum(float(flat.square().sum()) for flat in found.finish())
    grads: list[Tensor] = [parameter.grad.clone() for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    # Layers used in another order on rank 1: the buckets go out in one order nevertheless.
    found.arm()
    backward([3, 2, 1, 0] if index else [0, 1, 2, 3])
    found.finish()
    return {
        "buckets": len(found._buckets), "sent": sent, "alone": alone, "grads": grads,
        "squares": squares, "other": [parameter.grad.clone() for parameter in parameters],
    }  # fmt: skip


def joint(index: int, failing: tuple[int, ...]) -> tuple[str, str]:
    """What a part that must succeed on all ranks comes to where it fails on some."""

    def action() -> str:
        if index in failing:
            raise MstlError(f"file of {index}", why="it is damaged", remedy="Bring it back")
        return f"found by {index}"

    try:
        return together(action), ""
    except MstlError as error:
        return type(error).__name__, str(error)


def worker(index: int) -> dict[str, Any]:
    return {
        "updates": {case: updates(index, *case) for case in CASES},
        "broken": {case: broken(index, *case) for case in BROKEN},
        "resumed": {zero: resumed(index, zero) for zero in (0, 1, 2)},
        "buckets": buckets(index),
        "together": {failing: joint(index, failing) for failing in ((), (1,), (0, 1))},
    }


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_ranks(worker, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_train_as_one_with_the_whole_batch(ranks: list[dict[str, Any]], case: tuple[int, int, float]) -> None:
    plain = small()
    plain.body[1].eval()
    norms = plain_training(plain, [[batch(seed, 12)] for seed in range(3)], RATES, case[2])
    for found in ranks:
        assert found["updates"][case]["norms"] == pytest.approx(norms, rel=1e-5)
        for name, value in plain.state_dict().items():
            assert torch.allclose(found["updates"][case]["state"][name], value, rtol=0, atol=1e-6), name


@pytest.mark.parametrize("case", BROKEN)
def test_a_nan_on_one_rank_is_applied_on_none(ranks: list[dict[str, Any]], case: tuple[int, str]) -> None:
    goes_on = case[1] == "fp16"
    for found in (rank["broken"][case] for rank in ranks):
        assert found["result"] == (False, "" if goes_on else "the gradient is not finite")
        assert found["same"]
        assert (found["again"] is not None and found["again"].applied) == goes_on
        assert all(value.isfinite().all() for value in found["state"].values()) or not goes_on
    one, two = (rank["broken"][case] for rank in ranks)
    assert one["scale"] == two["scale"]
    for name, value in one["state"].items():
        assert torch.equal(value, two["state"][name]) or "body.1" in name, name


@pytest.mark.parametrize("zero", [0, 1, 2])
def test_a_restored_rank_goes_on_bitwise(ranks: list[dict[str, Any]], zero: int) -> None:
    assert [rank["resumed"][zero] for rank in ranks] == [True, True]


def test_what_fails_on_any_rank_fails_on_all_with_the_same_words(ranks: list[dict[str, Any]]) -> None:
    found = [rank["together"] for rank in ranks]
    assert [one[()] for one in found] == [("found by 0", ""), ("found by 1", "")]
    alone = ("EveryRankError", "file of 1: it is damaged (on rank 1). Bring it back")
    assert [one[1,] for one in found] == [alone, alone]
    both = ("EveryRankError", "file of 0: it is damaged. Bring it back")
    assert [one[0, 1] for one in found] == [both, both]


def test_buckets_sum_over_ranks_while_backward_runs(ranks: list[dict[str, Any]]) -> None:
    one, two = (rank["buckets"] for rank in ranks)
    assert one["buckets"] > 3
    # Second backward: all buckets but the first layer's had been sent. The first one had not been armed.
    assert one["sent"][0] == 0
    assert one["sent"][1] >= 3
    for number, grad in enumerate(one["grads"][2:]):
        expected = 2 * (one["alone"][number] + two["alone"][number])  # accumulated twice, and summed
        assert torch.allclose(grad, expected, rtol=1e-6)
        assert torch.equal(grad, two["grads"][number + 2])
    assert all(not grad.any() for grad in one["grads"][:2]), "what took no part has a gradient of zero"
    assert one["squares"] == pytest.approx(sum(float(grad.square().sum()) for grad in one["grads"]), rel=1e-5)


def test_buckets_go_out_in_one_order_on_all_ranks(ranks: list[dict[str, Any]]) -> None:
    one, two = (rank["buckets"]["other"] for rank in ranks)
    assert all(torch.equal(left, right) for left, right in zip(one, two, strict=True))
    torch.manual_seed(0)
    layers = nn.ModuleList(nn.Linear(5, 5) for _ in range(4))
    total = torch.zeros(())
    for index, order in enumerate(([0, 1, 2, 3], [3, 2, 1, 0])):
        value = torch.full((2, 5), index + 1.0)
        for number in order:
            value = torch.tanh(layers[number](value))
        total = total + value.sum()
    total.backward()
    for ours, parameter in zip(one[2:], layers.parameters(), strict=True):
        assert torch.allclose(ours, parameter.grad, atol=1e-6)


def hang(index: int, folder: str, zero: int) -> str:
    engine = engine_of(small(), f"engine.zero={zero}")
    engine.update(own_part(index, 0), 0.1)
    gone = Path(folder) / "gone"
    if index == 1:
        deadline = time.monotonic() + 300
        while not gone.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        return ""
    try:
        engine.update(own_part(index, 1), 0.1)
    except MstlError as error:
        return str(error)
    finally:
        gone.touch()
    return "nothing failed"


def spawn_hang(index: int) -> str:
    return hang(index, os.environ["MSTL_TEST_FOLDER"], int(os.environ["MSTL_TEST_ZERO"]))


@pytest.mark.long
@pytest.mark.parametrize("zero", [0, 1])
def test_a_rank_that_hangs_ends_the_others_with_a_cause(tmp_path: Path, zero: int) -> None:
    limit = {TIMEOUT_VARIABLE: "15", "MSTL_TEST_FOLDER": str(tmp_path), "MSTL_TEST_ZERO": str(zero)}
    found = run_ranks(spawn_hang, tmp_path, **limit)
    assert "another rank did not take part in the step" in found[0]
    assert TIMEOUT_VARIABLE in found[0]
