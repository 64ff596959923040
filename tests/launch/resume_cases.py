"""Trainings in processes of a test's own, for tests that stop them and go on: real engines, loaders and checkpoints."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from mstl.engine import Snapshot, StepResult
from pipelines.batch import Batch

FIELDS = ("data.image_size=32", "data.batch_size=8", "data.workers=1", "optim.lr=0.01")


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A training, or the part of one between two interruptions.

    killed_at: the step behind which it is left without a word. stopped_at: the step behind which it is asked to stop.
    error: says that it must fail with this in its message.
    """

    run: str
    stage: str
    ssl: str | None = None
    fields: tuple[str, ...] = ()
    epochs: int = 2
    killed_at: int | None = None
    stopped_at: int | None = None
    error: str | None = None


class Killed(BaseException):
    """Stands for SIGKILL: nothing is done on the way out."""


class _Watch:
    def __init__(self, part: Part) -> None:
        self._part = part
        self.updates = 0  # of this and earlier attempts

    @property
    def requested(self) -> bool:
        """Whether it is asked to stop: within the step, so that it is this one behind which it does."""
        return self._part.stopped_at is not None and self.updates >= self._part.stopped_at

    def start(self, step: int) -> None:
        self.updates = step

    def step(self, entry: Mapping[str, Any]) -> None:
        if entry["step"] == self._part.killed_at:
            raise Killed

    def validation(self, entry: Mapping[str, Any]) -> None: ...

    def note(self, text: str) -> None: ...

    def alert(self, text: str) -> None: ...


class _Recorder:
    """An engine that notes the samples of every update."""

    def __init__(self, engine: Any, file: Path, watch: _Watch) -> None:
        self._engine, self._file, self._watch = engine, file, watch
        self.module, self.device = engine.module, engine.device

    def update(self, batch: Batch, lr: float) -> StepResult:
        with self._file.open("a") as file:
            file.write(json.dumps(batch.sample_ids.tolist()) + "\n")
        result: StepResult = self._engine.update(batch, lr)
        self._watch.updates += 1
        return result

    def snapshot(self) -> Snapshot:
        snapshot: Snapshot = self._engine.snapshot()
        return snapshot

    def restore(self, shared: Mapping[str, Any], own: Mapping[str, Any]) -> None:
        self._engine.restore(shared, own)


def run_parts(parts: Sequence[Part], sets: Path, folder: Path, ranks: int) -> None:
    """Run parts one after another on gloo ranks; each leaves `RUN/ids-ATTEMPT-RANK.jsonl` beside what training does."""
    rendezvous = folder / f"rendezvous-{len(list(folder.glob('rendezvous-*')))}"
    spawn(_worker, args=(ranks, str(rendezvous), str(sets), str(folder), list(parts)), nprocs=ranks)


def _worker(rank: int, ranks: int, rendezvous: str, sets: str, folder: str, parts: list[Part]) -> None:
    for name, value in {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks}.items():
        os.environ[name] = str(value)
    os.environ |= {"DS_ACCELERATOR": "cpu", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    torch.set_num_threads(1)
    if ranks > 1:  # alone it makes its own
        dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=ranks)
    from launch.engine import start_processes

    start_processes()  # finds the group
    for part in parts:
        _run(part, Path(sets), Path(folder) / part.run, rank)
        dist.barrier()
    dist.destroy_process_group()


def _run(part: Part, sets: Path, out: Path, rank: int) -> None:
    from launch.engine import DeepSpeedEngine
    from mstl.build import build_loaders, build_module
    from mstl.distributed import world_size
    from mstl.job import Request, plan_job, record
    from mstl.resume import restore
    from mstl.runs import write_record
    from mstl.train import train
    from mstl.training import Training
    from shards.errors import MstlError

    source = {"stl_n": "imagenet", "stl_m": "covidx"}.get(part.stage, "covid19-ct")
    overrides = [*FIELDS, f"optim.epochs={part.epochs}", "checkpoint.every_steps=1", *part.fields]
    job = plan_job(
        Request(
            stage=part.stage, ssl=part.ssl, model="resnet14-attn1", shards=sets / source, out=out,
            init_from="none", overrides=overrides,
        )
    )  # fmt: skip
    dist.barrier()  # all have looked before one writes
    torch.manual_seed(job.seed)
    stage, carry = build_module(job)
    loader, val_loader = build_loaders(job, rank=rank, world=world_size(), device=torch.device("cpu"))
    if rank == 0:
        write_record(out, record(job, world_size=world_size(), device="CPU", carry=carry))
    dist.barrier()
    attempt = len(list(out.glob("ids-*-0.jsonl")))
    dist.barrier()
    recorded = out / f"ids-{attempt}-{rank}.jsonl"
    recorded.touch()
    watch = _Watch(part)
    engine = _Recorder(DeepSpeedEngine(stage.module, job.recipe, torch.device("cpu")), recorded, watch)
    torch.manual_seed(rank + 1)
    training = Training(
        name=part.stage, stage=stage, engine=engine, recipe=job.recipe, loader=loader, val_loader=val_loader,
        run=out, watch=watch, stop=watch,
    )  # fmt: skip
    with closing(loader), closing(val_loader) if val_loader is not None else nullcontext():
        try:
            checkpoint = restore(training)
            if checkpoint is not None:
                statistics = {n: v.clone() for n, v in engine.module.named_buffers() if n.endswith("running_mean")}
                torch.save(statistics, out / f"restored-{attempt}-{rank}.pt")
            train(training)
            assert part.killed_at is None and part.error is None, f"{part} ended"
        except Killed:
            assert training.done == part.killed_at
        except MstlError as error:
            assert part.error is not None and part.error in str(error), error
