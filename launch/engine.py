"""The DeepSpeed engine behind `mstl.engine.Engine`; nothing else imports deepspeed."""

from __future__ import annotations

import json
import os
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mstl.recipes import Recipe
from pipelines.batch import Batch
from shards.errors import MstlError

# For joining; DeepSpeed makes its own group for gradients with torch's default (gloo 30 minutes, NCCL 10).
TIMEOUT = timedelta(minutes=10)
CONFIG = Path(__file__).parent / "configs" / "default.json"


def start_processes() -> None:
    """Join the process group that the launcher's environment describes; raises MstlError when it cannot be formed."""
    import deepspeed
    import deepspeed.ops

    # The shared-memory op is compiled on first use (a minute, and a crash without a compiler); gloo does its work.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend = "gloo"
    if torch.cuda.is_available():
        backend = "nccl"
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    if os.environ["WORLD_SIZE"] == "1":
        # Alone there is nobody to meet: no port is opened, and none can be taken. DeepSpeed joins what it finds.
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    try:
        deepspeed.init_distributed(dist_backend=backend, timeout=TIMEOUT, verbose=False)
    except (RuntimeError, ValueError) as error:
        raise MstlError(
            f"process group of {os.environ['WORLD_SIZE']} ranks",
            why=f"it could not be formed ({str(error).splitlines()[0]})",
            remedy="Check that {MASTER_ADDR}:{MASTER_PORT} is free and that every node reaches it".format(**os.environ),
        ) from error


class DeepSpeedEngine:
    """A DeepSpeed engine at ZeRO stage 0 with torch.autocast: parameters and BatchNorm stay in float32."""

    def __init__(self, module: nn.Module, recipe: Recipe, device: torch.device) -> None:
        """Move the module to the device and wrap it; all ranks call it (parameters are broadcast from rank 0)."""
        import deepspeed

        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        optim = recipe.optim
        self._engine, *_ = deepspeed.initialize(
            model=module.to(device),
            optimizer=torch.optim.SGD(
                trained, lr=optim.lr, momentum=optim.momentum, weight_decay=optim.weight_decay, foreach=True
            ),
            config=_config(recipe, device),
        )
        # DeepSpeed clips at 1.0 where the key is missing or misspelt, and says nothing.
        if self._engine.gradient_clipping() != optim.clip:
            raise RuntimeError(f"DeepSpeed clips at {self._engine.gradient_clipping()}, not at {optim.clip}")
        # Before initialize() channels_last weights crash DeepSpeed's broadcast.
        self._engine.module.to(memory_format=torch.channels_last)
        self._device = device
        self._trained = trained

    @property
    def module(self) -> nn.Module:
        return cast(nn.Module, self._engine.module)

    @property
    def device(self) -> torch.device:
        return self._device

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return cast(dict[str, Tensor], self._engine(batch))

    def backward(self, loss: Tensor) -> float:
        self._engine.backward(loss)
        gradients = [parameter.grad for parameter in self._trained if parameter.grad is not None]
        return float(nn.utils.get_total_norm(gradients))

    def step(self, lr: float) -> None:
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        self._engine.step()

    def save(self, folder: Path) -> None:
        self._engine.save_checkpoint(str(folder.parent), tag=folder.name, save_latest=False)

    def load(self, folder: Path) -> None:
        try:
            path, _ = self._engine.load_checkpoint(str(folder.parent), tag=folder.name)
        except RuntimeError as error:
            raise MstlError(
                f"checkpoint {folder}",
                why=f"it does not fit this network ({str(error).splitlines()[0]})",
                remedy="Name the run's own network with --model, or another folder with --out",
            ) from error
        if path is None:
            raise MstlError(f"checkpoint {folder}", why="DeepSpeed found nothing in it", remedy="Delete that folder")


def autocast_dtype(recipe: Recipe, device: torch.device) -> str | None:
    """The dtype of torch.autocast, or None for float32."""
    choice = recipe.precision.autocast
    if choice == "auto":
        return "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else None
    return None if choice == "off" else "bfloat16"


def _config(recipe: Recipe, device: torch.device) -> dict[str, Any]:
    world = int(os.environ["WORLD_SIZE"])
    config: dict[str, Any] = json.loads(CONFIG.read_text())
    config["train_micro_batch_size_per_gpu"] = recipe.data.batch_size // world
    config["gradient_clipping"] = recipe.optim.clip
    dtype = autocast_dtype(recipe, device)
    if dtype is not None:
        config["torch_autocast"] = {"enabled": True, "dtype": dtype}
    return config
