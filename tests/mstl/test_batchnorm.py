"""Parted batch norm against torch's norm run on each part, and what neither it nor the joined one may change."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from mstl.models.batchnorm import (
    JoinedBatchNorm,
    PartedBatchNorm2d,
    Parts,
    even_sizes,
    join_batchnorms,
    part_batchnorms,
)
from mstl.models.registry import build_backbone


@given(images=st.integers(1, 1000), largest=st.integers(2, 300))
def test_parts_are_even_not_too_large_and_never_one_image(images: int, largest: int) -> None:
    sizes = even_sizes(images, largest)
    assert sum(sizes) == images
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= min(2, images)
    assert max(sizes) <= largest or (largest, max(sizes)) == (2, 3)
    one_fewer = len(sizes) - 1
    assert one_fewer == 0 or -(-images // one_fewer) > largest  # no more parts than needed


def test_the_papers_batches_are_parted_as_on_eight_gpus() -> None:
    assert even_sizes(256, 32) == [32] * 8
    assert even_sizes(169, 32) == [29] + [28] * 5
    assert even_sizes(256, None) == [256]
    assert even_sizes(32, 32) == [32]


def pair(parts: Parts) -> tuple[PartedBatchNorm2d, nn.BatchNorm2d]:
    """The norm and torch's, with the same scales, shifts and statistics, none of them at its start."""
    torch.manual_seed(0)
    norm = PartedBatchNorm2d(3, parts, eps=1e-3, momentum=0.3)
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            tensor.uniform_(0.5, 1.5)
    plain = nn.BatchNorm2d(3, eps=1e-3, momentum=0.3)
    plain.load_state_dict(norm.state_dict(), strict=True)
    return norm.double(), plain.double()


def images(count: int, layout: torch.memory_format) -> Tensor:
    x = torch.randn(count, 3, 4, 5, dtype=torch.float64).contiguous(memory_format=layout)
    return x.requires_grad_()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_each_part_is_normalised_by_itself(layout: torch.memory_format) -> None:
    parts = Parts()
    norm, plain = pair(parts)
    start = copy.deepcopy(plain)
    x, sizes = images(7, layout), [3, 2, 2]
    twin = x.detach().clone().requires_grad_()
    with parts.of(sizes):
        found = norm(x)
    copies = [copy.deepcopy(start) for _ in sizes]
    expected = torch.cat([one(part) for one, part in zip(copies, twin.split(sizes), strict=True)])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert found.is_contiguous(memory_format=layout)

    gradient = torch.randn_like(found)
    found.backward(gradient)
    expected.backward(gradient)
    torch.testing.assert_close(x.grad, twin.grad, rtol=1e-10, atol=1e-12)
    for name in ("weight", "bias"):
        total = sum(one.get_parameter(name).grad for one in copies)
        torch.testing.assert_close(norm.get_parameter(name).grad, total, rtol=1e-10, atol=1e-12)
    for name in ("running_mean", "running_var"):
        mean = torch.stack([one.get_buffer(name) for one in copies]).mean(0)
        torch.testing.assert_close(norm.get_buffer(name), mean, rtol=1e-12, atol=1e-12)
        assert not torch.equal(mean, start.get_buffer(name))
    assert int(norm.num_batches_tracked) == 1


@pytest.mark.parametrize("sizes", [[], [6]])
def test_one_part_is_torchs_norm_bit_for_bit(sizes: list[int]) -> None:
    parts = Parts()
    norm, plain = pair(parts)
    for own, x in zip((norm, plain), (images(6, torch.channels_last),) * 2, strict=True):
        with parts.of(sizes):
            own(x).square().sum().backward()
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in norm.state_dict().items())
    assert torch.equal(norm.weight.grad, plain.weight.grad)
    assert norm.state_dict().keys() == plain.state_dict().keys()


def test_evaluation_knows_no_parts() -> None:
    parts = Parts()
    norm, plain = pair(parts)
    x = images(6, torch.contiguous_format)
    with parts.of([3, 3]):
        assert torch.equal(norm.eval()(x), plain.eval()(x))
    assert torch.equal(norm.running_mean, plain.running_mean)


def test_parts_end_with_their_context_even_after_an_error() -> None:
    parts = Parts()
    with parts.of([2, 2]), parts.of([1, 3]):
        assert parts.sizes == [1, 3]
    with pytest.raises(RuntimeError, match="split"), parts.of([2, 2]):
        pair(parts)[0](images(5, torch.contiguous_format))
    assert parts.sizes == []


@pytest.mark.parametrize("kind", ["parted", "joined"])
def test_replacing_keeps_names_weights_and_results(kind: str) -> None:
    torch.manual_seed(0)
    network = build_backbone("resnet14-attn1")
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.running_mean, -1, 1)
    plain = copy.deepcopy(network)
    held = dict(network.named_parameters())
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    if kind == "parted":
        part_batchnorms(network, Parts())
    else:
        join_batchnorms(network)
    of_ours = [module for module in network.modules() if isinstance(module, (PartedBatchNorm2d, JoinedBatchNorm))]
    assert len(of_ours) == norms == 18
    assert list(network.state_dict()) == list(plain.state_dict())
    assert all(held[name] is parameter for name, parameter in network.named_parameters())
    x = torch.randn(3, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    for own in (network, plain):
        own(x).sum().backward()
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in network.state_dict().items())
    gradients = {name: parameter.grad for name, parameter in plain.named_parameters()}
    assert all(torch.equal(parameter.grad, gradients[name]) for name, parameter in network.named_parameters())
    assert torch.equal(network.eval()(x), plain.eval()(x))
    assert network.training is False and not any(norm.training for norm in of_ours)


def test_a_copied_encoder_is_parted_apart_from_the_first() -> None:
    parts = Parts()
    network = nn.Sequential(nn.BatchNorm2d(3))
    part_batchnorms(network, parts)
    twin = copy.deepcopy(network)
    x = images(6, torch.contiguous_format).float()
    with parts.of([3, 3]):
        assert torch.equal(twin(x), nn.BatchNorm2d(3)(x))
        assert not torch.equal(network(x), nn.BatchNorm2d(3)(x))
