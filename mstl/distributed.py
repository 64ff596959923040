"""Ranks working together; every function does nothing special where there is one rank or no process group."""

import torch
import torch.distributed as dist
from torch import Tensor, nn


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
def average_batchnorm_(module: nn.Module) -> None:
    """Replace the running means and variances of all batch norms by their mean over the ranks, in place.

    Each rank sees its own images, so without this what is evaluated or saved would depend on the rank.
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
