"""The training loop, written once for every stage."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mstl.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint, step_of
from mstl.distributed import average_batchnorm_, mean_over_ranks_, rank, world_size
from mstl.engine import Engine
from mstl.recipes import Optim, Recipe
from mstl.runs import WEIGHTS_NAME, MetricsLog
from mstl.stages import Stage
from mstl.weights import load_weights, save_weights
from pipelines.batch import Batch
from pipelines.loader import Loader
from shards.errors import MstlError

BEST_NAME = "best.safetensors"


class Watch(Protocol):
    """Who is told how training goes; only rank 0 has one that shows anything."""

    def start(self, step: int) -> None: ...

    def step(self, entry: Mapping[str, Any]) -> None: ...

    def validation(self, entry: Mapping[str, Any]) -> None: ...

    def note(self, text: str) -> None: ...

    def alert(self, text: str) -> None: ...


class Stop(Protocol):
    """Whether somebody asked this process to stop (a signal)."""

    @property
    def requested(self) -> bool: ...


@dataclass(kw_only=True, slots=True)
class Training:
    """One stage's training on this rank; `val_loader` is None where the shard set has no val split."""

    name: str
    stage: Stage
    engine: Engine
    recipe: Recipe
    loader: Loader
    val_loader: Loader | None
    run: Path
    watch: Watch
    stop: Stop
    done: int = field(default=0, init=False)
    best: float = field(default=-math.inf, init=False)


def learning_rate(optim: Optim, epoch: int) -> float:
    """The rate of an epoch (counted from 0): multiplied by gamma after each milestone (paper 5.2)."""
    return optim.lr * optim.gamma ** sum(epoch >= milestone for milestone in optim.milestones)


def restore(training: Training) -> int:
    """Continue from the newest whole checkpoint; returns the steps done, 0 when there is none."""
    folder, damaged = newest_checkpoint(training.run / "checkpoints")
    for other in damaged:
        training.watch.note(f"{other} is damaged and passed over")
    if folder is None:
        return 0
    state = load_checkpoint(folder, training.engine)
    training.loader.load_state_dict(state["loader"])
    if training.val_loader is not None:
        training.val_loader.load_state_dict(state["val_loader"])
    _load_buffers(training.engine.module, state["buffers"])
    torch.set_rng_state(state["rng"])
    if training.engine.device.type == "cuda":
        torch.cuda.set_rng_state(state["rng_cuda"], training.engine.device)
    training.done = step_of(folder)
    training.best = state["best"]
    return training.done


def train(training: Training) -> bool:
    """Run the remaining epochs and write the weights; returns False when stopped early, with a checkpoint saved.

    Raises MstlError when gradients are not finite: the update is not applied, so the last checkpoint stays good.
    """
    recipe = training.recipe
    log = MetricsLog(training.run, resume_step=training.done) if rank() == 0 else None
    saved = training.done
    training.watch.start(training.done)
    try:
        for epoch in range(training.loader.epoch, recipe.optim.epochs):
            training.engine.module.train()
            rate = learning_rate(recipe.optim, epoch)
            last = len(training.loader) * (epoch + 1)
            clock, waited = time.perf_counter(), training.loader.wait_seconds
            told = len(training.loader.unreadable)
            for batch in training.loader:
                for image in training.loader.unreadable[told:]:
                    training.watch.alert(f"skipped {image}")
                told = len(training.loader.unreadable)
                losses, stop = _step(training, batch, rate)
                training.done += 1
                elapsed, wait = time.perf_counter() - clock, training.loader.wait_seconds - waited
                clock, waited = clock + elapsed, training.loader.wait_seconds
                entry = {
                    "step": training.done,
                    "epoch": epoch,
                    "stage": training.name,
                    **losses,
                    "lr": rate,
                    "images_per_second": round(len(batch) * world_size() / elapsed, 2),
                    "data_wait": round(min(wait / elapsed, 1.0), 4),
                }
                if log is not None:
                    log.write(entry)
                training.watch.step(entry)
                if training.done < last and (stop or training.done - saved >= recipe.checkpoint.every_steps):
                    _save(training)
                    saved = training.done
                    if stop:
                        return False
            # The epoch's last step is saved behind its validation, so that a resume neither repeats nor skips it.
            _validate(training, epoch, log)
            if stop or training.done - saved >= recipe.checkpoint.every_steps or epoch + 1 == recipe.optim.epochs:
                _save(training)
                saved = training.done
                if stop and epoch + 1 < recipe.optim.epochs:
                    return False
        _finish(training)
        return True
    finally:
        if log is not None:
            log.close()


def _step(training: Training, batch: Batch, rate: float) -> tuple[dict[str, float], bool]:
    """One update; returns the losses averaged over ranks and whether any rank was asked to stop."""
    losses = training.engine.forward(batch)
    norm = training.engine.backward(losses["loss"])
    if not math.isfinite(norm):
        raise MstlError(
            f"{training.name}, step {training.done + 1}",
            why=f"the gradient is not finite (loss {float(losses['loss'].detach()):.4g}, sample ids "
            f"{batch.sample_ids[:4].tolist()}...); the update was not applied",
            remedy="Train into another --out with a smaller optim.lr, or with precision.autocast=off",
        )
    training.engine.step(rate)
    training.stage.after_step()
    own = torch.tensor(
        [float(len(training.loader.unreadable)), float(training.stop.requested)], device=training.engine.device
    )
    values = torch.cat([torch.stack([value.detach().float() for value in losses.values()]), own])
    *means, unreadable, stop = mean_over_ranks_(values).tolist()
    skipped = {"unreadable": round(unreadable * world_size())} if unreadable else {}
    return {**dict(zip(losses, means, strict=True)), **skipped}, stop > 0


def _validate(training: Training, epoch: int, log: MetricsLog | None) -> None:
    average_batchnorm_(training.engine.module)
    if training.val_loader is None:
        return
    training.engine.module.eval()
    metrics = training.stage.evaluate(training.val_loader, training.engine.device)
    entry = {"step": training.done, "epoch": epoch, "split": "val", **_finite(metrics)}
    if log is not None:
        log.write(entry)
    training.watch.validation(entry)
    score = metrics.get("auc", math.nan)
    if not math.isfinite(score):  # more than two classes, or only one of them in this split
        score = metrics.get("accuracy", math.nan)
    if training.recipe.checkpoint.select == "best" and score > training.best:
        training.best = score
        if rank() == 0:
            save_weights(training.run / BEST_NAME, training.stage.weights())


def _finite(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """JSON has no NaN: an undefined metric (AUC of one class) is written as null."""
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}


def _save(training: Training) -> None:
    device = training.engine.device
    state = {
        "loader": training.loader.state_dict(),
        "val_loader": None if training.val_loader is None else training.val_loader.state_dict(),
        "buffers": _rank_buffers(training.engine.module),
        "rng": torch.get_rng_state(),
        "rng_cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "best": training.best,
    }
    save_checkpoint(
        training.run / "checkpoints", training.done, training.engine, state, keep=training.recipe.checkpoint.keep
    )


def _finish(training: Training) -> None:
    if rank() != 0:
        return
    best = training.run / BEST_NAME
    if math.isfinite(training.best):
        save_weights(training.run / WEIGHTS_NAME, load_weights(best))
    else:
        save_weights(training.run / WEIGHTS_NAME, training.stage.weights())


def _rank_buffers(module: nn.Module) -> dict[str, Tensor]:
    """BatchNorm's running statistics: they differ from rank to rank, and the engine saves rank 0's only."""
    return {
        name: value.clone() for name, value in module.named_buffers() if name.endswith(("running_mean", "running_var"))
    }


def _load_buffers(module: nn.Module, saved: Mapping[str, Tensor]) -> None:
    buffers = dict(module.named_buffers())
    for name, value in saved.items():
        buffers[name].copy_(value)
