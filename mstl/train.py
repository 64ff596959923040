"""The training loop, written once for every stage."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from mstl.checkpoint import BEST_NAME
from mstl.distributed import average_batchnorm_, barrier, mean_over_ranks_, rank, world_size
from mstl.engine import StepResult
from mstl.failures import EveryRankError
from mstl.resume import begin_save
from mstl.runs import METRICS_NAME, WEIGHTS_NAME, MetricsLog, score
from mstl.saving import Saver
from mstl.schedule import learning_rate
from mstl.training import Training
from mstl.weights import save_weights
from pipelines.batch import Batch


def train(training: Training) -> bool:
    """Run the remaining epochs and write the weights; returns False when stopped early, with a checkpoint saved.

    Raises MstlError when gradients are not finite: the update is not applied, so the last checkpoint stays good; and
    when a checkpoint could not be written.
    """
    log = MetricsLog(training.run, resume_step=training.done) if rank() == 0 else None
    saver = Saver(training.run / "checkpoints", keep=training.recipe.checkpoint.keep, log=training.run / METRICS_NAME)
    training.watch.start(training.done)
    training.rescue = saver.rescue
    try:
        finished = _epochs(training, saver, log)
        training.saving = True
        saver.finish()
        if finished and rank() == 0:
            _finish(training)
        barrier()  # nobody leaves while the first rank still writes
        return finished
    except Exception:
        training.saving = True
        saver.rescue()
        raise
    finally:
        if log is not None:
            log.close()


def _epochs(training: Training, saver: Saver, log: MetricsLog | None) -> bool:
    recipe, loader = training.recipe, training.loader
    due = _Due(training)
    signals = _Signals(stop=False, due=False, busy=False, failed=False)  # where a resumed epoch has no step left
    if training.validated < loader.epoch:
        # Other ranks had one step more in that epoch, and stopped before it: for these ranks it is over.
        _validate(training, loader.epoch - 1, log)
    for epoch in range(loader.epoch, recipe.optim.epochs):
        training.engine.module.train()
        clock, waited = time.perf_counter(), loader.wait_seconds
        told = len(loader.unreadable)
        for batch in loader:
            for image in loader.unreadable[told:]:
                training.watch.alert(f"skipped {image}")
            told = len(loader.unreadable)
            rate = learning_rate(recipe.optim, epoch=epoch, step=loader.step - 1, steps=len(loader))
            losses, signals = _step(training, saver, due, batch, rate)
            training.done += 1
            elapsed, wait = time.perf_counter() - clock, loader.wait_seconds - waited
            clock, waited = clock + elapsed, loader.wait_seconds
            entry = {
                "step": training.done,
                "epoch": epoch,
                "stage": training.name,
                **losses,
                "lr": rate,
                "images_per_second": round(len(batch) * world_size() / elapsed, 2),
                "data_wait": round(min(wait / elapsed, 1.0), 4),
                "ranks": world_size(),
            }
            if log is not None:
                log.write(_finite(entry))
            training.watch.step(entry)
            saver.settle(busy=signals.busy, failed=signals.failed)
            # The epoch's last step is saved behind its validation, unless somebody waits for this job to end.
            if signals.stop or (loader.step < len(loader) and (signals.due or due.by_steps)):
                begin_save(training, saver)
                due.saved()
                if signals.stop:
                    return False
        _validate(training, epoch, log)
        stop = _anybody(training.stop.requested, training)  # it may have been long
        last = epoch + 1 == recipe.optim.epochs
        if stop or signals.due or due.by_steps or last:
            begin_save(training, saver)
            due.saved()
            if stop and not last:
                return False
    return True


class _Due:
    """When the next checkpoint is to be saved: by steps, the same on all ranks, and by the first rank's clock."""

    def __init__(self, training: Training) -> None:
        self._training = training
        self.saved()

    def saved(self) -> None:
        self._at_step, self._at = self._training.done, time.monotonic()

    @property
    def by_steps(self) -> bool:
        return self._training.done - self._at_step >= self._training.recipe.checkpoint.every_steps

    @property
    def by_clock(self) -> bool:
        minutes = self._training.recipe.checkpoint.every_minutes
        return minutes is not None and rank() == 0 and time.monotonic() - self._at >= 60 * minutes


@dataclass(frozen=True, slots=True)
class _Signals:
    """What any rank had to tell the others at a step."""

    stop: bool
    due: bool
    busy: bool
    failed: bool


def _step(training: Training, saver: Saver, due: _Due, batch: Batch, rate: float) -> tuple[dict[str, Any], _Signals]:
    """One update; returns the losses averaged over ranks and what the ranks have to tell each other."""
    result = training.engine.update(batch, rate)
    if result.stop:
        raise _stopped(training, result, batch)
    if result.applied:
        training.stage.after_step()
    else:
        training.stage.skip_step()
    busy = saver.busy
    flags = [training.stop.requested, due.by_clock, busy, saver.failed]
    own = torch.tensor([float(len(training.loader.unreadable)), *map(float, flags)], device=training.engine.device)
    values = torch.cat([torch.stack([value.detach().float() for value in result.losses.values()]), own])
    means = mean_over_ranks_(values).tolist()
    unreadable, *told = means[len(result.losses) :]
    entry = {**dict(zip(result.losses, means, strict=False)), "norm": result.norm}
    if not result.applied:  # float16 looks for its loss scale: the batch counts as a step of data and schedule
        entry["skipped"] = 1
    if unreadable:
        entry["unreadable"] = round(unreadable * world_size())
    return entry, _Signals(*(flag > 0 for flag in told))


def _anybody(flag: bool, training: Training) -> bool:
    """Whether it is true on any rank; all ranks call it."""
    return bool(mean_over_ranks_(torch.tensor(float(flag), device=training.engine.device)) > 0)


def _stopped(training: Training, result: StepResult, batch: Batch) -> EveryRankError:
    """Why training cannot go on, with the ranks where that began; all ranks call it."""
    found = [(float(result.losses["loss"]), batch.sample_ids[:4].tolist())] * world_size()
    if world_size() > 1:
        dist.all_gather_object(found, found[0])
    guilty = [number for number, (loss, _) in enumerate(found) if not math.isfinite(loss)] or [0]
    loss, ids = found[guilty[0]]
    return EveryRankError(
        f"{training.name}, step {training.done + 1}",
        why=f"{result.stop} (rank {guilty[0]}: loss {loss:.4g}, sample ids {ids}...); the update was not applied",
        remedy="Train into another --out with a smaller optim.lr, or with precision.autocast=off",
    )


def _validate(training: Training, epoch: int, log: MetricsLog | None) -> None:
    average_batchnorm_(training.engine.module)
    training.validated = epoch + 1
    if training.val_loader is None:
        return
    training.engine.module.eval()
    metrics = training.stage.evaluate(training.val_loader, training.engine.device)
    entry = {"step": training.done, "epoch": epoch, "split": "val", **_finite(metrics)}
    if log is not None:
        log.write(entry)
    training.watch.validation(entry)
    found = score(metrics)
    if found is not None and found[1] > training.best:
        training.best = found[1]
        if rank() == 0:
            training.best_weights = {
                name: value.detach().to("cpu", copy=True) for name, value in training.stage.weights().items()
            }


def _finite(entry: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no NaN: an undefined metric (AUC of one class), or the loss of a skipped update, is written as null."""
    return {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in entry.items()}


def _finish(training: Training) -> None:
    weights = training.stage.weights()
    if training.best_weights is not None:
        save_weights(training.run / BEST_NAME, training.best_weights)
        if training.recipe.checkpoint.select == "best":
            weights = training.best_weights
    save_weights(training.run / WEIGHTS_NAME, weights)
