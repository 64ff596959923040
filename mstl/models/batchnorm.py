"""Batch norms whose statistics are of a part of the rank's batch, or of all ranks' batches together.

Both have the names of torch's batch norms, so checkpoints do not tell them apart; in evaluation mode, and wherever
there is nothing to part or to join, they are torch's bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mstl.distributed import gather_cat, world_size
from mstl.precision import no_autocast, widen


class Parts:
    """How a batch is parted for batch norm: `sizes` of consecutive images, empty for all together.

    One object is shared by all norms of an encoder (a deep copy of the encoder has its own). Whoever runs the encoder
    says how the batch at hand is parted: `with parts.of(sizes): encoder(images)`.
    """

    def __init__(self) -> None:
        self.sizes: list[int] = []

    @contextmanager
    def of(self, sizes: list[int]) -> Iterator[None]:
        """Part batches like this inside the context; their length is the sum of sizes."""
        outer, self.sizes = self.sizes, sizes
        try:
            yield
        finally:
            self.sizes = outer


def even_sizes(images: int, largest: int | None) -> list[int]:
    """Part a batch as evenly as possible into parts of at most `largest` images (None: one part).

    A single image has no statistics worth the name, so none is left alone: 3 images in parts of 2 stay together.
    """
    assert largest is None or largest >= 2, largest
    parts = 1 if largest is None else max(1, min(-(-images // largest), images // 2))
    return [images // parts + (index < images % parts) for index in range(parts)]


class PartedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm within each part of the batch by itself, as if the parts were on GPUs of their own.

    Running statistics move by the mean over the parts of what each alone would do, as if those GPUs' were averaged.
    """

    def __init__(self, channels: int, parts: Parts, *, eps: float, momentum: float) -> None:
        super().__init__(channels, eps=eps, momentum=momentum)
        self.rate = momentum
        self.parts = parts

    def forward(self, x: Tensor) -> Tensor:
        sizes = self.parts.sizes
        if not self.training or len(sizes) < 2:
            return super().forward(x)
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        means, variances = self.running_mean.repeat(len(sizes), 1), self.running_var.repeat(len(sizes), 1)
        normalised = torch.cat(
            [
                F.batch_norm(part, mean, variance, self.weight, self.bias, True, self.rate, self.eps)
                for part, mean, variance in zip(torch.split(x, sizes), means, variances, strict=True)
            ]
        )
        with torch.no_grad():
            self.running_mean.copy_(means.mean(0))
            self.running_var.copy_(variances.mean(0))
            self.num_batches_tracked += 1
        return normalised


class JoinedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm over the batches of all ranks together; [B, C, ...], B of any size on each rank.

    torch's SyncBatchNorm runs on GPUs alone and makes the host wait for each of its layers. Gradients are those of the
    mean of all ranks' losses, once averaged over the ranks as the engine does. As much is kept for backward as torch's
    norm keeps: the input as it came, and channel vectors.
    """

    def __init__(self, channels: int, *, eps: float, momentum: float) -> None:
        super().__init__(channels, eps=eps, momentum=momentum)
        self.rate = momentum

    def _check_input_dim(self, input: Tensor) -> None:
        assert input.ndim >= 2

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or world_size() == 1:
            return super().forward(x)
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        with no_autocast(x):
            mean, variance, values = _statistics_of_all_ranks(x)
            normalised: Tensor = _Normalise.apply(x, self.weight, self.bias, mean, variance, values, self.eps)
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.rate)
            self.running_var.lerp_(variance * (values / (values - 1)), self.rate)
            self.num_batches_tracked += 1
        return normalised


@torch.no_grad()
def _statistics_of_all_ranks(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance of each channel, [C], and the number of values of one, scalar; float32 or wider.

    Ranks exchange a count, means and variances, not sums of squares: those lose the digits of a small variance about a
    large mean (Chan et al. 1983, eq. 2.1, for any number of parts).
    """
    variances, means = torch.var_mean(widen(x), _all_but_channels(x), correction=0)
    count = means.new_full((1,), x.numel() // x.shape[1])
    found = gather_cat(torch.cat((count, means, variances))[None])
    counts, means, variances = torch.split(found, [1, x.shape[1], x.shape[1]], dim=1)
    values = counts.sum()
    shares = counts / values
    mean = (shares * means).sum(0)
    return mean, (shares * (variances + (means - mean).square())).sum(0), values


class _Normalise(torch.autograd.Function):
    """(x - mean) / sqrt(variance + eps) · weight + bias, where mean and variance are functions of all ranks' x.

    torch's own kernels for given statistics do the wide work, without a float32 copy of half-precision images. Their
    backward takes the statistics for constants; what is missing is linear in x, and needs the two sums over the images
    of all ranks that Ioffe & Szegedy 2015 (section 3) give.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, values: Tensor, eps: float
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, variance, values)
        ctx.eps = eps
        return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, variance, values = ctx.saved_tensors
        of_x, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            gradient, x, weight, mean, variance, None, None, False, ctx.eps, [True, True, True]
        )
        # A rank's own sums are the gradients of weight and bias; x is moved by those of all ranks.
        sums = torch.stack((of_weight, of_bias))
        dist.all_reduce(sums)
        by_normalised, plain = sums / values
        deviation = torch.sqrt(variance + ctx.eps)
        slope = weight * by_normalised / (variance + ctx.eps)
        shift = weight * plain / deviation - slope * mean
        shape = (1, -1, *[1] * (x.ndim - 2))
        of_x -= torch.addcmul(shift.view(shape), x, slope.view(shape))
        return of_x, of_weight, of_bias, None, None, None, None


def _all_but_channels(x: Tensor) -> tuple[int, ...]:
    return (0, *range(2, x.ndim))


def part_batchnorms(network: nn.Module, parts: Parts) -> None:
    """Replace the 2d batch norms of a network by `PartedBatchNorm2d` of the same weights and statistics, in place."""
    _replace(network, lambda norm: PartedBatchNorm2d(norm.num_features, parts, eps=norm.eps, momentum=_rate(norm)))


def join_batchnorms(network: nn.Module) -> None:
    """Replace the 2d batch norms of a network by `JoinedBatchNorm` of the same weights and statistics, in place."""
    _replace(network, lambda norm: JoinedBatchNorm(norm.num_features, eps=norm.eps, momentum=_rate(norm)))


def _rate(norm: nn.BatchNorm2d) -> float:
    assert norm.momentum is not None, "running averages over all batches are not supported"
    return norm.momentum


def _replace(network: nn.Module, make: Callable[[nn.BatchNorm2d], nn.Module]) -> None:
    for name, child in network.named_children():
        if isinstance(child, nn.BatchNorm2d):
            new = make(child)
            new.weight, new.bias = child.weight, child.bias
            for buffer, value in child.named_buffers():
                setattr(new, buffer, value)
            setattr(network, name, new.train(child.training))
        else:
            _replace(child, make)
