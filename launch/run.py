"""One rank's part of a training job, from the request to the exit code."""

from __future__ import annotations

import platform
import time
from contextlib import closing

import click
import torch
import torch.distributed as dist

from launch.engine import DeepSpeedEngine, start_processes
from launch.processes import StopSignal, device, local_rank, set_environment
from mstl.build import build_loaders, build_module
from mstl.distributed import rank, world_size
from mstl.job import Job, Request, plan_job, record
from mstl.runs import now, write_record
from mstl.train import Training, restore, train
from mstl.watch import ConsoleWatch, Silent


def run(request: Request) -> int:
    """Plan, build and train; returns the exit code: 0 finished, 143 or 130 stopped by a signal and saved."""
    set_environment()
    stop = StopSignal()
    job = plan_job(request)
    if job.finished:
        if local_rank() == 0:
            click.echo(f"{job.out}: already finished; name another --out to train again", err=True)
        return 0
    start_processes()
    try:
        return _train(job, stop)
    finally:
        dist.destroy_process_group()


def _train(job: Job, stop: StopSignal) -> int:
    torch.manual_seed(job.seed)
    stage, carry = build_module(job)
    loader, val_loader = build_loaders(job, rank=rank(), world=world_size(), device=device())
    engine = DeepSpeedEngine(stage.module, job.recipe, device())
    # Equal first weights on every rank, different dropout from here on.
    torch.manual_seed(job.seed * 65_536 + rank() + 1)
    epochs = job.recipe.optim.epochs
    watch: ConsoleWatch | Silent = Silent()
    if rank() == 0:
        watch = ConsoleWatch(job.out.name, steps=len(loader) * epochs, epochs=epochs)
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
    body = record(job, world_size=world_size(), device=_device_name(), carry=carry)
    began = time.monotonic()

    def write(status: str) -> None:
        if rank() == 0:
            wall = round(body["wall_seconds"] + time.monotonic() - began, 1)
            ended = now() if status == "finished" else None
            write_record(job.out, {**body, "status": status, "finished": ended, "wall_seconds": wall})

    with closing(loader), watch:
        watch.note(_first_line(job, carry))
        done = restore(training)
        if done:
            watch.note(f"continues behind step {done}")
        write("running")
        finished = False
        try:
            finished = train(training)
        finally:
            # Also on an error: the record must not say "running" when nothing runs.
            write("finished" if finished else "interrupted" if stop.requested else "failed")
        if not finished:
            watch.note(f"stopped and saved at step {training.done}; the same command continues")
    return 0 if finished else stop.exit_code


def _first_line(job: Job, carry: dict[str, list[str] | int] | None) -> str:
    origin = "random weights"
    if job.parent is not None and carry is not None:
        new, dropped = carry["new"], carry["dropped"]
        origin = f"{job.parent.run or job.parent.weights} ({carry['carried']} weights carried, {new or 'none'} new, "
        origin += f"{dropped or 'none'} dropped)"
    images = job.manifest.samples("train")
    return (
        f"{job.model} on {images} images of {job.shards}, {world_size()} x {_device_name()}, from {origin} -> {job.out}"
    )


def _device_name() -> str:
    if device().type == "cuda":
        return torch.cuda.get_device_name(device())
    return f"CPU ({platform.machine()}, {torch.get_num_threads()} threads a rank)"
