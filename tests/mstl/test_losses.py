"""Contrastive and region losses against slow loops, closed forms and numerical gradients."""

import math
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mstl.losses import contrastive_logits, contrastive_loss, positive_first_loss, region_loss


def unit(*shape: int) -> Tensor:
    return F.normalize(torch.randn(*shape, dtype=torch.float64), dim=-1)


def slow_contrastive(
    query: Tensor, key: Tensor, queue: Tensor, temperature: float, mask: Sequence[Sequence[bool]]
) -> float:
    total = 0.0
    for b in range(len(query)):
        positive = math.exp(float(query[b] @ key[b]) / temperature)
        others = [math.exp(float(query[b] @ queue[i]) / temperature) for i in range(len(queue)) if mask[b][i]]
        total -= math.log(positive / (positive + sum(others)))
    return total / len(query)


def test_contrastive_equals_slow_loop_with_and_without_mask() -> None:
    torch.manual_seed(0)
    query, key, queue = unit(4, 8), unit(4, 8), unit(7, 8)
    mask = torch.rand(4, 7) > 0.4
    mask[2] = False
    everything = torch.ones(4, 7, dtype=torch.bool)
    expected = slow_contrastive(query, key, queue, 0.07, everything.tolist())
    assert contrastive_loss(query, key, queue, 0.07).item() == pytest.approx(expected, rel=1e-12)
    masked = contrastive_loss(query, key, queue, 0.07, negatives_mask=mask)
    assert masked.item() == pytest.approx(slow_contrastive(query, key, queue, 0.07, mask.tolist()), rel=1e-12)


def test_contrastive_closed_forms() -> None:
    one = torch.zeros(3, 4)
    one[:, 0] = 1.0
    other = torch.zeros(5, 4)
    other[:, 1] = 1.0
    assert contrastive_loss(one, one, one[:1].repeat(5, 1), 0.07).item() == pytest.approx(math.log(1 + 5), rel=1e-6)
    expected = math.log(1 + 5 * math.exp(-1 / 0.5))
    assert contrastive_loss(one, one, other, 0.5).item() == pytest.approx(expected, rel=1e-6)
    nothing = torch.zeros(3, 5, dtype=torch.bool)
    assert contrastive_loss(one, one, other, 0.5, negatives_mask=nothing).item() == 0.0


def test_contrastive_gradients_in_float64() -> None:
    torch.manual_seed(0)
    query, key, queue = unit(3, 5).requires_grad_(), unit(3, 5).requires_grad_(), unit(4, 5)
    mask = torch.tensor([[True, True, False, True]] * 3)
    assert torch.autograd.gradcheck(lambda q, k: contrastive_loss(q, k, queue, 0.3, negatives_mask=mask), (query, key))
    assert contrastive_loss(query, key, queue, 0.3).dtype == torch.float64


def test_contrastive_stays_in_float32_under_autocast() -> None:
    torch.manual_seed(0)
    query, key, queue = (unit(n, 32).float() for n in (4, 4, 50))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = contrastive_logits(query, key, queue, 0.07)
        loss = positive_first_loss(logits)
    expected = torch.cat(((query * key).sum(1, keepdim=True), query @ queue.T), dim=1) / 0.07
    assert logits.dtype == loss.dtype == torch.float32
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    assert contrastive_loss(query.bfloat16(), key.bfloat16(), queue, 0.07).dtype == torch.float32


def test_region_loss_equals_slow_loop_in_both_modes() -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 5, 5, dtype=torch.float64)
    per_image = [
        sum(-math.log(math.exp(image[i][i]) / sum(math.exp(z) for z in image[i])) for i in range(5))
        for image in logits.tolist()
    ]
    assert region_loss(logits).item() == pytest.approx(sum(per_image) / 3, rel=1e-12)
    assert region_loss(logits, "normalised").item() == region_loss(logits).item()
    assert region_loss(logits, "literal").item() == pytest.approx(sum(per_image), rel=1e-12)


def test_region_loss_closed_form_gradient_and_dtype() -> None:
    assert region_loss(torch.zeros(2, 5, 5)).item() == pytest.approx(5 * math.log(5))
    assert region_loss(100 * torch.eye(5).expand(2, 5, 5)).item() == pytest.approx(0.0, abs=1e-6)
    logits = torch.randn(2, 5, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(region_loss, (logits,))
    assert region_loss(logits.detach().bfloat16()).dtype == torch.float32
    with pytest.raises(AssertionError, match="normalized"):
        region_loss(logits, "normalized")
