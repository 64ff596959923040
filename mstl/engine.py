"""What the training loop asks of an engine; `launch.engine` answers with DeepSpeed."""

from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from pipelines.batch import Batch


class Engine(Protocol):
    """Forward, backward and update of one module over all ranks, and its checkpoints."""

    @property
    def module(self) -> nn.Module: ...

    @property
    def device(self) -> torch.device: ...

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The module's losses on a batch, under the engine's precision."""

    def backward(self, loss: Tensor) -> float:
        """Gradients of the loss, averaged over ranks; returns their global norm (equal on every rank)."""

    def step(self, lr: float) -> None:
        """One update of the parameters at a learning rate; clears the gradients."""

    def save(self, folder: Path) -> None:
        """Write parameters, buffers and optimizer state into an existing folder; all ranks call it."""

    def load(self, folder: Path) -> None:
        """Read what `save` wrote; all ranks call it."""
