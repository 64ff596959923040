"""Memory of the attention layer: channels_last in and out without a copy, and what pooling and scaling change."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from mstl.models import attention
from mstl.models.attention import AttentionBlock, AttentionOptions, SelfAttention2d

COPIES = ("aten::copy_", "aten::clone", "aten::contiguous", "aten::_to_copy", "aten::cat")


def opened(channels: int = 64, **options: object) -> SelfAttention2d:
    module = SelfAttention2d(channels, **options)  # type: ignore[arg-type]
    torch.nn.init.normal_(module.qkv.weight, std=0.1)
    torch.nn.init.normal_(module.qkv.bias)
    return module


def image(channels: int = 64, height: int = 7, width: int = 5) -> Tensor:
    return torch.randn(3, channels, height, width).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_channels_last_goes_in_and_out_without_a_copy(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = opened(backend=backend), image()
    seen: dict[str, Tensor] = {}
    plain = attention.attend_packed

    def attend_packed(packed: Tensor, d_k: int, *, scale: float, backend: str) -> Tensor:
        seen["packed"], seen["out"] = packed, plain(packed, d_k, scale=scale, backend=backend)
        return seen["out"]

    monkeypatch.setattr(attention, "attend_packed", attend_packed)
    with torch.no_grad():
        module(x)  # whatever is set up once
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            out = module(x)
    # On a CPU, addmm lays the bias out first: no pass over the maps that were.
    copies = [event for event in profiled.events() if event.name in COPIES]
    counted = Counter(event.name for event in copies if event.cpu_parent.name != "aten::addmm")
    assert not counted, counted
    assert seen["packed"].is_contiguous()  # position-major: one GEMM wrote it
    assert seen["packed"].shape == (3, 35, 96)
    assert seen["out"].stride() == (35 * 32, 32, 1)
    assert out.data_ptr() == seen["out"].data_ptr()
    assert out.shape == (3, 32, 7, 5)
    assert out.is_contiguous(memory_format=torch.channels_last)


def test_queries_keys_and_values_are_views_of_one_projection(monkeypatch: pytest.MonkeyPatch) -> None:
    from mstl.models import attend

    seen: list[Tensor] = []
    plain = attend.attend

    def spy(query: Tensor, key: Tensor, value: Tensor, *, scale: float, backend: str) -> Tensor:
        seen.extend((query, key, value))
        return plain(query, key, value, scale=scale, backend=backend)

    monkeypatch.setattr(attend, "attend", spy)
    opened(key_channels=16, value_channels=48)(image())
    assert [part.shape[2] for part in seen] == [16, 16, 48]
    assert len({part.untyped_storage().data_ptr() for part in seen}) == 1
    assert [part.storage_offset() for part in seen] == [0, 16, 32]
    assert {part.stride() for part in seen} == {(35 * 80, 80, 1)}


def test_gradients_come_back_in_channels_last() -> None:
    module, x = opened(), image().requires_grad_()
    module(x).square().sum().backward()
    assert x.grad is not None
    assert x.grad.is_contiguous(memory_format=torch.channels_last)


def test_the_projection_is_the_convolution_it_is_saved_as() -> None:
    module, x = opened().double(), image().double()
    query, key, value = torch.split(module.qkv(x).flatten(2).mT, [32, 32, 32], dim=2)
    expected = (torch.softmax(query @ key.mT, dim=2) @ value).mT.reshape(3, 32, 7, 5)
    torch.testing.assert_close(module(x), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(module(x.contiguous()), expected, rtol=0, atol=1e-12)
    assert {name: tuple(v.shape) for name, v in module.state_dict().items()} == {
        "qkv.weight": (96, 64, 1, 1),
        "qkv.bias": (96,),
    }


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize(("pool", "scale"), [(2, 1.0), (3, 0.25), (1, 0.25), (9, 1.0)])
def test_pooling_and_scale_are_those_of_non_local_networks(backend: str, pool: int, scale: float) -> None:
    module, x = opened(backend=backend, pool=pool, scale=scale).double(), image().double()
    query, key, value = torch.split(module.qkv(x), [32, 32, 32], dim=1)
    key, value = (slow_pool(part, pool) for part in (key, value))
    logits = torch.einsum("bcq,bck->bkq", query.flatten(2), key.flatten(2)) * scale
    weights = torch.softmax(logits, dim=1)
    expected = torch.einsum("bck,bkq->bcq", value.flatten(2), weights).unflatten(2, (7, 5))
    torch.testing.assert_close(module(x), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(module.weights(x), weights, rtol=0, atol=1e-12)
    assert module.grid(7, 5) == tuple(key.shape[2:])


def slow_pool(maps: Tensor, side: int) -> Tensor:
    """Maxima of squares, those at the border smaller."""
    height, width = maps.shape[2:]
    rows = [
        torch.stack([maps[:, :, i : i + side, j : j + side].amax((2, 3)) for j in range(0, width, side)], dim=2)
        for i in range(0, height, side)
    ]
    return torch.stack(rows, dim=2)


def test_a_block_takes_its_options() -> None:
    block = AttentionBlock(64, AttentionOptions(backend="sdpa", root_scale=True, pool=2))
    assert (block.attention.backend, block.attention.pool) == ("sdpa", 2)
    assert block.attention.scale == pytest.approx(32**-0.5)
    plain = AttentionBlock(64)
    assert (plain.attention.backend, plain.attention.scale, plain.attention.pool) == ("auto", 1.0, 1)
    with pytest.raises(AssertionError, match="flash"):
        SelfAttention2d(8, backend="flash")


def test_auto_is_eager_until_it_is_settled() -> None:
    module, x = opened(), image()
    eager = module(x)
    module.backend = "eager"
    assert torch.equal(module(x), eager)


def test_half_precision_is_projected_in_half_and_attended_in_float32() -> None:
    module, x = opened(), image()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = module(x)
    assert out.dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        packed = F.linear(x.permute(0, 2, 3, 1), module.qkv.weight.flatten(1), module.qkv.bias).flatten(1, 2)
    query, key, value = packed.double().split(32, dim=2)
    expected = torch.softmax(query @ key.mT, dim=2) @ value
    assert (out.permute(0, 2, 3, 1).flatten(1, 2) - expected).norm() <= 2e-3 * expected.norm()
