"""Averaging gradients over ranks while backward is still running, for ZeRO stage 0."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn

BUCKET_BYTES = 25 * 2**20  # DDP's: large enough for the network's bandwidth, small enough to start early
_ALIGNMENT = 16  # elements; vector instructions want every gradient to start on 64 bytes


class GradientBuckets:
    """The gradients of some parameters, summed over the ranks in flat buckets as soon as backward has made them.

    DeepSpeed waits for the end of backward, copies all gradients into one tensor, sums, scales and copies back. Here
    each gradient is copied once, into its bucket, and `parameter.grad` becomes a view of it; a full bucket is on its
    way while earlier layers are still computed.

    Buckets are filled from the last parameter to the first, about the order of backward, and always sent in that
    order. It is fixed, not learnt from the first step as DDP does: a sum's rounding depends on it, and a resumed run
    must repeat the undisturbed one.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], *, bucket_bytes: int = BUCKET_BYTES) -> None:
        """Lay out the buckets in the memory format that the parameters have now; it must not change later."""
        self._world = dist.get_world_size()
        self._armed = False
        self._sent = 0
        self._parameters = list(parameters)
        self._buckets = [] if self._world == 1 else _fill_buckets(self._parameters, bucket_bytes)
        for bucket in self._buckets:
            for parameter in bucket.parameters:
                hook = partial(self._ready, bucket)
                parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]

    def arm(self) -> None:
        """Reduce in the next backward; without it gradients are only accumulated."""
        self._armed, self._sent = True, 0
        for bucket in self._buckets:
            bucket.missing = len(bucket.parameters)

    def finish(self) -> list[Tensor]:
        """Wait for the sums behind an armed backward; flat tensors that hold all gradients (and zeros between them).

        A parameter that took no part has a zero gradient. With one rank the gradients themselves are returned.
        """
        self._armed = False
        if self._world == 1:
            return [self._gradient(parameter) for parameter in self._parameters]
        for bucket in self._buckets[self._sent :]:
            bucket.send()
        for bucket in self._buckets:
            bucket.wait()
        return [bucket.flat for bucket in self._buckets]

    @staticmethod
    def _gradient(parameter: nn.Parameter) -> Tensor:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        return parameter.grad

    def _ready(self, bucket: _Bucket, parameter: nn.Parameter) -> None:  # noqa: ARG002 - the signature of a hook
        if not self._armed:
            return
        bucket.missing -= 1
        # A bucket may be full before an earlier one; ranks must send in one order.
        while self._sent < len(self._buckets) and self._buckets[self._sent].missing == 0:
            self._buckets[self._sent].send()
            self._sent += 1


class _Bucket:
    """Some parameters, and their gradients side by side in one tensor."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        starts, end = [], 0
        for parameter in parameters:
            starts.append(end)
            end += -(-parameter.numel() // _ALIGNMENT) * _ALIGNMENT
        self.parameters = parameters
        self.missing = len(parameters)
        self.flat = torch.zeros(end, dtype=parameters[0].dtype, device=parameters[0].device)
        # With the parameter's own strides (channels_last), so that optimizers see both in one order.
        self._views = [
            torch.as_strided(self.flat, parameter.size(), parameter.stride(), start)
            for parameter, start in zip(parameters, starts, strict=True)
        ]
        self._work: dist.Work | None = None

    @torch.no_grad()
    def send(self) -> None:
        views, gradients = [], []
        for parameter, view in zip(self.parameters, self._views, strict=True):
            if parameter.grad is None:
                view.zero_()
            elif parameter.grad.data_ptr() != view.data_ptr():
                views.append(view)
                gradients.append(parameter.grad)
            parameter.grad = view
        if views:
            torch._foreach_copy_(views, gradients)
        self._work = dist.all_reduce(self.flat, async_op=True)

    def wait(self) -> None:
        assert self._work is not None
        self._work.wait()
        self._work = None


def _fill_buckets(parameters: Sequence[nn.Parameter], limit: int) -> list[_Bucket]:
    buckets: list[list[nn.Parameter]] = []
    size = 0
    for parameter in reversed(parameters):
        own = parameter.numel() * parameter.element_size()
        alike = bool(buckets) and buckets[-1][-1].dtype == parameter.dtype
        if not alike or size + own > limit:
            buckets.append([])
            size = 0
        buckets[-1].append(parameter)
        size += own
    return [_Bucket(bucket) for bucket in buckets]
