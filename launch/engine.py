"""The DeepSpeed engine behind `mstl.engine.Engine`; nothing else imports deepspeed."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from launch.batches import split
from launch.compiling import compile_networks
from launch.config import build_config, check_read_back
from launch.gradients import GradientBuckets
from launch.scaling import LossScale
from mstl.distributed import rank, world_size
from mstl.engine import Snapshot, StepResult
from mstl.failures import RankLostError, between_ranks, in_words
from mstl.optim import build_optimizer
from mstl.precision import autocast_dtype
from mstl.recipes import Recipe
from pipelines.batch import Batch
from shards.errors import MstlError

TIMEOUT = timedelta(minutes=10)
TIMEOUT_VARIABLE = "MSTL_GROUP_TIMEOUT"
"""Seconds that a rank waits for the others, in joining and in every exchange, instead of TIMEOUT."""


def start_processes() -> None:
    """Join the process group that the launcher's environment describes; raises MstlError when it cannot be formed."""
    import deepspeed
    import deepspeed.ops
    from deepspeed.utils import logger

    # Its warnings (an "untested optimizer" under ZeRO, every overflow) are about what is tested and told here.
    logger.setLevel(logging.ERROR)
    # The shared-memory op is compiled on first use (a minute, and a crash without a compiler); gloo does its work.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend = "gloo"
    if torch.cuda.is_available():
        backend = "nccl"
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    limit = _timeout()
    if os.environ["WORLD_SIZE"] == "1":
        # Alone there is nobody to meet: no port is opened, and none can be taken. DeepSpeed joins what it finds.
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    try:
        deepspeed.init_distributed(dist_backend=backend, timeout=limit, verbose=False)
    except (RuntimeError, ValueError) as error:
        raise MstlError(
            f"process group of {os.environ['WORLD_SIZE']} ranks",
            why=f"it could not be formed ({in_words(error)})",
            remedy="Check that {MASTER_ADDR}:{MASTER_PORT} is free and that every node reaches it".format(**os.environ),
        ) from error
    _share_group_with_deepspeed()


def _timeout() -> timedelta:
    text = os.environ.get(TIMEOUT_VARIABLE)
    if text is None:
        return TIMEOUT
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise MstlError(
            f"{TIMEOUT_VARIABLE}={text}", why="it is no number of seconds", remedy="Set it to 600, or leave it unset"
        )
    return timedelta(seconds=seconds)


def _share_group_with_deepspeed() -> None:
    """Let DeepSpeed reduce gradients over the group of every other exchange, in place of a copy of its own.

    SimCLR's norms and ZeRO 1 and 2 both exchange in backward: over two NCCL communicators they may be in flight
    together, on each GPU in another order, and wait for each other for ever. One group has one order, that of the
    calls, which autograd makes alike on all ranks. Besides, the copy has torch's timeout (gloo 30 minutes), not ours.
    """
    from deepspeed.utils import groups

    # Private, and the only way: a DeepSpeed that has renamed it must not go on with the long wait unnoticed.
    if not hasattr(groups, "_WORLD_GROUP") or not hasattr(groups, "_clone_world_group"):
        raise RuntimeError("this DeepSpeed has no groups._WORLD_GROUP: its group cannot be set")
    groups._WORLD_GROUP = dist.group.WORLD
    if groups._clone_world_group() is not groups._WORLD_GROUP:
        raise RuntimeError("this DeepSpeed makes its group elsewhere: it cannot be set")


class _Autocast(nn.Module):
    """What DeepSpeed calls: a module under autocast, which DeepSpeed would switch off if it were entered outside."""

    def __init__(self, module: nn.Module, device: torch.device, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.module = module
        self._autocast = torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        with self._autocast:
            return cast(dict[str, Tensor], self.module(batch))


class DeepSpeedEngine:
    """A DeepSpeed engine at ZeRO stage 0, 1 or 2 with torch.autocast: parameters and BatchNorm stay in float32.

    At stage 0 DeepSpeed's reduction behind backward gives way to our own during it (`launch.gradients`), which also
    clips; at 1 and 2 both are DeepSpeed's.
    """

    def __init__(
        self,
        module: nn.Module,
        recipe: Recipe,
        device: torch.device,
        *,
        memory_format: torch.memory_format = torch.channels_last,
    ) -> None:
        """Move the module to the device and wrap it; all ranks call it (parameters are broadcast from rank 0).

        memory_format: of the weights at ZeRO stage 0, the faster one; benchmarks compare the other.
        """
        import deepspeed

        self._device = device
        self._module = module
        self._clip = recipe.optim.clip
        self._parts = recipe.engine.accumulate
        dtype = autocast_dtype(recipe.precision, device)
        self._scale = LossScale() if dtype == torch.float16 else None
        config = build_config(recipe, world_size())
        module.to(device)
        if recipe.engine.compile:
            compile_networks(module)
        self._engine, *_ = deepspeed.initialize(
            model=_Autocast(module, device, dtype),
            optimizer=build_optimizer(module.named_parameters(), recipe.optim),
            config=config.model_dump(),
        )
        check_read_back(config, self._engine)
        self._kept = [value.clone() for value in self._running()] if self._scale is not None else []
        self._buckets: GradientBuckets | None = None
        if recipe.engine.zero == 0:
            # Before initialize() channels_last weights crash DeepSpeed's broadcast; ZeRO 1 and 2 have flattened them.
            module.to(memory_format=memory_format)
            self._engine.enable_backward_allreduce = False
            self._buckets = GradientBuckets([p for p in module.parameters() if p.requires_grad])

    @property
    def module(self) -> nn.Module:
        return self._module

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """What holds the state from step to step."""
        return cast(torch.optim.Optimizer, self._engine.optimizer)

    def update(self, batch: Batch, lr: float) -> StepResult:
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        if self._scale is not None:
            torch._foreach_copy_(self._kept, self._running())
        try:
            losses = self._forward_and_backward(batch)
            norm = self._step()
        except RuntimeError as error:
            if not between_ranks(error):
                raise
            raise RankLostError(
                f"rank {rank()} of {world_size()}",
                why=f"another rank did not take part in the step ({in_words(error)})",
                remedy="Look for the first error of another rank or node; the same command goes on behind what was "
                f"saved ({TIMEOUT_VARIABLE} sets for how many seconds a rank waits)",
            ) from error
        stop = ""
        if self._scale is not None:
            self._scale = self._scale.after(norm)
            if not math.isfinite(norm):
                # Activations that overflow on the way forward leave their mark on the running statistics.
                torch._foreach_copy_(self._running(), self._kept)
            if self._scale.exhausted:
                stop = f"{self._scale.skipped} updates in a row overflowed float16, down to a loss scale of "
                stop += f"{self._scale.factor:g}"
        elif not math.isfinite(norm):
            stop = "the gradient is not finite"
        return StepResult(losses=losses, norm=norm, applied=math.isfinite(norm), stop=stop)

    def _forward_and_backward(self, batch: Batch) -> dict[str, Tensor]:
        """Accumulate the gradients of a batch, part by part; returns the means of the losses over the batch."""
        scale = 1.0 if self._scale is None else self._scale.factor
        factor = 1.0
        if self._buckets is not None:
            factor = scale / world_size()  # so that sums over the ranks are means
        elif self._scale is not None:
            self._engine.optimizer.override_loss_scale(scale)  # ZeRO multiplies, divides and averages itself
        parts = split(batch, self._parts)
        total: dict[str, Tensor] = {}
        for number, part in enumerate(parts):
            last = number + 1 == len(parts)
            self._engine.set_gradient_accumulation_boundary(last)
            if last and self._buckets is not None:
                self._buckets.arm()
            losses: dict[str, Tensor] = self._engine(part)
            share = len(part) / len(batch)
            self._engine.backward(losses["loss"] * (share * factor) if share * factor != 1 else losses["loss"])
            for name, value in losses.items():
                value = value.detach() * share if share != 1 else value.detach()
                total[name] = total[name] + value if name in total else value
        return total

    @torch.no_grad()
    def _step(self) -> float:
        """Apply the accumulated gradients if they are finite; returns their norm before clipping."""
        if self._buckets is None:
            self._engine.step()
            return float(self._engine.get_global_grad_norm())
        gradients = self._buckets.finish()
        if self._scale is not None:
            torch._foreach_mul_(gradients, 1 / self._scale.factor)
        norm = float(nn.utils.get_total_norm(gradients))
        if not math.isfinite(norm):
            self._engine.zero_grad()
            return norm
        if self._clip and norm > self._clip:
            torch._foreach_mul_(gradients, self._clip / norm)
        self._engine.step()
        return norm

    def _running(self) -> list[Tensor]:
        names = ("running_mean", "running_var", "num_batches_tracked")
        return [value for name, value in self._module.named_buffers() if name.endswith(names)]

    def snapshot(self) -> Snapshot:
        optimizer = self._engine.optimizer
        shared: dict[str, Any] = {"scale": None if self._scale is None else self._scale.to_dict()}
        own: dict[str, Any] = {}
        if self._buckets is None:
            own["optimizer"] = _to_host(optimizer.optimizer.state_dict())
        if rank() != 0:
            return Snapshot(shared=None, own=own)
        shared["module"] = _to_host(self._module.state_dict())
        if self._buckets is not None:
            shared["optimizer"] = _to_host(optimizer.state_dict())
        return Snapshot(shared=shared, own=own)

    def restore(self, shared: Mapping[str, Any], own: Mapping[str, Any]) -> None:
        optimizer = self._engine.optimizer
        try:
            self._module.load_state_dict(shared["module"])
            if self._buckets is None:
                optimizer.refresh_fp32_params()  # ZeRO's flat copy of this rank's part, which it updates
                optimizer.optimizer.load_state_dict(own["optimizer"])
            else:
                optimizer.load_state_dict(shared["optimizer"])
        except (RuntimeError, KeyError, ValueError) as error:
            raise MstlError(
                "checkpoint",
                why=f"it does not fit this network or this engine.zero ({str(error).splitlines()[0]})",
                remedy="Name the run's own network with --model, or another folder with --out",
            ) from error
        if self._scale is not None and shared["scale"] is not None:
            self._scale = LossScale(**shared["scale"])


def _to_host(state: Any) -> Any:
    """A copy in host memory of all tensors in nested containers; strides are kept."""
    if isinstance(state, Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, Mapping):
        return {name: _to_host(value) for name, value in state.items()}
    if isinstance(state, list | tuple):
        return [_to_host(value) for value in state]
    return state
