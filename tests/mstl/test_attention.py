"""Eq. 1 against a slow reference, its precision under autocast, and the block that starts as the identity."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mstl.models.attention import AttentionBlock, SelfAttention2d, attend


def slow_eq1(module: SelfAttention2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """O [B, d_v, H, W] and A [B, keys, queries], element by element, from the printed equation."""
    d = module.key_channels
    weight, bias = module.qkv.weight[:, :, 0, 0].tolist(), module.qkv.bias.tolist()
    batch, _, height, width = x.shape
    n = height * width
    output = torch.zeros(batch, module.value_channels, n, dtype=torch.float64)
    weights = torch.zeros(batch, n, n, dtype=torch.float64)
    for b in range(batch):
        pixels = x[b].flatten(1).T.tolist()
        columns = [
            [bias[r] + sum(w * c for w, c in zip(weight[r], p, strict=True)) for r in range(len(weight))]
            for p in pixels
        ]
        for j in range(n):
            logits = [sum(columns[i][d + c] * columns[j][c] for c in range(d)) for i in range(n)]
            total = sum(math.exp(logit) for logit in logits)
            for i in range(n):
                weights[b, i, j] = math.exp(logits[i]) / total
                for c in range(module.value_channels):
                    output[b, c, j] += columns[i][2 * d + c] * weights[b, i, j]
    return output.unflatten(2, (height, width)), weights


def test_equals_the_printed_equation_in_float64() -> None:
    torch.manual_seed(0)
    module = SelfAttention2d(6, key_channels=2, value_channels=4).double()
    torch.nn.init.normal_(module.qkv.weight)
    torch.nn.init.normal_(module.qkv.bias)
    x = torch.randn(2, 6, 2, 3, dtype=torch.float64)
    output, weights = slow_eq1(module, x)
    torch.testing.assert_close(module(x), output, rtol=0, atol=1e-12)
    torch.testing.assert_close(module.weights(x), weights, rtol=0, atol=1e-12)
    channels_last = x.to(memory_format=torch.channels_last)
    torch.testing.assert_close(module(channels_last), output, rtol=0, atol=1e-12)


def test_defaults_to_half_the_channels() -> None:
    module = SelfAttention2d(8)
    assert (module.key_channels, module.value_channels) == (4, 4)
    assert module(torch.randn(1, 8, 5, 3)).shape == (1, 4, 5, 3)
    assert module.weights(torch.randn(1, 8, 5, 3)).shape == (1, 15, 15)


def test_columns_sum_to_one_in_float32_under_autocast() -> None:
    torch.manual_seed(0)
    module = SelfAttention2d(16)
    torch.nn.init.normal_(module.qkv.weight)
    x = torch.randn(2, 16, 6, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        weights, output = module.weights(x), module(x)
    assert weights.dtype == torch.float32
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(2, 36), rtol=0, atol=1e-6)
    assert not torch.allclose(weights.sum(dim=2), torch.ones(2, 36), atol=0.1)  # rows need not


def test_products_stay_in_float32_under_autocast() -> None:
    torch.manual_seed(0)
    query, key, value = (3 * torch.randn(2, 9, 4) for _ in range(3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = attend(query, key, value)
    expected = F.scaled_dot_product_attention(query.double(), key.double(), value.double(), scale=1.0)
    torch.testing.assert_close(inside.double(), expected, rtol=0, atol=1e-5)


def test_gradients_are_exact() -> None:
    torch.manual_seed(0)
    tensors = [torch.randn(2, 5, d, dtype=torch.float64, requires_grad=True) for d in (3, 3, 4)]
    assert torch.autograd.gradcheck(attend, tensors)


def test_a_new_block_is_the_identity_and_learns_to_be_more() -> None:
    torch.manual_seed(0)
    block = AttentionBlock(8)
    x = torch.randn(3, 8, 4, 4)
    assert torch.equal(block(x), x)
    block(x).square().sum().backward()
    assert block.norm.weight.grad.abs().sum() > 0
    torch.nn.init.ones_(block.norm.weight)
    expected = x + block.norm(block.project(block.attention(x)))
    assert torch.equal(block(x), expected)
    assert not torch.allclose(block(x), x)


def test_initial_values() -> None:
    torch.manual_seed(0)
    block = AttentionBlock(256)
    for weight in (block.attention.qkv.weight, block.project.weight):
        assert abs(weight.std().item() - 0.01) < 5e-4
        assert abs(weight.mean().item()) < 5e-4
    assert not block.attention.qkv.bias.any()
    assert list(block.state_dict())[:3] == ["attention.qkv.weight", "attention.qkv.bias", "project.weight"]
