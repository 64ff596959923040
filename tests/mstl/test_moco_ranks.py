"""Momentum contrast on two real gloo ranks: what they share, and that their number does not matter."""

import copy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from moco_cases import double_batch, freeze_norms, make_batch, make_model, part_of, train_step
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from mstl.distributed import average_batchnorm_, exchange, gather_cat, mean_over_ranks_, rank, world_size
from mstl.ssl import moco
from mstl.ssl.moco import MomentumContrast
from pipelines.batch import Batch
from shards.errors import MstlError

BATCHES = [make_batch([0, 1, 2, 3], seed=11), make_batch([4, 1, 5, 6], seed=12), make_batch([2, 7, 0, 8], seed=13)]


def two_ranks_worker(index: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=index, world_size=2)
    found: dict[str, object] = {"rank": rank(), "world": world_size()}
    strided = torch.arange(6.0).reshape(2, 3).T + 100 * index
    found["gathered"] = gather_cat(strided)
    found["mean"] = mean_over_ranks_(torch.tensor([1.0, 2.0 + index]))

    halves = [part_of(batch, 2 * index, 2 * index + 2) for batch in BATCHES]
    frozen = freeze_norms(make_model(region_mode="literal", momentum=0.5))
    found["frozen_scalars"] = [train_step(frozen, half) for half in halves]
    found["frozen_state"] = frozen.state_dict()

    model = make_model(momentum=0.5)
    still = copy.deepcopy(model)
    keys_by_step = []
    for _ in range(6):  # nothing is learned in between, so only the shuffling can change the keys
        still(halves[0])
        still.after_step()
        keys_by_step.append(still.queue.keys[(int(still.queue.cursor) - 4 + torch.arange(4)) % 6])
    found["keys_by_step"] = keys_by_step
    found["exchanges"] = exchanges(still, halves[0])
    for half in halves:
        train_step(model, half)
    found["state"] = copy.deepcopy(model.state_dict())
    average_batchnorm_(model)
    found["averaged"] = model.state_dict()

    wide = make_model(momentum=0.5).double()
    found["wide_losses"] = [train_step(wide, double_batch(half))["loss"] for half in halves]
    average_batchnorm_(wide)
    found["wide_state"] = wide.state_dict()
    found["complaints"] = complaints(model, index)
    torch.save(found, Path(folder) / f"rank{index}.pt")
    dist.destroy_process_group()


def gathered(images: Tensor, order: Tensor) -> Tensor:
    """What `exchange` gives, by way of all images of all ranks."""
    return gather_cat(images)[order[rank() * len(images) : (rank() + 1) * len(images)]]


def exchanges(model: MomentumContrast, batch: Batch) -> dict[str, object]:
    """Whether rows come as from a gathering, and of one training forward: the keys both ways, and what came in."""
    rows = torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(rank())).to(torch.bfloat16)
    orders = ([0, 1, 2, 3, 4, 5], [3, 4, 5, 0, 1, 2], [5, 0, 3, 1, 4, 2], [2, 1, 4, 5, 3, 0])
    same = [torch.equal(exchange(rows, order), gathered(rows, order)) for order in map(torch.tensor, orders)]
    received: list[tuple[str, int]] = []
    swapped, gather = dist.all_to_all_single, dist.all_gather_into_tensor

    def swap(out: Tensor, into: Tensor, taken: list[int], given: list[int]) -> None:
        received.append(("images", sum(count for giver, count in enumerate(taken) if giver != rank()) * out[0].nbytes))
        swapped(out, into, taken, given)

    def spread(out: Tensor, into: Tensor) -> None:
        received.append(("rows", out.nbytes - into.nbytes))
        gather(out, into)

    twin = copy.deepcopy(model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dist, "all_to_all_single", swap)
        patch.setattr(dist, "all_gather_into_tensor", spread)
        order = model._shuffled(len(batch))
        model(batch)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(moco, "exchange", gathered)
        twin(batch)
    assert order is not None and model._pending is not None and twin._pending is not None
    keys = [one._pending[0] for one in (model, twin)]
    return {"same": same, "order": order, "received": received, "keys": keys}


def complaints(model: MomentumContrast, index: int) -> dict[str, str]:
    """What `check_ranks` says of a sound state, and after one number was changed on one rank, by what was changed."""
    said: dict[str, str] = {}
    damages: dict[str, tuple[Tensor, int, float]] = {
        "nothing": (model.queue.keys[0, 0], 1, 0.0),
        "key": (model.queue.keys[3, 5], 1, 1e-6),
        "id": (model.queue.sample_ids[2], 0, 1),
        "cursor": (model.queue.cursor, 1, 1),
        "step": (model.step, 1, 1),
    }
    for name, (number, at, change) in damages.items():
        before = number.clone()
        if index == at:
            number += change
        try:
            model.check_ranks()
            said[name] = ""
        except MstlError as error:
            said[name] = str(error)
        number.copy_(before)
    return said


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    folder = tmp_path_factory.mktemp("two_ranks")
    spawn(two_ranks_worker, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"rank{index}.pt", weights_only=True) for index in (0, 1)]


def states(two_ranks: list[dict[str, object]], name: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    return two_ranks[0][name], two_ranks[1][name]


def test_ranks_gather_in_order_and_average(two_ranks: list[dict[str, object]]) -> None:
    assert [(found["rank"], found["world"]) for found in two_ranks] == [(0, 2), (1, 2)]
    part = torch.arange(6.0).reshape(2, 3).T
    for found in two_ranks:
        assert torch.equal(found["gathered"], torch.cat((part, part + 100)))
        assert torch.equal(found["mean"], torch.tensor([1.0, 2.5]))


def test_two_ranks_hold_the_same_weights_and_queue(two_ranks: list[dict[str, object]]) -> None:
    one, two = states(two_ranks, "state")
    shared = [name for name in one if "running" not in name]
    assert {"queue.keys", "queue.sample_ids", "queue.cursor", "step", "key_projection.weight"} < set(shared)
    assert [name for name in shared if not torch.equal(one[name], two[name])] == []
    assert one["queue.sample_ids"].tolist() == [5, 6, 2, 7, 0, 8]
    assert int(one["step"]) == 3


def test_two_ranks_equal_one_rank_with_the_whole_batch(two_ranks: list[dict[str, object]]) -> None:
    """Norms frozen, so images are independent: losses, gradients, keys and queue must not depend on the ranks."""
    model = freeze_norms(make_model(region_mode="literal", momentum=0.5))
    alone = [train_step(model, batch) for batch in BATCHES]
    for step, expected in enumerate(alone):
        per_rank = [found["frozen_scalars"][step] for found in two_ranks]
        for name, value in expected.items():
            mean = (per_rank[0][name] + per_rank[1][name]) / 2
            torch.testing.assert_close(mean, value, rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    for name, tensor in states(two_ranks, "frozen_state")[0].items():
        expected_tensor = model.state_dict()[name]
        torch.testing.assert_close(tensor, expected_tensor, rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_batchnorm_is_shuffled_across_ranks_and_anew_at_each_step(two_ranks: list[dict[str, object]]) -> None:
    """Each key is normalised within some pairing of the four images, and still returns to its own image."""
    references = {pairing: keys_of_pairing(torch.tensor(pairing)) for pairing in PAIRINGS}
    seen = []
    for keys, of_other_rank in zip(*(found["keys_by_step"] for found in two_ranks), strict=True):
        assert torch.equal(keys, of_other_rank)
        fitting = [pairing for pairing, reference in references.items() if torch.allclose(keys, reference, atol=1e-3)]
        assert len(fitting) == 1
        seen += fitting
    assert len(set(seen)) > 1


PAIRINGS = ((0, 1, 2, 3), (0, 2, 1, 3), (0, 3, 1, 2))  # two images a rank: unshuffled, and the two ways to mix


def keys_of_pairing(order: Tensor) -> Tensor:
    """Keys of the first batch when images order[:2] share one batch norm and order[2:] another."""
    keys = torch.empty(4, 16)
    for pair in order.split(2):
        model = make_model()
        with torch.no_grad():
            keys[pair] = F.normalize(model.projection(model.backbone(BATCHES[0].views["k"][pair])), dim=1)
    return keys


def test_batchnorm_statistics_are_averaged(two_ranks: list[dict[str, object]]) -> None:
    before = states(two_ranks, "state")
    after = states(two_ranks, "averaged")
    moved = 0
    for name in before[0]:
        if "running" in name:
            mean = (before[0][name] + before[1][name]) / 2
            moved += not torch.equal(before[0][name], mean)
            torch.testing.assert_close(after[0][name], mean)
            assert torch.equal(after[0][name], after[1][name])
        else:
            assert torch.equal(after[0][name], before[0][name])
    assert moved > 0


def test_alone_nothing_is_gathered_or_averaged() -> None:
    assert (rank(), world_size()) == (0, 1)
    tensor = torch.randn(2, 3, requires_grad=True)
    assert torch.equal(gather_cat(tensor), tensor)
    assert not gather_cat(tensor).requires_grad
    assert torch.equal(mean_over_ranks_(torch.ones(2)), torch.ones(2))
    norm = nn.BatchNorm2d(3)
    norm(torch.randn(2, 3, 4, 4))
    before = norm.running_mean.clone()
    average_batchnorm_(norm)
    assert torch.equal(norm.running_mean, before)


def test_one_rank_with_parts_equals_two_ranks(two_ranks: list[dict[str, object]]) -> None:
    """Split batch norm stands for ranks: same shuffling, statistics, losses, weights, keys and queue, in float64."""
    model = make_model(momentum=0.5, bn_group=2).double()
    losses = [train_step(model, double_batch(batch))["loss"] for batch in BATCHES]
    for step, loss in enumerate(losses):
        mean = (two_ranks[0]["wide_losses"][step] + two_ranks[1]["wide_losses"][step]) / 2
        torch.testing.assert_close(mean, loss, rtol=1e-8, atol=1e-10)
    state = model.state_dict()
    for name, tensor in states(two_ranks, "wide_state")[0].items():
        # A norm of two values magnifies what it gets where they are near each other.
        torch.testing.assert_close(tensor, state[name], rtol=1e-5, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}")
    plain = make_model(momentum=0.5).double()
    assert train_step(plain, double_batch(BATCHES[0]))["loss"] != losses[0]


@pytest.mark.parametrize("damaged", ["key", "id", "cursor", "step"])
def test_every_rank_says_that_queues_have_come_to_differ(two_ranks: list[dict[str, object]], damaged: str) -> None:
    said = [found["complaints"] for found in two_ranks]
    assert [one["nothing"] for one in said] == ["", ""]
    assert said[0][damaged] == said[1][damaged]
    assert "rank 1 and rank 0 hold different values" in said[0][damaged]


def test_images_travel_only_where_they_are_needed(two_ranks: list[dict[str, object]]) -> None:
    """Shuffled batch norm: what a rank encodes of the other rank's images comes in, and the keys of all."""
    for index, found in enumerate(two_ranks):
        seen = found["exchanges"]
        assert seen["same"] == [True] * 4
        assert torch.equal(*seen["keys"])  # bit for bit those of gathered images
        taken = seen["order"][2 * index : 2 * index + 2]
        foreign = int((taken // 2 != index).sum())
        key, sample_id = 16 * 4, 8  # bytes
        assert seen["received"] == [("images", foreign * 3 * 32 * 32 * 4), ("rows", 2 * key), ("rows", 2 * sample_id)]
    assert torch.equal(two_ranks[0]["exchanges"]["order"], two_ranks[1]["exchanges"]["order"])
