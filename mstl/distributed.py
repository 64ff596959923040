"""Ranks working together; every function does nothing special where there is one rank or no process group."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mstl.failures import EveryRankError


def world_size() -> int:
    """Number of ranks, 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's rank, 0 without a process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


@torch.no_grad()
def gather_cat(tensor: Tensor) -> Tensor:
    """[B, ...] on every rank → [ranks * B, ...] in rank order, without gradient. B must be equal on all ranks."""
    if world_size() == 1:
        return tensor.detach()
    gathered = tensor.new_empty((world_size() * tensor.shape[0], *tensor.shape[1:]))
    dist.all_gather_into_tensor(gathered, tensor.detach().contiguous())
    return gathered


@torch.no_grad()
def exchange(tensor: Tensor, order: Tensor) -> Tensor:
    """[B, ...] on every rank → this rank's B rows of `gather_cat(tensor)[order]`, without gradient.

    order [ranks * B] int64, on the CPU: a permutation, equal on all ranks, of which each rank gets its part. Nothing
    travels but what a rank takes from another: B rows at most, where gathering brings (ranks - 1) B. B must be equal on
    all ranks.
    """
    if world_size() == 1:
        return tensor.detach().index_select(0, order.to(tensor.device))
    route = routes(order, world_size(), rank())
    leaving = tensor.detach().index_select(0, route.rows.to(tensor.device))
    arrived = torch.empty_like(leaving)
    dist.all_to_all_single(arrived, leaving, route.taken, route.given)
    return arrived.index_select(0, route.places.to(tensor.device))


@dataclass(frozen=True, kw_only=True, slots=True)
class Routes:
    """What a rank sends where in `exchange`, and where what arrives belongs; tensors are [B] int64.

    rows: its own rows as they leave, sorted by the rank that takes them. given, taken: rows to and from each rank.
    places: for each row of the result, its place in what arrives, which is sorted by the rank it comes from.
    """

    rows: Tensor
    given: list[int]
    taken: list[int]
    places: Tensor


def routes(order: Tensor, ranks: int, rank: int) -> Routes:
    """The routes of one rank for an order [ranks * B] (see `exchange`)."""
    wanted = order.view(ranks, -1)  # [taker, place]
    images = wanted.shape[1]
    owners = wanted // images
    own = owners == rank
    return Routes(
        rows=wanted[own] - rank * images,
        given=own.sum(1).tolist(),
        taken=owners[rank].bincount(minlength=ranks).tolist(),
        places=owners[rank].argsort(stable=True).argsort(),
    )


def gather_with_gradient(tensor: Tensor) -> Tensor:
    """`gather_cat` through which gradients flow: what each rank gets back is the sum of all ranks' gradients of it.

    With the engine's mean over ranks, gradients are those of the mean of the ranks' losses.
    """
    return tensor if world_size() == 1 else _Gather.apply(tensor)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, tensor: Tensor) -> Tensor:
        return gather_cat(tensor)

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        summed = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(summed)
        return summed.chunk(world_size())[rank()]


@torch.no_grad()
def check_equal_on_ranks(what: str, tensors: Iterable[Tensor]) -> None:
    """Raise MstlError on every rank when these tensors are not bit for bit the same on all of them.

    One number a rank is exchanged, so this is cheap enough for every checkpoint.
    """
    if world_size() == 1:
        return
    found = gather_cat(torch.stack([fingerprint(tensor) for tensor in tensors])[None])
    others = (found != found[0]).any(1).nonzero().flatten().tolist()
    if others:
        raise EveryRankError(
            what,
            why=f"rank{'s' if len(others) > 1 else ''} {', '.join(map(str, others))} and rank 0 hold different values",
            remedy="Continue from the newest checkpoint; if it happens again, test the memory and links of those ranks",
        )


_CHUNK = 1 << 20  # elements fingerprinted at a time: keeps what is needed besides the tensor at some tens of MB


@torch.no_grad()
def fingerprint(tensor: Tensor) -> Tensor:
    """A 64-bit number (scalar int64, on the tensor's device) of its bits and their order.

    The sum over elements of their bits times an odd number of their place, modulo 2^64: one changed element always
    shows, and several or a permutation all but surely do.
    """
    flat = tensor.detach().contiguous().flatten().view(_BITS[tensor.element_size()])
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    for start in range(0, len(flat), _CHUNK):
        bits = flat[start : start + _CHUNK].to(torch.int64)
        place = torch.arange(start + 1, start + 1 + len(bits), device=tensor.device)
        place *= -7046029254386353131  # SplitMix64's odd constant, 0x9E3779B97F4A7C15, as a signed number
        place ^= place >> 29
        total += (bits * (place | 1)).sum()
    return total


_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@torch.no_grad()
def average_batchnorm_(module: nn.Module) -> None:
    """Replace the running means and variances of all batch norms by their mean over the ranks, in place.

    Each rank sees its own images, so without this what is evaluated, or handed on as weights, would depend on the rank.
    For both, at an epoch's end: a checkpoint within an epoch keeps each rank's own, lest saving change what is learned.
    """
    statistics = [
        statistic
        for norm in module.modules()
        if isinstance(norm, nn.modules.batchnorm._BatchNorm)
        for statistic in (norm.running_mean, norm.running_var)
        if statistic is not None
    ]
    if world_size() == 1 or not statistics:
        return
    flat = mean_over_ranks_(torch.cat(statistics))  # one message instead of two for every layer
    for statistic, mean in zip(statistics, torch.split(flat, [len(s) for s in statistics]), strict=True):
        statistic.copy_(mean)


def barrier() -> None:
    """Wait for all ranks."""
    if world_size() > 1:
        dist.barrier()


@torch.no_grad()
def mean_over_ranks_(values: Tensor) -> Tensor:
    """The mean of a tensor over the ranks, in place; equal on all of them."""
    if world_size() > 1:
        dist.all_reduce(values)
        values /= world_size()
    return values
