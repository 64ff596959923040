"""The DeepSpeed engine against plain torch: same updates, clipping, precision, and what it refuses."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from launch.engine import DeepSpeedEngine, start_processes
from launch.processes import set_environment
from mstl.recipes import Recipe, build_recipe
from pipelines.batch import Batch


class Small(nn.Module):
    """Convolution, norm and classifier: all kinds of parameters a stage has, and a frozen one."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.fc = nn.Linear(8, 2)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.seen: list[torch.dtype] = []

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        features = self.body(batch.views["x"])
        self.seen.append(features.dtype)
        logits = self.fc(features.mean((2, 3))).float()
        return {"loss": F.cross_entropy(logits, batch.labels)}


@pytest.fixture(scope="module", autouse=True)
def processes() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            patch.delenv(name, raising=False)
        patch.setenv("DS_ACCELERATOR", "cpu")
        patch.setenv("OMP_NUM_THREADS", "1")
        set_environment()
        start_processes()
        yield
        dist.destroy_process_group()


def recipe(*fields: str) -> Recipe:
    return build_recipe("stl_n", overrides=["data.batch_size=6", "optim.lr=0.1", *fields])


def batch(seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(6, 3, 9, 9, generator=generator).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 2, (6,), generator=generator)
    return Batch(views={"x": images}, labels=labels, sample_ids=torch.arange(6))


def plain_training(module: Small, rates: list[float], clip: float) -> None:
    """The same by hand: torch's SGD with momentum and weight decay, clipping by the global norm."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1.0, momentum=0.9, weight_decay=1e-4)
    for seed, rate in enumerate(rates):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        module(batch(seed))["loss"].backward()
        if clip:
            nn.utils.clip_grad_norm_(trained, clip)
        optimizer.step()


@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_updates_are_those_of_plain_sgd(clip: float) -> None:
    torch.manual_seed(0)
    ours, plain = Small(), Small()
    plain.load_state_dict(ours.state_dict())
    first = copy.deepcopy(ours.state_dict())
    rates = [0.1, 0.1, 0.01]
    engine = DeepSpeedEngine(ours, recipe(f"optim.clip={clip}"), torch.device("cpu"))
    for seed, rate in enumerate(rates):
        engine.backward(engine.forward(batch(seed))["loss"])
        engine.step(rate)
    plain_training(plain, rates, clip)
    for name, value in plain.state_dict().items():
        assert torch.allclose(engine.module.state_dict()[name], value, atol=1e-6), name
    assert not torch.allclose(first["fc.weight"], ours.fc.weight)
    assert torch.equal(first["frozen.weight"], ours.frozen.weight)


def test_backward_returns_the_global_norm_of_the_gradient() -> None:
    torch.manual_seed(0)
    ours, plain = Small(), Small()
    plain.load_state_dict(ours.state_dict())
    engine = DeepSpeedEngine(ours, recipe(), torch.device("cpu"))
    norm = engine.backward(engine.forward(batch(0))["loss"])
    plain(batch(0))["loss"].backward()
    squares = [p.grad.square().sum() for p in plain.parameters() if p.grad is not None]
    assert norm == pytest.approx(float(torch.stack(squares).sum().sqrt()), rel=1e-5)


def test_a_broken_loss_shows_in_the_norm() -> None:
    engine = DeepSpeedEngine(Small(), recipe(), torch.device("cpu"))
    losses = engine.forward(batch(0))
    assert not torch.isfinite(torch.tensor(engine.backward(losses["loss"] * float("nan"))))


@pytest.mark.parametrize(("choice", "computed"), [("auto", torch.float32), ("bf16", torch.bfloat16)])
def test_autocast_leaves_parameters_and_statistics_in_float32(choice: str, computed: torch.dtype) -> None:
    module = Small()
    engine = DeepSpeedEngine(module, recipe(f"precision.autocast={choice}"), torch.device("cpu"))
    engine.backward(engine.forward(batch(0))["loss"])
    engine.step(0.1)
    assert module.seen == [computed]
    floating = [value.dtype for value in module.state_dict().values() if value.is_floating_point()]
    assert set(floating) == {torch.float32}
