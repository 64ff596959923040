"""Momentum contrast and SimCLR under the DeepSpeed engine on two real gloo ranks: ZeRO 0 to 2, half precision, LARS.

And that all exchanges go through one group in one order, on which two GPUs cannot come to wait for each other.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from moco_cases import TinyBackbone, make_batch, part_of
from torch.multiprocessing.spawn import spawn

from launch.engine import DeepSpeedEngine
from launch.here import join_here
from mstl.optim import build_optimizer
from mstl.recipes import Recipe, build_recipe
from mstl.stages import SelfSupervisedStage

pytestmark = pytest.mark.slow

BATCHES = [make_batch(ids, seed) for seed, ids in enumerate(([0, 1, 2, 3], [4, 1, 5, 6], [2, 7, 0, 8]))]
RATE = 0.05
CASES = [
    ("ours", 0, "off"),
    ("ours", 1, "off"),
    ("ours", 2, "off"),
    ("moco_v2", 0, "bf16"),
    ("moco_v2", 0, "fp16"),
    ("simclr", 0, "off"),
    ("simclr", 0, "fp16"),
    ("simclr", 2, "off"),
]
EXCHANGES = (
    "all_reduce",
    "all_gather_into_tensor",
    "all_to_all_single",
    "reduce",
    "reduce_scatter_tensor",
    "broadcast",
)


def recipe_of(ssl: str, *fields: str) -> Recipe:
    own = ("optim.warmup_epochs=0",) if ssl == "simclr" else ("loss.queue_size=7", "loss.momentum=0.5")
    shared = ("data.batch_size=4", f"optim.lr={RATE}", "loss.dim=16")
    return build_recipe("sstl_m", ssl=ssl, overrides=[*shared, *own, *fields])


@contextmanager
def noted(seen: list[tuple[str, int, bool]]) -> Iterator[None]:
    """Note of every exchange its name, its size, and whether it is of the group of all ranks."""

    def noting(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            tensors = [value for value in (*args, *options.values()) if isinstance(value, torch.Tensor)]
            given = [value for value in (*args, *options.values()) if isinstance(value, dist.ProcessGroup)]
            seen.append((name, tensors[0].numel(), given in ([], [dist.group.WORLD])))
            return real(*args, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in EXCHANGES:
            patch.setattr(dist, name, noting(name, getattr(dist, name)))
        yield


def trained(index: int, ssl: str, zero: int, autocast: str) -> dict[str, Any]:
    """Three updates of this rank's half of the batches; ranks start from weights of their own, rank 0's count."""
    fields = (f"engine.zero={zero}", f"precision.autocast={autocast}")
    recipe = recipe_of(ssl, *fields, *(("optim.algorithm=sgd",) if zero and ssl == "simclr" else ()))
    torch.manual_seed(index)
    stage = SelfSupervisedStage(TinyBackbone(), recipe, seed=5)
    engine = DeepSpeedEngine(stage.module, recipe, torch.device("cpu"))
    losses, skipped = [], 0
    seen: list[tuple[str, int, bool]] = []
    while len(losses) < len(BATCHES):
        with noted(seen):
            result = engine.update(part_of(BATCHES[len(losses)], 2 * index, 2 * index + 2), RATE)
        assert not result.stop, result.stop
        if result.applied:
            stage.after_step()
            losses.append(result.losses)
        else:  # float16 finds its scale by skipping
            stage.skip_step()
            skipped += 1
        stage.check_ranks()
    state = {name: value.clone() for name, value in stage.module.state_dict().items()}
    return {"losses": losses, "skipped": skipped, "state": state, "seen": seen}


def two_ranks_worker(index: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(DS_ACCELERATOR="cpu", OMP_NUM_THREADS="1")
    join_here(index, 2, Path(folder))
    torch.save({case: trained(index, *case) for case in CASES}, Path(folder) / f"rank{index}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    folder = tmp_path_factory.mktemp("two_ranks")
    spawn(two_ranks_worker, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"rank{index}.pt", weights_only=True) for index in (0, 1)]


@pytest.mark.parametrize("case", CASES)
def test_ranks_hold_the_same_networks_and_queue(two_ranks: list[dict[Any, Any]], case: tuple[str, int, str]) -> None:
    one, two = (found[case] for found in two_ranks)
    shared = [name for name in one["state"] if "running" not in name]
    assert [name for name in shared if not torch.equal(one["state"][name], two["state"][name])] == []
    values = [value for found in (one, two) for losses in found["losses"] for value in losses.values()]
    assert all(value.dtype == torch.float32 and value.isfinite() for value in values)
    assert one["skipped"] == two["skipped"]
    if case[0] != "simclr":
        dealt = [int(sample) for batch in BATCHES for sample in batch.sample_ids]
        queue, cursor = one["state"]["queue.sample_ids"].tolist(), int(one["state"]["queue.cursor"])
        assert queue[cursor:] + queue[:cursor] == dealt[-7:]
        assert int(one["state"]["step"]) == 3  # given-up steps do not count


@pytest.mark.parametrize("zero", [1, 2])
def test_zero_one_and_two_train_momentum_contrast_as_zero_nought(two_ranks: list[dict[Any, Any]], zero: int) -> None:
    for found in two_ranks:
        plain, sharded = found["ours", 0, "off"], found["ours", zero, "off"]
        for losses, expected in zip(sharded["losses"], plain["losses"], strict=True):
            for name, value in expected.items():
                torch.testing.assert_close(losses[name], value, rtol=1e-5, atol=1e-6)
        for name, value in plain["state"].items():
            torch.testing.assert_close(
                sharded["state"][name], value, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
            )


@pytest.mark.parametrize(
    ("ssl", "zero", "field"),
    [("ours", 0, "loss.bn_group=2"), ("simclr", 0, "optim.algorithm=lars"), ("simclr", 2, "optim.algorithm=sgd")],
)
def test_two_ranks_under_the_engine_are_one_process_in_plain_torch(
    two_ranks: list[dict[Any, Any]], ssl: str, zero: int, field: str
) -> None:
    """SGD for ours, whose parts stand for ranks; SimCLR's norms know no ranks."""
    recipe = recipe_of(ssl, field)
    torch.manual_seed(0)
    stage = SelfSupervisedStage(TinyBackbone(), recipe, seed=5)
    before = {name: value.clone() for name, value in stage.module.named_parameters()}
    optimizer = build_optimizer(stage.module.named_parameters(), recipe.optim)
    for step, batch in enumerate(BATCHES):
        optimizer.zero_grad()
        loss = stage.module(batch)["loss"]
        loss.backward()
        optimizer.step()
        stage.after_step()
        of_ranks = sum(found[ssl, zero, "off"]["losses"][step]["loss"] for found in two_ranks) / 2
        torch.testing.assert_close(of_ranks, loss.detach(), rtol=1e-4, atol=1e-5)
    for name, value in stage.module.named_parameters():
        moved = two_ranks[0][ssl, zero, "off"]["state"][name] - before[name]
        expected = (value - before[name]).detach()
        if expected.norm() > 1e-6:  # a shift whose gradient is zero but for rounding moves by rounding
            assert (moved - expected).norm() < 1e-2 * expected.norm(), name


def test_float16_had_to_find_its_scale(two_ranks: list[dict[Any, Any]]) -> None:
    assert max(found["skipped"] for found in two_ranks[0].values()) > 0


@pytest.mark.parametrize("case", CASES)
def test_all_exchanges_go_through_one_group_in_one_order(
    two_ranks: list[dict[Any, Any]], case: tuple[str, int, str]
) -> None:
    """Batch norms, negatives and gradients, forward and backward: a rank that differed would make the others wait."""
    one, two = (found[case]["seen"] for found in two_ranks)
    assert one == two
    assert all(shared for _, _, shared in one)
    names = [name for name, _, _ in one]
    if case[0] == "simclr":  # four norms and the negatives, each once on the way there and once back, every step
        assert names.count("all_gather_into_tensor") >= 5 * len(BATCHES)
        assert names.count("all_reduce") >= 5 * len(BATCHES)
    else:
        assert names.count("all_to_all_single") >= len(BATCHES)
