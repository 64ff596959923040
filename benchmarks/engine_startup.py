"""From the command line to the first training step, part by part.

Called as a script this file stands in for `mstl` and for launch/train.py: the same code, with a note of the time when
each part has ended.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

MARKS = "MSTL_BENCH_MARKS"
COMMAND = "command"
PARTS = (
    ("the command, until it starts the launcher", COMMAND),
    ("DeepSpeed's launcher (imports torch)", "launcher"),
    ("the rank's imports", "imports"),
    ("reading the job: recipe, manifest, parent", "plan_job"),
    ("process group, DeepSpeed's import", "start_processes"),
    ("network", "build_module"),
    ("loaders: the plan", "build_loaders"),
    ("engine: broadcast, optimizer, buckets", "DeepSpeedEngine"),
    ("looking for a checkpoint", "restore"),
    ("DALI graph, first batch, first step", "update"),
)
FIELDS = ("data.image_size=32", "data.batch_size=8", "data.workers=1", "optim.epochs=1")


def measure(ranks: int, repeats: int = 3) -> dict[str, Any]:
    """Seconds of each part on rank 0, of the fastest of some starts (the first finds cold files), and of all starts.

    cpu_seconds: of the processes on that way, of the same start; other ranks take as much as rank 0.
    """
    with tempfile.TemporaryDirectory(prefix="mstl-bench-") as folder:
        root = Path(folder)
        _make_set(root)
        starts = [_start(root, ranks, number) for number in range(repeats)]
    totals = [sum(parts.values()) for parts, _ in starts]
    parts, cpu = starts[totals.index(min(totals))]
    return {"seconds": min(totals), "parts": parts, "cpu_seconds": cpu, "all_seconds": totals, "ranks": ranks}


def _make_set(root: Path) -> None:
    from shards.progress import QUIET
    from shards.sample import SampleSize, write_samples
    from shards.sources import read_source
    from shards.writer import WriteOptions, write_shards

    size = SampleSize(imagenet_classes=2, imagenet_train=10, imagenet_val=4, covidx_train=2, covidx_test=1, ct_train=2,
                      ct_val=1, ct_test=1)  # fmt: skip
    write_samples(root / "raw", size=size)
    write_shards(read_source("imagenet", root / "raw" / "imagenet"), root / "set", WriteOptions(), QUIET)


def _start(root: Path, ranks: int, number: int) -> tuple[dict[str, float], dict[str, float]]:
    """Wall-clock seconds of each part, and seconds of CPU of each process up to the first step."""
    marks = root / f"marks-{number}"
    marks.mkdir()
    words = [COMMAND, "--stage", "stl_n", "--model", "resnet14", "--ranks", str(ranks)]
    words += ["--shards", str(root / "set"), "--out", str(root / f"run-{number}")]
    words += [word for field in FIELDS for word in ("--set", field)]
    began = time.time()
    with (marks / "output").open("w+") as output:
        process = subprocess.Popen(
            [sys.executable, __file__, *words], env={**os.environ, MARKS: str(marks)}, stdout=output, stderr=output
        )
        # What the system says of a process's start counts from a boot time rounded to seconds.
        error = psutil.Process(process.pid).create_time() - began
        if process.wait():
            output.seek(0)
            raise RuntimeError(f"the training failed: {output.read()[-4000:]}")
    noted = json.loads((marks / "marks.json").read_text())
    ends: dict[str, float] = noted["ends"]
    for name in (COMMAND, "launcher"):
        ends[name] -= error
    found = {}
    for title, name in PARTS:
        found[title] = round(ends[name] - began, 3)
        began = ends[name]
    return found, noted["cpu"]


def _command() -> None:
    """`mstl train` with this file in the place of launch/train.py."""
    from mstl.cli import train

    train._script = lambda: __file__
    train.command.main(args=sys.argv[2:], prog_name="mstl train")


def _rank() -> None:
    """launch/train.py, noting on rank 0 when each part has ended."""
    if os.environ.get("RANK") != "0":
        _train()
        return
    me = psutil.Process()
    launcher = me.parent()
    command = launcher.parent() if launcher is not None else None
    assert launcher is not None and command is not None
    # A process begins when its parent has got ready to start it.
    ends = {COMMAND: launcher.create_time(), "launcher": me.create_time()}
    import launch.engine
    import launch.run

    ends["imports"] = time.time()
    for _, name in PARTS[3:-1]:
        setattr(launch.run, name, _noting(name, getattr(launch.run, name), ends))
    update = launch.engine.DeepSpeedEngine.update

    def first(self: Any, batch: Any, lr: float) -> Any:
        result = update(self, batch, lr)
        if "update" not in ends:
            ends["update"] = time.time()
            cpu = {name: sum(process.cpu_times()[:2]) for name, process in
                   (("the command", command), ("the launcher", launcher), ("rank 0", me))}  # fmt: skip
            Path(os.environ[MARKS], "marks.json").write_text(json.dumps({"ends": ends, "cpu": cpu}))
        return result

    launch.engine.DeepSpeedEngine.update = first  # type: ignore[method-assign]
    _train()


def _noting(name: str, function: Callable[..., Any], ends: dict[str, float]) -> Callable[..., Any]:
    def noted(*arguments: Any, **options: Any) -> Any:
        found = function(*arguments, **options)
        ends[name] = time.time()
        return found

    return noted


def _train() -> None:
    from launch.train import main

    main()


if __name__ == "__main__":
    _command() if sys.argv[1:2] == [COMMAND] else _rank()
