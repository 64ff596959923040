"""One training step on several ranks, by three engines in turn."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.ranks import on_ranks
from launch.engine import DeepSpeedEngine
from mstl.models.classifier import Classifier
from mstl.models.registry import build_backbone
from mstl.optim import build_optimizer
from mstl.precision import autocast_dtype
from mstl.recipes import Recipe, build_recipe
from pipelines.batch import Batch

CLASSES = 1000
LR = 1e-3
WARM_UP = 2
"""Blocks that each side runs before the measured ones: memory is found, buckets are laid out, cuDNN has chosen."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    model: str
    ranks: int
    batch: int
    size: int
    precision: str
    blocks: int
    steps: int


def measure(settings: Settings) -> dict[str, Any]:
    """Times of a step in ms for each side: wall clock on rank 0, and CPU time summed over the ranks.

    `last_loss` is rank 0's on its last step: all sides do the same training.
    """
    found = on_ranks(settings.ranks, _measure, settings)
    sides = {}
    for side, own in found[0]["times"].items():
        cpu = [sum(rank["times"][side]["cpu_ms"][i] for rank in found) for i in range(settings.blocks)]
        values = {"wall_ms": own["wall_ms"], "cpu_ms": cpu}
        sides[side] = {
            "last_loss": own["last_loss"],
            **values,
            "median": {name: statistics.median(times) for name, times in values.items()},
        }
    ours = sides["mstl"]["median"]
    ratios = {
        side: {name: ours[name] / value for name, value in times["median"].items()}
        for side, times in sides.items()
        if side != "mstl"
    }
    return {"device": found[0]["device"], "threads": found[0]["threads"], "sides": sides, "ratios": ratios}


class _Supervised(nn.Module):
    def __init__(self, model: str) -> None:
        super().__init__()
        self.classifier = Classifier(build_backbone(model), CLASSES, dropout=0.0)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return {"loss": F.cross_entropy(self.classifier(batch.views["x"]).float(), batch.labels)}


def _measure(on: torch.device, settings: Settings) -> dict[str, Any]:
    name = torch.cuda.get_device_name(on) if on.type == "cuda" else "CPU"
    times = _take_turns(settings, on, _sides(settings, on))
    return {"times": times, "device": name, "threads": torch.get_num_threads()}


def _take_turns(
    settings: Settings, on: torch.device, sides: dict[str, Callable[[], Tensor]]
) -> dict[str, dict[str, Any]]:
    times: dict[str, dict[str, Any]] = {side: {"wall_ms": [], "cpu_ms": []} for side in sides}
    for number in range(WARM_UP + settings.blocks):
        # The order turns round, so that no side is always behind the same other.
        names = list(sides)[number % len(sides) :] + list(sides)[: number % len(sides)]
        for side in names:
            _meet(on)
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(settings.steps):
                loss = sides[side]()
            _meet(on)
            if number >= WARM_UP:
                times[side]["wall_ms"].append((time.perf_counter() - wall) * 1e3 / settings.steps)
                times[side]["cpu_ms"].append((time.process_time() - cpu) * 1e3 / settings.steps)
            times[side]["last_loss"] = float(loss)
    return times


def _meet(on: torch.device) -> None:
    if on.type == "cuda":
        torch.cuda.synchronize(on)
    dist.barrier()


def _sides(settings: Settings, on: torch.device) -> dict[str, Callable[[], Tensor]]:
    recipe = build_recipe(
        "stl_n",
        overrides=[f"data.batch_size={settings.batch * settings.ranks}", f"precision.autocast={settings.precision}"],
    )
    generator = torch.Generator().manual_seed(dist.get_rank())
    images = torch.randn(settings.batch, 3, settings.size, settings.size, generator=generator)
    batch = Batch(
        views={"x": images.to(on).contiguous(memory_format=torch.channels_last)},
        labels=torch.randint(0, CLASSES, (settings.batch,), generator=generator).to(on),
        sample_ids=torch.arange(settings.batch, device=on),
    )
    torch.manual_seed(0)
    module = _Supervised(settings.model)
    engine = DeepSpeedEngine(copy.deepcopy(module), recipe, on)
    engine.module.train()
    return {
        "mstl": lambda: _ours(engine, batch),
        "ddp": _ddp(copy.deepcopy(module), recipe, batch, on),
        "deepspeed": _stock(module, recipe, batch, on),
    }


def _ours(engine: DeepSpeedEngine, batch: Batch) -> Tensor:
    return engine.update(batch, LR).losses["loss"]


def _ddp(module: nn.Module, recipe: Recipe, batch: Batch, on: torch.device) -> Callable[[], Tensor]:
    """Plain torch as its tutorials have it, in the memory format that is fastest for it too."""
    module.to(on).to(memory_format=torch.channels_last).train()
    parallel = DistributedDataParallel(module, device_ids=[on] if on.type == "cuda" else None)
    optimizer = build_optimizer(module.named_parameters(), recipe.optim)
    dtype = autocast_dtype(recipe.precision, on)
    for group in optimizer.param_groups:
        group["lr"] = LR

    def step() -> Tensor:
        with torch.autocast(on.type, dtype=dtype, enabled=dtype is not None):
            loss: Tensor = parallel(batch)["loss"]
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def _stock(module: nn.Module, recipe: Recipe, batch: Batch, on: torch.device) -> Callable[[], Tensor]:
    """DeepSpeed with its defaults, clipping off; its own torch_autocast would last for the whole process."""
    import deepspeed  # a peer here; MSTL itself meets it in launch.engine only

    module.to(on).train()
    engine, *_ = deepspeed.initialize(
        model=_Cast(module, on, autocast_dtype(recipe.precision, on)),
        optimizer=build_optimizer(module.named_parameters(), recipe.optim),
        config={"train_micro_batch_size_per_gpu": len(batch), "gradient_clipping": 0.0, "steps_per_print": 10**9},
    )
    module.to(memory_format=torch.channels_last)
    for group in engine.optimizer.param_groups:
        group["lr"] = LR

    def step() -> Tensor:
        loss: Tensor = engine(batch)["loss"]
        engine.backward(loss)
        engine.step()
        return loss.detach()

    return step


class _Cast(nn.Module):
    def __init__(self, module: nn.Module, on: torch.device, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.module = module
        self.cast = torch.autocast(on.type, dtype=dtype, enabled=dtype is not None)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        with self.cast:
            found: dict[str, Tensor] = self.module(batch)
        return found
