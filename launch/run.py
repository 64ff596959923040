"""One rank's part of a training job, from the request to the exit code."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import click
import torch
import torch.distributed as dist

from launch.engine import DeepSpeedEngine, start_processes
from launch.processes import StopSignal, device, local_rank, set_environment, siblings
from launch.watchdog import Watchdog
from mstl.build import build_loaders, build_module, fix_attention
from mstl.carry import describe_carry
from mstl.checkpoint import Checkpoint
from mstl.cli.boundary import FAILED
from mstl.cli.progress import rich_progress
from mstl.distributed import rank, world_size
from mstl.failures import RESTART_CAUSE, EveryRankError, naming
from mstl.job import Job, Request, check_world, plan_job, record
from mstl.resume import restore
from mstl.run_list import lock_path
from mstl.runs import now, write_record
from mstl.stage_specs import CARD_STAGE
from mstl.together import together
from mstl.train import train
from mstl.training import Training
from mstl.watch import Watch, open_watch
from mstl.watching.loggers import check_loggers
from shards.errors import MstlError
from shards.files import lock_file
from shards.progress import QUIET
from shards.remote_store import is_url


def run(request: Request) -> int:
    """Plan, build and train; returns the exit code: 0 finished, 128 + signal when stopped and saved."""
    set_environment()
    try:
        check_loggers(tensorboard=request.tensorboard, wandb=request.wandb)
        with rich_progress() if local_rank() == 0 else nullcontext(QUIET) as progress:
            job = plan_job(request, progress)
        check_world(job, int(os.environ["WORLD_SIZE"]))
    except MstlError as error:
        # All ranks find the same before they meet: one of them says it. A store may fail for one alone.
        if local_rank() == 0 or (request.shards is not None and is_url(request.shards)):
            raise
        raise SystemExit(FAILED) from error
    if job.finished:
        if local_rank() == 0:
            click.echo(f"{job.out}: already finished; name another --out to train again", err=True)
        return 0
    start_processes()
    try:
        with naming(job.out), _sole_owner(job.out):
            return _train(job, StopSignal(), request)
    except EveryRankError as error:
        if rank() == 0:
            raise
        raise SystemExit(FAILED) from error
    finally:
        dist.destroy_process_group()


@contextmanager
def _sole_owner(out: Path) -> Iterator[None]:
    """Hold the run folder's lock on rank 0; raises MstlError on every rank when another job trains into it."""
    lock, path = None, lock_path(out)
    held = [True]
    if rank() == 0:
        out.parent.mkdir(parents=True, exist_ok=True)
        lock = lock_file(path)
        held = [lock is not None]
    try:
        dist.broadcast_object_list(held, src=0)
        if not held[0]:
            raise EveryRankError(
                f"--out {out}",
                why="another process trains into it",
                remedy="Wait for it, stop it, or name another folder",
            )
        yield
    finally:
        if lock is not None:
            path.unlink(missing_ok=True)
            os.close(lock)


def _train(job: Job, stop: StopSignal, request: Request) -> int:
    torch.manual_seed(job.seed)
    stage, carry = together(lambda: build_module(job))
    attention = fix_attention(job, stage.module, device())
    loader, val_loader = together(lambda: build_loaders(job, rank=rank(), world=world_size(), device=device()))
    engine = DeepSpeedEngine(stage.module, job.recipe, device())
    # Equal first weights on every rank, different dropout from here on.
    torch.manual_seed(job.seed * 65_536 + rank() + 1)
    epochs = job.recipe.optim.epochs
    body = record(job, world_size=world_size(), device=_device_name(), carry=carry)
    body |= {"steps": len(loader) * epochs, "attention": attention}
    watch = Watch()
    if rank() == 0:
        watch = open_watch(
            job.out,
            stage=job.spec.name,
            steps=body["steps"],
            epochs=epochs,
            config=body,
            line_seconds=request.log_seconds,
            tensorboard=request.tensorboard,
            wandb=request.wandb,
        )
    training = Training(
        name=job.spec.name,
        stage=stage,
        engine=engine,
        recipe=job.recipe,
        loader=loader,
        val_loader=val_loader,
        run=job.out,
        watch=watch,
        stop=stop,
    )
    began = time.monotonic()

    def write(status: str) -> None:
        if rank() == 0:
            wall = round(body["wall_seconds"] + time.monotonic() - began, 1)
            ended = now() if status == "finished" else None
            write_record(job.out, {**body, "status": status, "finished": ended, "wall_seconds": wall})

    watchdog = Watchdog(
        training,
        stop,
        siblings(),
        rank=rank(),
        ranks=world_size(),
        limit_seconds=request.hang_timeout,
        last_words=lambda: write("failed"),
    )
    with closing(loader), closing(val_loader) if val_loader is not None else nullcontext(), watch, watchdog:
        watch.note(_first_line(job, carry))
        for note in (*job.notes, *job.leakage.notes):
            watch.note(note)
        checkpoint = restore(training)
        body |= {"world_changes": _world_changes(job, checkpoint), "restarts": _restarts(job, training.done)}
        if checkpoint is not None:
            watch.note(_continues(checkpoint))
        elif job.previous is not None:
            watch.note("an earlier start had saved nothing yet: starts at step 0")
        if val_loader is None and job.recipe.checkpoint.select == "best":
            watch.note("the shard set has no val split: the weights of the last epoch are handed on, not of the best")
        write("running")
        try:
            finished = train(training)
        except BaseException:
            # The record must not say "running" when nothing runs; on a full disk it cannot be had.
            with suppress(OSError):
                write("failed")
            raise
        write("finished" if finished else "interrupted")
        if finished and job.spec.name == CARD_STAGE and rank() == 0:
            watch.note(_card(job))
        if not finished:
            watch.note(f"stopped and saved at step {training.done}; the same command continues")
    return 0 if finished else stop.exit_code


def _card(job: Job) -> str:
    """Write the model card, and say where it is."""
    from mstl.use.card import CARD_NAME, leave_card  # draws nothing, but imports what does

    missing = leave_card(job.out, shards=job.shards, manifest=job.manifest)
    return missing or f"model card in {job.out / CARD_NAME}"


def _world_changes(job: Job, checkpoint: Checkpoint | None) -> list[dict[str, int]]:
    """The steps behind which the number of ranks changed; of a checkpoint that was given up nothing is kept."""
    if job.previous is None or checkpoint is None:
        return []
    held: list[dict[str, int]] = job.previous.body.get("world_changes", [])
    changes = [change for change in held if change["step"] < checkpoint.step]
    if checkpoint.ranks != world_size():
        changes.append({"step": checkpoint.step, "from": checkpoint.ranks, "to": world_size()})
    return changes


def _restarts(job: Job, step: int) -> list[dict[str, Any]]:
    """How often `mstl train --max-restarts` had to start the job again, behind which step, and why."""
    held: list[dict[str, Any]] = [] if job.previous is None else job.previous.body.get("restarts", [])
    cause = os.environ.get(RESTART_CAUSE)
    return held if cause is None else [*held, {"step": step, "at": now(), "cause": cause}]


def _continues(checkpoint: Checkpoint) -> str:
    text = f"continues behind step {checkpoint.step}"
    if checkpoint.ranks != world_size():
        ranks = "1 rank" if world_size() == 1 else f"{world_size()} ranks"
        text += f", on {ranks} instead of {checkpoint.ranks}: no longer bit for bit the run that it was"
    return text


def _first_line(job: Job, carry: dict[str, Any] | None) -> str:
    origin = "random weights"
    if job.parent is not None and carry is not None:
        origin = f"{job.parent.run or job.parent.weights} ({describe_carry(carry)})"
    images = job.manifest.samples(job.train_split)
    return (
        f"{job.model} on {images} images of {job.origin}, {world_size()} x {_device_name()}, from {origin} -> {job.out}"
    )


def _device_name() -> str:
    if device().type == "cuda":
        return torch.cuda.get_device_name(device())
    return f"CPU ({platform.machine()}, {torch.get_num_threads()} threads a rank)"
