"""SimCLR, and every method's partial batches and validation, on two real gloo ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from moco_cases import TinyBackbone, double_batch, make_batch, make_simclr, part_of, train_step
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from mstl.distributed import average_batchnorm_
from mstl.losses import nt_xent_loss
from mstl.recipes import build_recipe
from mstl.ssl.build import build_method
from mstl.ssl.moco import MomentumContrast
from mstl.stages import SelfSupervisedStage
from pipelines.batch import Batch
from pipelines.loader import Loader
from shards.errors import MstlError
from shards.plan import Plan

METHODS = ("ours", "moco", "moco_v2", "simclr")
BATCHES = [double_batch(make_batch(ids, seed)) for seed, ids in enumerate(([0, 1, 2, 3], [4, 1, 5, 6], [2, 7, 0, 8]))]
PLAN = Plan(samples=11, world=2, batch=6, epochs=2, seed=0, shuffle=True, remainder="keep")
IDS = torch.tensor([5, 6, 7, 5])  # image 5 stands in the batch of both ranks


def embeddings() -> tuple[Tensor, Tensor, Tensor]:
    """Images of four samples [2 views, 4, 6] and a projection [6, 5], float64."""
    generator = torch.Generator().manual_seed(7)
    views = torch.randn(2, 4, 6, dtype=torch.float64, generator=generator)
    weight = torch.randn(6, 5, dtype=torch.float64, generator=generator)
    return views[0], views[1], weight


def projected_loss(first: Tensor, second: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    return nt_xent_loss(F.normalize(first @ weight, dim=1), F.normalize(second @ weight, dim=1), ids, 0.3)


class Batches:
    """What `evaluate` takes for a loader."""

    def __init__(self, batches: list[Batch]) -> None:
        self.batches = batches

    def __iter__(self) -> Any:
        return iter(self.batches)


def stage_of(method: str) -> SelfSupervisedStage:
    torch.manual_seed(1)
    overrides = () if method == "simclr" else ("loss.queue_size=7", "loss.bn_group=2", "loss.momentum=0.5")
    recipe = build_recipe("sstl_m", ssl=None if method == "ours" else method, overrides=("loss.dim=16", *overrides))
    return SelfSupervisedStage(TinyBackbone(), recipe, seed=4)


def planned(rank: int) -> list[Batch]:
    """Two epochs of this rank as the plan deals them; image contents depend on the sample alone."""
    steps = [positions for epoch in (0, 1) for positions in PLAN.rank_batches(rank, epoch)]
    everything = make_batch(list(range(PLAN.samples)), seed=21)
    return [
        Batch(
            views={name: view[ids] for name, view in everything.views.items()},
            labels=everything.labels[ids],
            sample_ids=everything.sample_ids[ids],
        )
        for ids in (torch.from_numpy(np.asarray(positions)) for positions in steps)
    ]


def run_method(method: str, index: int) -> dict[str, Any]:
    stage = stage_of(method)
    mine = planned(index)
    losses = [train_step(stage.method, batch)["loss"] for batch in mine]
    stage.check_ranks()
    average_batchnorm_(stage.module)
    stage.module.eval()
    before = {name: value.clone() for name, value in stage.module.state_dict().items()}
    loader = cast(Loader, Batches(mine[:2]))
    metrics = [stage.evaluate(loader, torch.device("cpu")) for _ in range(2)]
    unchanged = all(torch.equal(value, before[name]) for name, value in stage.module.state_dict().items())
    found: dict[str, Any] = {"losses": losses, "metrics": metrics, "unchanged": unchanged, "state": before}
    found["sizes"] = [len(batch) for batch in mine]
    return found


def two_ranks_worker(index: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=index, world_size=2)
    part = slice(2 * index, 2 * index + 2)
    first, second, weight = embeddings()
    weight.requires_grad_()
    loss = projected_loss(first[part], second[part], weight, IDS[part])
    loss.backward()
    found: dict[str, Any] = {"loss": loss.detach(), "gradient": weight.grad}
    simclr = make_simclr().double()
    found["simclr_losses"] = [train_step(simclr, part_of(batch, part.start, part.stop))["loss"] for batch in BATCHES]
    found["simclr_state"] = simclr.state_dict()
    for method in METHODS:
        found[method] = run_method(method, index)
    torch.save(found, Path(folder) / f"rank{index}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("two_ranks")
    spawn(two_ranks_worker, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"rank{index}.pt", weights_only=True) for index in (0, 1)]


def mean(two_ranks: list[dict[str, Any]], name: str) -> Tensor:
    both: Tensor = (two_ranks[0][name] + two_ranks[1][name]) / 2
    return both


def test_averaged_losses_and_gradients_are_those_of_one_process(two_ranks: list[dict[str, Any]]) -> None:
    first, second, weight = embeddings()
    weight.requires_grad_()
    expected = projected_loss(first, second, weight, IDS)
    expected.backward()
    torch.testing.assert_close(mean(two_ranks, "loss"), expected.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(mean(two_ranks, "gradient"), weight.grad, rtol=1e-11, atol=1e-13)
    assert not torch.allclose(two_ranks[0]["gradient"], two_ranks[1]["gradient"])


def test_simclr_on_two_ranks_is_simclr_on_one(two_ranks: list[dict[str, Any]]) -> None:
    """Batch norms in training: statistics, losses, gradients and weights must not depend on the number of ranks."""
    model = make_simclr().double()
    alone = [train_step(model, batch)["loss"] for batch in BATCHES]
    for step, loss in enumerate(alone):
        both = (two_ranks[0]["simclr_losses"][step] + two_ranks[1]["simclr_losses"][step]) / 2
        torch.testing.assert_close(both, loss, rtol=1e-8, atol=1e-10)
    for name, expected in model.state_dict().items():
        for found in two_ranks:
            tensor = found["simclr_state"][name]
            torch.testing.assert_close(tensor, expected, rtol=1e-6, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("method", METHODS)
def test_a_partial_last_batch_is_shared_equally_by_every_method(two_ranks: list[dict[str, Any]], method: str) -> None:
    """11 images in batches of 6: 6, then 4 of the remaining 5, as 425 are 256 and 168 on an even number of ranks."""
    found = [one[method] for one in two_ranks]
    assert [one["sizes"] for one in found] == [[3, 2, 3, 2]] * 2
    assert all(torch.isfinite(loss) for one in found for loss in one["losses"])
    states = [one["state"] for one in found]
    assert [name for name in states[0] if not torch.equal(states[0][name], states[1][name])] == []
    if method != "simclr":
        dealt = [int(i) for epoch in (0, 1) for i in PLAN.order(epoch)]
        queue = states[0]["queue.sample_ids"].tolist()
        cursor = int(states[0]["queue.cursor"])
        assert queue[cursor:] + queue[:cursor] == dealt[-7:]


def test_the_papers_425_images_deal_equal_parts_to_all_ranks() -> None:
    for world, last in ((1, 169), (2, 84), (4, 42), (8, 21)):
        plan = Plan(samples=425, world=world, batch=256, epochs=1, seed=0, shuffle=True, remainder="keep")
        sizes = [[len(step) for step in plan.rank_batches(rank, 0)] for rank in range(world)]
        assert sizes == [[256 // world, last]] * world


@pytest.mark.parametrize("method", METHODS)
def test_validation_is_equal_on_ranks_repeatable_and_changes_nothing(
    two_ranks: list[dict[str, Any]], method: str
) -> None:
    found = [one[method] for one in two_ranks]
    first = found[0]["metrics"][0]
    assert all(metrics == first for one in found for metrics in one["metrics"])
    assert all(one["unchanged"] for one in found)
    regions = {"contrastive", "region", "region_accuracy"} if method == "ours" else {"contrastive"}
    assert first.keys() == {"loss", "contrast_accuracy"} | (set() if method == "simclr" else regions)


@pytest.mark.parametrize("method", METHODS)
def test_validation_is_the_mean_over_all_images(two_ranks: list[dict[str, Any]], method: str) -> None:
    """Against one process that is given the same weights and all the images, batch by batch."""
    stage = stage_of(method)
    stage.module.load_state_dict(two_ranks[0][method]["state"])
    stage.module.eval()
    total, images = 0.0, 0
    for one, two in zip(planned(0)[:2], planned(1)[:2], strict=True):
        views = {name: torch.cat((one.views[name], two.views[name])) for name in one.views}
        ids = torch.cat((one.sample_ids, two.sample_ids))
        batch = Batch(views=views, labels=torch.cat((one.labels, two.labels)), sample_ids=ids)
        with torch.no_grad():
            total += stage.module(batch)["loss"].item() * len(batch)
        images += len(batch)
    assert two_ranks[0][method]["metrics"][0]["loss"] == pytest.approx(total / images, rel=1e-4)


def test_zero_three_is_refused() -> None:
    """Its parameters are in pieces outside of forward, where the key encoder follows the query's."""
    with pytest.raises(MstlError, match=r"engine\.zero"):
        build_recipe("sstl_m", overrides=["engine.zero=3"])


@pytest.mark.parametrize(
    ("method", "head", "region"), [("ours", 1, True), ("moco", 1, False), ("moco_v2", 3, False), ("simclr", 5, False)]
)
def test_a_recipe_builds_its_method(method: str, head: int, region: bool) -> None:
    recipe = build_recipe("sstl_m", ssl=None if method == "ours" else method)
    built = build_method(TinyBackbone(), recipe, seed=0)
    projection = built.get_submodule("projection")
    assert (1 if isinstance(projection, nn.Linear) else len(list(projection.children()))) == head
    assert (getattr(built, "region_head", None) is not None) == region
    temperature = {"moco_v2": 0.2, "simclr": 0.1}.get(method, 0.07)
    assert built.temperature == temperature
    if isinstance(built, MomentumContrast):
        assert (built.bn_group, len(built.queue.keys), built.momentum) == (32, 256, 0.999)
        assert (built.alpha1, built.alpha2 if region else 0) == ((0.8, 0.8) if region else (1.0, 0))
    with pytest.raises(TypeError, match="no self-supervised method"):
        build_method(TinyBackbone(), build_recipe("finetune"), seed=0)
