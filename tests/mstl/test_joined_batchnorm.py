"""Batch norm over all ranks, on two real gloo ranks with unequal batches, against torch's over all images together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call
from torch.multiprocessing.spawn import spawn

from mstl.distributed import gather_cat
from mstl.models.batchnorm import JoinedBatchNorm

PARTS = (slice(0, 4), slice(4, 6))  # four images on one rank, two on the other
CHANNELS = 3
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def case(name: str) -> tuple[Tensor, Tensor]:
    """Images of all ranks, far from zero mean, and a gradient of the output; float64."""
    generator = torch.Generator().manual_seed(8)
    shape = (6, CHANNELS) if name == "vectors" else (6, CHANNELS, 2, 5)
    x = 100 + torch.randn(shape, dtype=torch.float64, generator=generator)
    gradient = torch.randn(shape, dtype=torch.float64, generator=generator)
    return x, torch.ones(1, dtype=torch.float64).expand(shape) if name == "expanded" else gradient


def with_state(norm: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(9)
    state = {name: 0.5 + torch.rand(CHANNELS, generator=generator) for name in ("weight", "bias", "running_var")}
    norm.load_state_dict(state, strict=False)
    return norm.double()


def joined() -> nn.Module:
    return with_state(JoinedBatchNorm(CHANNELS, eps=1e-4, momentum=0.3))


def results(norm: nn.Module, x: Tensor, gradient: Tensor) -> dict[str, Tensor]:
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    out = norm(x)
    out.backward(gradient.to(out.dtype))
    assert x.grad is not None
    found = {"out": out.detach(), "x": x.grad}
    for name, parameter in norm.named_parameters():
        assert parameter.grad is not None
        found[name] = parameter.grad
    return {**found, **{name: value.clone() for name, value in norm.named_buffers()}}


@contextmanager
def counted(calls: list[tuple[str, int]]) -> Iterator[None]:
    """Note the name and the number of elements sent of every exchange between the ranks."""
    with pytest.MonkeyPatch.context() as patch:
        for name, sent in (("all_reduce", 0), ("all_gather_into_tensor", 1)):
            patch.setattr(dist, name, noting(name, sent, getattr(dist, name), calls))
        yield


def noting(name: str, sent: int, real: Callable[..., Any], calls: list[tuple[str, int]]) -> Callable[..., Any]:
    def call(*args: Any, **options: Any) -> Any:
        calls.append((name, args[sent].numel()))
        return real(*args, **options)

    return call


def saved_bytes(norm: nn.Module, x: Tensor) -> int:
    """Bytes of what a forward keeps for backward, each piece of memory once."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        norm(x)
    return sum(kept.values())


class Everybodys(torch.autograd.Function):
    """The same tensor on all ranks: its gradient is the mean of theirs."""

    @staticmethod
    def forward(_: Any, tensor: Tensor) -> Tensor:
        return tensor.clone()

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total / dist.get_world_size()


class Together(torch.autograd.Function):
    """Outputs of unequal length of all ranks → all of them on each: their gradients are the sum of the ranks'."""

    @staticmethod
    def forward(_: Any, own: Tensor) -> Tensor:
        longest = max(part.stop - part.start for part in PARTS)
        padded = own.new_zeros((longest, *own.shape[1:]))
        padded[: len(own)] = own
        gathered = gather_cat(padded).chunk(len(PARTS))
        return torch.cat([rows[: part.stop - part.start] for rows, part in zip(gathered, PARTS, strict=True)])

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total[PARTS[dist.get_rank()]]


def numerical_gradients_agree() -> bool:
    """Both ranks perturb the images of both in step, and both see the outputs of both."""
    norm, part = joined(), PARTS[dist.get_rank()]

    def outputs(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        state = {"weight": Everybodys.apply(weight), "bias": Everybodys.apply(bias)}
        own: Tensor = functional_call(norm, state, (Everybodys.apply(x)[part],))
        return Together.apply(own)

    generator = torch.Generator().manual_seed(10)
    shapes = ((6, CHANNELS, 2), (CHANNELS,), (CHANNELS,))
    given = [torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_() for shape in shapes]
    return torch.autograd.gradcheck(outputs, given)


def worker(index: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=index, world_size=2)
    part = PARTS[index]
    found: dict[str, Any] = {}
    for name in ("vectors", "expanded"):
        x, gradient = case(name)
        found[name] = results(joined(), x[part], gradient[part])
    x, gradient = case("images")
    for name, layout in LAYOUTS.items():
        own = x[part].contiguous(memory_format=layout)
        found[name] = results(joined(), own, gradient[part])
        assert found[name]["out"].is_contiguous(memory_format=layout)
        assert found[name]["x"].is_contiguous(memory_format=layout)
        assert results(joined(), own, gradient[part].contiguous())["x"].equal(found[name]["x"])
    for dtype in (torch.bfloat16, torch.float16):
        found[str(dtype)] = results(joined().float(), x[part].to(dtype) - 100, gradient[part])
    for dtype in (torch.bfloat16, torch.float32):
        own = (x[part].to(dtype) - 100).requires_grad_()
        found[f"saved {dtype}"] = [saved_bytes(norm, own) for norm in (joined().float(), nn.BatchNorm2d(CHANNELS))]
    found["calls"] = []
    with counted(found["calls"]):
        results(joined(), x[part], gradient[part])
    found["gradcheck"] = numerical_gradients_agree()
    torch.save(found, Path(folder) / f"rank{index}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("joined")
    spawn(worker, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"rank{index}.pt", weights_only=True) for index in (0, 1)]


@pytest.mark.parametrize("name", ["contiguous", "channels_last", "vectors", "expanded"])
def test_it_is_torchs_norm_over_the_images_of_all_ranks(ranks: list[dict[str, Any]], name: str) -> None:
    x, gradient = case(name)
    kind = nn.BatchNorm1d if name == "vectors" else nn.BatchNorm2d
    expected = results(with_state(kind(CHANNELS, eps=1e-4, momentum=0.3)), x, gradient)
    one, two = (found[name] for found in ranks)
    close = {"rtol": 1e-9, "atol": 1e-10}
    for key in ("out", "x"):
        torch.testing.assert_close(torch.cat((one[key], two[key])), expected[key], **close)
    for key in ("weight", "bias"):
        torch.testing.assert_close(one[key] + two[key], expected[key], **close)
        assert not torch.equal(one[key], two[key])  # each rank's own: the engine sums them
    for key in ("running_mean", "running_var"):
        torch.testing.assert_close(one[key], expected[key], **close)
        assert torch.equal(one[key], two[key])
    assert int(one["num_batches_tracked"]) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once_and_its_gradient_twice(ranks: list[dict[str, Any]], dtype: torch.dtype) -> None:
    """Against float64 of the same images; the gradient's two terms are rounded apart, then their difference."""
    x, gradient = case("images")
    whole = torch.cat([x[part].to(dtype) - 100 for part in PARTS]).double()
    norm = with_state(nn.BatchNorm2d(CHANNELS, eps=1e-4, momentum=0.3))
    expected = results(norm, whole, gradient.to(dtype))
    one, two = (found[str(dtype)] for found in ranks)
    assert one["out"].dtype == one["x"].dtype == dtype
    deviation = torch.sqrt(whole.var((0, 2, 3), correction=0) + 1e-4)
    first_term = gradient * (norm.get_parameter("weight").detach() / deviation).view(1, -1, 1, 1)
    terms = {"out": expected["out"].abs(), "x": expected["x"].abs() + first_term.abs()}
    half_a_step = torch.finfo(dtype).eps / 2
    for key, size in terms.items():
        wrong = (torch.cat((one[key], two[key])).double() - expected[key]).abs()
        assert (wrong / size).max() < 1.05 * half_a_step, key
    for key in ("weight", "bias"):
        assert one[key].dtype == torch.float32
        torch.testing.assert_close((one[key] + two[key]).double(), expected[key], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(one["running_var"].double(), expected["running_var"], rtol=1e-6, atol=1e-6)


def test_gradients_are_those_of_small_steps_on_both_ranks(ranks: list[dict[str, Any]]) -> None:
    assert [found["gradcheck"] for found in ranks] == [True, True]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_it_keeps_no_more_than_torchs_norm(ranks: list[dict[str, Any]], dtype: torch.dtype) -> None:
    for found, part in zip(ranks, PARTS, strict=True):
        ours, theirs = found[f"saved {dtype}"]
        values = (part.stop - part.start) * CHANNELS * 2 * 5
        assert values * dtype.itemsize < ours <= theirs


def test_one_exchange_each_way_of_channel_vectors(ranks: list[dict[str, Any]]) -> None:
    expected = [("all_gather_into_tensor", 1 + 2 * CHANNELS), ("all_reduce", 2 * CHANNELS)]
    assert [found["calls"] for found in ranks] == [expected, expected]
