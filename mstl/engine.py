"""What the training loop asks of an engine; `launch.engine` answers with DeepSpeed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pipelines.batch import Batch


@dataclass(frozen=True, kw_only=True, slots=True)
class StepResult:
    """What became of one batch.

    losses: the module's scalars on this rank, detached, over the whole local batch.
    norm: the gradient's global norm before clipping, averaged over ranks, unscaled; equal on every rank. Not finite
        where the update was given up.
    applied: False where the update was given up, on all ranks alike: parameters and optimizer state are as before the
        batch, where training can go on also the batch norms' statistics, and the stage is told (`Stage.skip_step`).
    stop: why training cannot go on, for the user to read; empty where it can, though an update may have been skipped
        (loss scaling in float16 finds its scale by skipping).
    """

    losses: dict[str, Tensor]
    norm: float
    applied: bool
    stop: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """An engine's state in host memory, apart from what trains on; plain containers, tensors and numbers.

    shared: equal on all ranks (weights, and at ZeRO 0 the optimizer's state); on rank 0 only, None elsewhere.
    own: this rank's part of the optimizer's state (ZeRO 1 and 2); empty at ZeRO 0, where any world size can resume.
    """

    shared: dict[str, Any] | None
    own: dict[str, Any]


class Engine(Protocol):
    """Forward, backward and update of one module over all ranks, and its state."""

    @property
    def module(self) -> nn.Module: ...

    @property
    def device(self) -> torch.device: ...

    def update(self, batch: Batch, lr: float) -> StepResult:
        """One update of the parameters from this rank's batch at a learning rate; all ranks call it.

        Raises MstlError when another rank does not take part in time (gloo; NCCL ends the process instead).
        """

    def snapshot(self) -> Snapshot:
        """Copy the state to host memory: no other rank waits for it, and training may go on while it is written."""

    def restore(self, shared: Mapping[str, Any], own: Mapping[str, Any]) -> None:
        """Take up what `snapshot` copied, on all ranks; raises MstlError when it belongs to another network."""
