"""What a checkpoint of a training holds, and how training goes on from one: by the same ranks or others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from mstl.checkpoint import BEST_NAME, Checkpoint, newest_checkpoint
from mstl.distributed import rank, world_size
from mstl.runs import METRICS_NAME
from mstl.saving import Saver
from mstl.together import together
from mstl.training import Training
from shards.errors import MstlError


def begin_save(training: Training, saver: Saver) -> None:
    """Copy all that training goes on from to host memory and let it be written; all ranks call it.

    Nothing that training depends on is changed, so when saves happen (a clock decides too) alters no result. Raises
    MstlError when the save before could not be written, or when ranks hold different values of what they must share.
    """
    training.saving = True
    saver.finish()
    training.saving = False
    training.stage.check_ranks()
    engine, device = training.engine.snapshot(), training.engine.device
    own = {
        "engine": engine.own,
        "loader": training.loader.state_dict(),
        "val_loader": None if training.val_loader is None else training.val_loader.state_dict(),
        "buffers": _running_statistics(training.engine.module),
        "rng": torch.get_rng_state(),
        "rng_cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "best": training.best,
        "validated": training.validated,
    }
    saver.begin(training.done, own, engine.shared, training.best_weights)


def restore(training: Training) -> Checkpoint | None:
    """Continue from the newest whole checkpoint; returns it, None when there is none. All ranks call it.

    By as many ranks as wrote it, training goes on bit for bit on the CPU (GPU kernels may add in another order). By
    another number (ZeRO 0): weights, optimizer and queue are the same for all; what is left of the epoch is shared
    anew, each sample once, with new augmentation; running statistics are averaged, as before an evaluation; random
    numbers start from a seed of this step and these ranks.
    Raises EveryRankError, on all ranks alike, where a checkpoint does not fit.
    """
    checkpoint, damaged = newest_checkpoint(training.run / "checkpoints")
    if checkpoint is None:
        return None
    if damaged:
        names = ", ".join(other.name for other in damaged)
        training.watch.note(f"passed over, since files are missing or changed: {names} in {checkpoint.folder.parent}")
    if not (training.run / METRICS_NAME).is_file():
        training.watch.note(f"{METRICS_NAME} has gone from {training.run}: it will not hold what is before")
    together(lambda: _take_up(training, checkpoint))
    training.stage.check_ranks()
    return checkpoint


def _take_up(training: Training, checkpoint: Checkpoint) -> None:
    same = checkpoint.ranks == world_size()
    own = checkpoint.own(rank() if same else 0)
    if not same and own["engine"]:
        raise MstlError(
            f"checkpoint {checkpoint.folder}",
            why=f"{checkpoint.ranks} ranks wrote it, each its part of the optimizer's state (engine.zero), and this "
            f"job has {world_size()}",
            remedy=f"Start the job with {checkpoint.ranks} ranks; at engine.zero=0 any number can go on",
        )
    training.engine.restore(checkpoint.shared(), own["engine"])
    others = [own] if same else [checkpoint.own(number) for number in range(checkpoint.ranks)]
    _load_running_statistics(training.engine.module, [other["buffers"] for other in others])
    _load_loaders(training, others, other_world=not same)
    if same:
        torch.set_rng_state(own["rng"])
        if own["rng_cuda"] is not None:
            torch.cuda.set_rng_state(own["rng_cuda"], training.engine.device)
    else:
        torch.manual_seed(_new_seed(training.loader.plan.seed, checkpoint.step))
    training.done, training.best, training.validated = checkpoint.step, own["best"], own["validated"]
    best = checkpoint.folder / BEST_NAME
    if rank() == 0 and best.is_file():
        training.best_weights = safetensors.torch.load_file(best)


def _load_loaders(training: Training, states: list[dict[str, Any]], *, other_world: bool) -> None:
    # An image that any rank could not read is skipped by whoever would meet it next.
    for name, loader in (("loader", training.loader), ("val_loader", training.val_loader)):
        if loader is None:
            continue
        state = states[0][name]
        if other_world:
            state = {**state, "unreadable": sorted({bad for other in states for bad in other[name]["unreadable"]})}
        loader.load_state_dict(state, other_world=other_world)


def _new_seed(seed: int, step: int) -> int:
    return int(np.random.SeedSequence([seed, step, world_size(), rank()]).generate_state(1)[0])


def _running_statistics(module: nn.Module) -> dict[str, Tensor]:
    """BatchNorm's running statistics: they differ from rank to rank, and the engine saves rank 0's only."""
    names = ("running_mean", "running_var")
    return {name: value.to("cpu", copy=True) for name, value in module.named_buffers() if name.endswith(names)}


def _load_running_statistics(module: nn.Module, saved: list[Mapping[str, Tensor]]) -> None:
    """Take up this rank's statistics, or the mean of several ranks'."""
    buffers = dict(module.named_buffers())
    for name in saved[0]:
        values = [of_rank[name] for of_rank in saved]
        buffers[name].copy_(values[0] if len(values) == 1 else torch.stack(values).mean(0))
