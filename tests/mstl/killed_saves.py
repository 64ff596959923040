"""Saves a checkpoint in forked processes that are killed, each at another point; prints what is left, as JSON."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mstl import checkpoint, saving
from mstl.checkpoint import newest_checkpoint
from mstl.saving import Saver


def die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def while_a_file_is_written(path: Path, content: dict[str, Any]) -> None:
    path.write_bytes(b"half of a file")
    die()


def when(method: Callable[..., Any], named: Callable[[Path], bool]) -> Callable[..., Any]:
    def guarded(path: Path, *more: Any, **options: Any) -> Any:
        if named(path):
            die()
        return method(path, *more, **options)

    return guarded


def half_removed(path: Path, **_: Any) -> None:
    (path / "shared.pt").unlink()
    die()


POINTS: dict[str, tuple[Any, str, Any]] = {
    "while a file is written": (saving, "_write_tensors", while_a_file_is_written),
    "before the digests are published": (saving, "write_atomic", die),
    "before the seal": (checkpoint, "write_atomic", die),
    "before the name": (Path, "rename", when(Path.rename, lambda path: path.name.startswith(".step-2"))),
    "behind the name": (checkpoint, "sync", when(checkpoint.sync, lambda path: path.name == "checkpoints")),
    "before an old one loses its name": (checkpoint, "_remove", die),
    "while an old one is removed": (shutil, "rmtree", half_removed),
    "nowhere": (saving, "__doc__", ""),
}


def save(run: Path, step: int) -> None:
    saver = Saver(run / "checkpoints", keep=1, log=run / "metrics.jsonl")
    saver.begin(step, {"step": step}, {"weight": torch.full((1000,), float(step))}, {"w": torch.zeros(3)})
    saver.finish()


def main() -> None:
    found = {}
    for number, (point, (owner, name, deed)) in enumerate(POINTS.items()):
        run = Path(sys.argv[1]) / str(number)
        run.mkdir()
        save(run, 1)
        child = os.fork()
        if child == 0:
            setattr(owner, name, deed)
            save(run, 2)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        newest, damaged = newest_checkpoint(run / "checkpoints")
        assert newest is not None and not damaged, point
        assert torch.equal(newest.shared()["weight"], torch.full((1000,), float(newest.step)))
        ended = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else ""
        save(run, 3)
        after = sorted(path.name for path in (run / "checkpoints").iterdir())
        found[point] = {"newest": newest.step, "ended": ended, "after the next": after}
    print(json.dumps(found))  # noqa: T201 - for the test that started it


if __name__ == "__main__":
    main()
