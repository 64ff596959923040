"""The DeepSpeed engine on one rank against plain torch: updates, clipping, precision, skipping, and its state."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from engine_cases import CPU, batch, one_rank, plain_training, recipe, small
from torch import nn

from launch import engine as engine_module
from launch.engine import DeepSpeedEngine
from launch.scaling import FIRST_SCALE, MOST_SKIPS, LossScale
from mstl.precision import autocast_dtype
from mstl.recipes import Precision
from pipelines.batch import Batch
from shards.errors import MstlError


@pytest.fixture(scope="module", autouse=True)
def processes() -> Iterator[None]:
    with one_rank():
        yield


def state(module: nn.Module) -> dict[str, Any]:
    return copy.deepcopy(module.state_dict())


def saved(engine: DeepSpeedEngine) -> bytes:
    """Weights, buffers, momenta and loss scale, to the bit."""
    held = io.BytesIO()
    snapshot = engine.snapshot()
    torch.save((snapshot.shared, snapshot.own), held)
    return held.getvalue()


def equal(left: dict[str, Any], right: dict[str, Any]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("zero", [0, 1, 2])
@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_updates_are_those_of_plain_sgd(zero: int, clip: float) -> None:
    ours, plain = small(), small()
    first, rates = state(ours), [0.1, 0.1, 0.01]
    engine = DeepSpeedEngine(ours, recipe(f"optim.clip={clip}", f"engine.zero={zero}"), CPU)
    results = [engine.update(batch(seed), rate) for seed, rate in enumerate(rates)]
    norms = plain_training(plain, [[batch(seed)] for seed in range(3)], rates, clip)
    assert [result.norm for result in results] == pytest.approx(norms, rel=1e-5)
    assert all(result.applied and not result.stop for result in results)
    for name, value in plain.state_dict().items():
        assert torch.allclose(ours.state_dict()[name], value, rtol=0, atol=1e-6), name
    assert not torch.allclose(first["fc.weight"], ours.fc.weight, atol=1e-4)
    assert torch.equal(first["frozen.weight"], ours.frozen.weight)


def test_losses_are_the_modules_own() -> None:
    ours, plain = small(), small()
    found = DeepSpeedEngine(ours, recipe(), CPU).update(batch(0), 0.1).losses
    expected = plain(batch(0))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) and not found[name].requires_grad for name in expected)


@pytest.mark.parametrize(("images", "parts", "sizes"), [(12, 3, [4, 4, 4]), (11, 3, [4, 4, 3]), (5, 4, [3, 2])])
def test_a_batch_in_parts_gives_the_gradient_of_the_whole(images: int, parts: int, sizes: list[int]) -> None:
    """With batch norm at rest; a part never holds a single image."""
    ours, plain = small(), small()
    ours.body[1].eval()
    plain.body[1].eval()
    engine = DeepSpeedEngine(ours, recipe(f"engine.accumulate={parts}", images=12), CPU)
    results = [engine.update(batch(seed, images), 0.1) for seed in range(2)]
    losses = plain(batch(0, images))
    norms = plain_training(plain, [[batch(seed, images)] for seed in range(2)], [0.1, 0.1], 0.0)
    assert ours.sizes == [*sizes, *sizes]
    assert [result.norm for result in results] == pytest.approx(norms, rel=1e-5)
    assert {name: float(value) for name, value in results[0].losses.items()} == pytest.approx(
        {name: float(value.detach()) for name, value in losses.items()}, rel=1e-5
    )
    for name, value in plain.state_dict().items():
        assert torch.allclose(ours.state_dict()[name], value, rtol=0, atol=1e-6), name


def test_weights_are_channels_last_and_so_are_their_momenta() -> None:
    module = small()
    engine = DeepSpeedEngine(module, recipe(), CPU)
    engine.update(batch(0), 0.1)
    weight = module.body[0].weight
    momentum = engine._engine.optimizer.state[weight]["momentum_buffer"]
    assert weight.stride() == momentum.stride() == (27, 1, 9, 3)


@pytest.mark.parametrize("zero", [0, 1])
def test_a_broken_gradient_changes_nothing_and_stops_training(zero: int) -> None:
    module = small()
    engine = DeepSpeedEngine(module, recipe(f"engine.zero={zero}"), CPU)
    engine.update(batch(0), 0.1)
    before, statistics = saved(engine), state(module.body[1])
    broken = batch(1)
    broken.views["x"][0] = math.nan
    result = engine.update(broken, 0.1)
    assert not result.applied
    assert result.stop == "the gradient is not finite"
    assert not math.isfinite(result.norm)
    module.body[1].load_state_dict(statistics)  # training ends here: what they became does not matter
    assert saved(engine) == before
    assert all(parameter.grad is None for parameter in module.parameters())


@pytest.mark.parametrize(
    ("choice", "computed"), [("auto", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
@pytest.mark.parametrize("zero", [0, 1])
def test_autocast_leaves_parameters_and_statistics_in_float32(choice: str, computed: torch.dtype, zero: int) -> None:
    module = small()
    engine = DeepSpeedEngine(module, recipe(f"precision.autocast={choice}", f"engine.zero={zero}"), CPU)
    backward: list[bool] = []
    module.fc.weight.register_hook(lambda _: backward.append(torch.is_autocast_enabled("cpu")))
    assert engine.update(batch(0), 0.1).applied
    assert backward == [False], "autocast would round what forward has kept in float32"
    assert module.seen == [computed]
    assert module(batch(0))["loss"].dtype == torch.float32
    assert module.seen[1] == torch.float32, "evaluation is not under autocast"
    floating = [value.dtype for value in module.state_dict().values() if value.is_floating_point()]
    assert set(floating) == {torch.float32}


@pytest.mark.parametrize(
    ("choice", "capability", "expected"),
    [
        ("auto", (9, 0), torch.bfloat16),
        ("auto", (8, 0), torch.bfloat16),
        ("auto", (7, 5), torch.float16),
        ("auto", None, None),
        ("off", (9, 0), None),
        ("fp16", None, torch.float16),
        ("bf16", None, torch.bfloat16),
    ],
)
def test_the_precision_of_a_device(
    monkeypatch: pytest.MonkeyPatch, choice: Any, capability: tuple[int, int] | None, expected: torch.dtype | None
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    device = CPU if capability is None else torch.device("cuda", 0)
    assert autocast_dtype(Precision(autocast=choice), device) == expected


def overflowing(seed: int) -> Batch:
    """Finite in float16, with gradients that are not: images that large make them so."""
    found = batch(seed)
    found.views["x"].mul_(6e4)
    return found


@pytest.mark.parametrize("zero", [0, 1])
def test_float16_skips_what_overflows_and_halves_its_scale(zero: int) -> None:
    module = small()
    engine = DeepSpeedEngine(module, recipe("precision.autocast=fp16", f"engine.zero={zero}"), CPU)
    assert engine.update(batch(0), 0.1).applied
    before, scale = saved(engine), engine._scale
    result = engine.update(overflowing(1), 0.1)
    assert (result.applied, result.stop) == (False, "")
    assert scale == LossScale(FIRST_SCALE, 1, 0)
    assert engine._scale == LossScale(FIRST_SCALE / 2, 0, 1)
    engine._scale = scale
    assert saved(engine) == before, "parameters, running statistics and momenta are as before"
    engine._scale = LossScale(FIRST_SCALE / 2, 0, 1)
    assert engine.update(batch(2), 0.1).applied
    assert engine._scale == LossScale(FIRST_SCALE / 2, 1, 0)


def test_float16_gives_up_after_many_overflows_in_a_row() -> None:
    engine = DeepSpeedEngine(small(), recipe("precision.autocast=fp16"), CPU)
    results = [engine.update(overflowing(seed), 0.1) for seed in range(MOST_SKIPS)]
    assert [bool(result.stop) for result in results] == [False] * (MOST_SKIPS - 1) + [True]
    assert results[-1].stop == "20 updates in a row overflowed float16, down to a loss scale of 0.0625"


def test_the_loss_scale_moves_as_in_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launch.scaling.INTERVAL", 3)
    scaler = torch.amp.GradScaler("cpu", growth_interval=3)
    ours, parameter = LossScale(), nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    for norm in [1.0, 1.0, math.inf, 1.0, 1.0, 1.0, 1.0, math.nan, math.inf, *[2.0] * 7]:
        assert ours.factor == scaler.scale(torch.ones(1)).item()
        parameter.grad = torch.tensor([norm])
        scaler.step(optimizer)
        scaler.update()
        ours = ours.after(norm)
    assert ours.factor == scaler.get_scale() == FIRST_SCALE * 2**3 / 2**3


@pytest.mark.parametrize("zero", [0, 1, 2])
@pytest.mark.parametrize("choice", ["off", "fp16"])
def test_a_restored_engine_goes_on_bitwise(zero: int, choice: str) -> None:
    fields = (f"engine.zero={zero}", f"precision.autocast={choice}", "optim.clip=0.2")
    whole = small()
    engine = DeepSpeedEngine(whole, recipe(*fields), CPU)
    engine.update(batch(0), 0.1)
    engine.update(overflowing(1) if choice == "fp16" else batch(1), 0.1)
    snapshot, held = engine.snapshot(), saved(engine)
    rest = [engine.update(batch(seed), 0.1) for seed in (2, 3)]
    apart = io.BytesIO()
    torch.save((snapshot.shared, snapshot.own), apart)
    assert apart.getvalue() == held, "a snapshot is apart from what goes on training"

    other = small(seed=1)
    resumed = DeepSpeedEngine(other, recipe(*fields), CPU)
    resumed.restore(*torch.load(io.BytesIO(held), weights_only=True))
    assert resumed._scale == (LossScale(FIRST_SCALE / 2, 0, 1) if choice == "fp16" else None)
    for seed, result in zip((2, 3), rest, strict=True):
        again = resumed.update(batch(seed), 0.1)
        assert again.norm == result.norm
        assert again.losses == result.losses
    assert equal(whole.state_dict(), other.state_dict())


def test_a_checkpoint_of_another_network_is_refused() -> None:
    snapshot = DeepSpeedEngine(small(), recipe(), CPU).snapshot()
    other = small()
    other.fc = nn.Linear(8, 3)
    with pytest.raises(MstlError, match="does not fit this network"):
        DeepSpeedEngine(other, recipe(), CPU).restore(snapshot.shared, snapshot.own)
    sharded = DeepSpeedEngine(small(), recipe("engine.zero=1"), CPU)
    with pytest.raises(MstlError, match=r"engine\.zero"):
        sharded.restore(snapshot.shared, snapshot.own)


@pytest.mark.parametrize("text", ["soon", "0", "-3", "inf"])
def test_a_timeout_that_is_no_number_of_seconds_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(engine_module.TIMEOUT_VARIABLE, text)
    with pytest.raises(MstlError, match="no number of seconds"):
        engine_module._timeout()


def test_a_deepspeed_whose_group_cannot_be_given_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from deepspeed.utils import groups

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="makes its group elsewhere"):
        patch.setattr(groups, "_clone_world_group", lambda: None)
        patch.setattr(groups, "_WORLD_GROUP", groups._WORLD_GROUP)
        engine_module._share_group_with_deepspeed()
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="has no groups"):
        patch.delattr(groups, "_WORLD_GROUP")
        engine_module._share_group_with_deepspeed()
