"""Processes that a watchdog ends, each another way; prints how, as JSON."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import psutil

from launch import watchdog
from launch.processes import StopSignal
from launch.watchdog import Watchdog
from mstl.training import Training


@dataclass
class Standing:
    """A training as far as a watchdog looks at it."""

    run: Path
    name: str = "finetune"
    done: int = 0
    saving: bool = False
    val_loader: None = None
    rescue: None = None


def watched(training: Standing, limit: float, siblings: list[psutil.Process], ranks: int = 2) -> Watchdog:
    return Watchdog(
        cast(Training, training), StopSignal(), siblings, rank=0, ranks=ranks, limit_seconds=limit,
        last_words=lambda: (training.run / "last-words").touch(),
    )  # fmt: skip


def hangs(run: Path) -> None:
    with watched(training := Standing(run), 1.0, []):
        training.done = 4
        time.sleep(3600)


def hangs_from_the_start(run: Path) -> None:
    with watched(Standing(run), 0.5, []):
        time.sleep(3600)


def loses_a_sibling(run: Path) -> None:
    gone = os.fork()
    if gone == 0:
        os._exit(0)
    with watched(Standing(run, done=5), 3600, [psutil.Process(gone)]):
        time.sleep(3600)


def is_blocked_when_told_to_stop(run: Path) -> None:
    mutex = ctypes.create_string_buffer(64)
    lock = ctypes.CDLL(None).pthread_mutex_lock
    with watched(Standing(run), 3600, []):
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
        # No handler of Python's runs while the main thread waits in C, as it does for another rank.
        lock(mutex)
        lock(mutex)


def saves_when_told_to_stop(run: Path) -> None:
    training = Standing(run, saving=True)
    with watched(training, 3600, []):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(4 * watchdog.STOP_SECONDS)
    os._exit(17)


def goes_on(run: Path) -> None:
    with watched(training := Standing(run), 3600, [psutil.Process()]):
        training.done += 1
        time.sleep(2)
    os._exit(17)


CASES: list[Callable[[Path], None]] = [
    hangs, hangs_from_the_start, loses_a_sibling, is_blocked_when_told_to_stop, saves_when_told_to_stop, goes_on
]  # fmt: skip


def main() -> None:
    watchdog.LOST_SECONDS, watchdog.STOP_SECONDS, watchdog.ANSWER_SECONDS = 0.5, 0.5, 0.2
    os.environ["WORLD_SIZE"] = "2"
    children: dict[str, int] = {}
    for case in CASES:
        run = Path(sys.argv[1]) / case.__name__
        run.mkdir()
        child = os.fork()
        if child == 0:
            said = os.open(run / "said", os.O_CREAT | os.O_WRONLY)
            os.dup2(said, 2)
            case(run)
            os._exit(99)
        children[case.__name__] = child
    found: dict[str, Any] = {}
    for name, child in children.items():
        run = Path(sys.argv[1]) / name
        _, status = os.waitpid(child, 0)
        stacks = run / "hang" / "rank-0.txt"
        found[name] = {
            "code": os.waitstatus_to_exitcode(status),
            "said": (run / "said").read_text(),
            "stacks": stacks.read_text() if stacks.exists() else "",
            "last words": (run / "last-words").exists(),
        }
    print(json.dumps(found))  # noqa: T201 - for the test that started it


if __name__ == "__main__":
    main()
