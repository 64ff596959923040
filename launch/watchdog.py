"""A thread that ends its rank when training stands still: the main thread, blocked in an exchange, cannot."""

from __future__ import annotations

import faulthandler
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import click
import psutil

from launch.processes import StopSignal, alive
from mstl.failures import LOST, report_exit
from mstl.places import way_on
from mstl.saving import RESCUE_SECONDS
from mstl.training import Training

FIRST_STEP = 3  # times the limit: graphs are built, networks compiled
SLOW_STEP = 3  # times the longest step so far, where that is more than the limit
LOST_SECONDS = 20.0  # for a rank whose sibling has gone to find out by itself
STOP_SECONDS = 25.0  # for a step to end and be saved after SIGTERM: the launcher kills outright after 30
ANSWER_SECONDS = 4.0  # for the ranks to write down where they stand
_LOOK_SECONDS = 0.5


def allowed_seconds(limit: float, *, steps: int, longest: float) -> float:
    """How long the next step may take, behind so many, of which the longest but the first took so long."""
    return limit * FIRST_STEP if steps == 0 else max(limit, SLOW_STEP * longest)


class Watchdog:
    """Ends the process with exit code 4, saying why, when no step has finished for `limit_seconds`.

    Longer where a step took long before, and for the first one. Every rank then writes the stacks of its threads to
    RUN/hang/rank-R.txt (RUN/hang-before once the job is started again); the lowest that still can names the ranks that
    do not answer. Ends the process too, sooner,
    when another rank of this machine has gone or a signal asked to stop, and no step finishes that could notice.
    """

    def __init__(
        self,
        training: Training,
        stop: StopSignal,
        siblings: Sequence[psutil.Process],
        *,
        rank: int,
        ranks: int,
        limit_seconds: float,
        last_words: Callable[[], None],
    ) -> None:
        """last_words: called before the end, on the rank that speaks."""
        self._training, self._stop, self._siblings = training, stop, siblings
        self._rank, self._ranks, self._limit = rank, ranks, limit_seconds
        self._last_words = last_words
        self._folder = training.run / "hang"
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        if self._rank == 0:
            _set_aside(self._folder)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _place(self) -> tuple[int, ...]:
        """Grows with every training step and every validated batch."""
        val = self._training.val_loader
        return (self._training.done, *((val.epoch, val.step) if val is not None else ()))

    def _watch(self) -> None:
        place, since, longest, steps = self._place(), time.monotonic(), 0.0, 0
        lost_at: float | None = None
        stop_at: float | None = None
        while not self._ended.wait(_LOOK_SECONDS):
            now = time.monotonic()
            if self._place() != place:
                steps += 1
                if steps > 1:
                    longest = max(longest, now - since)
                place, since = self._place(), now
            self._stop.look()
            still = now - since
            allowed = allowed_seconds(self._limit, steps=steps, longest=longest)
            grace = max(STOP_SECONDS, 2 * longest)
            if stop_at is None and self._stop.requested:
                stop_at = now
            if lost_at is None and not all(map(alive, self._siblings)):
                lost_at = now
            if still > allowed:
                self._end(f"no step has finished for {still:.0f} s", LOST)
            elif lost_at is not None and min(still, now - lost_at) > LOST_SECONDS:
                self._end("another rank of this machine has gone", LOST)
            elif stop_at is not None and not self._training.saving and min(still, now - stop_at) > grace:
                self._end("it was told to stop, but no step has finished since", self._stop.exit_code)

    def _end(self, what: str, code: int) -> None:
        # In a thread of its own: the disk may be what hangs.
        telling = threading.Thread(target=self._tell, args=(what,), daemon=True)
        rescuing = threading.Thread(target=self._training.rescue or (lambda: None), daemon=True)
        telling.start()
        rescuing.start()
        telling.join(3 * ANSWER_SECONDS)
        rescuing.join(RESCUE_SECONDS)
        report_exit(code)
        os._exit(code)

    def _tell(self, what: str) -> None:
        try:
            self._folder.mkdir(exist_ok=True)
            with self._stacks(self._rank).open("w") as target:
                faulthandler.dump_traceback(target, all_threads=True)
        except OSError:
            faulthandler.dump_traceback(sys.stderr, all_threads=True)
        time.sleep(ANSWER_SECONDS)
        silent = [r for r in range(self._ranks) if r != self._rank and not self._stacks(r).is_file()]
        if any(lower not in silent for lower in range(self._rank)):
            return
        where = f"rank {', '.join(map(str, silent))} does not answer" if silent else "all ranks answer"
        click.echo(
            f"Error: {self._training.name}, behind step {self._training.done}: {what}; {where}. "
            f"Where they stand is in {self._folder}; {way_on(self._training.run)}",
            err=True,
        )
        with suppress(OSError):
            self._last_words()

    def _stacks(self, rank: int) -> Path:
        return self._folder / f"rank-{rank}.txt"


def _set_aside(folder: Path) -> None:
    """Keep the newest stacks of an earlier start under another name: a restart must not take away what explains it."""
    if folder.is_dir():
        before = folder.with_name(f"{folder.name}-before")
        shutil.rmtree(before, ignore_errors=True)
        with suppress(OSError):
            folder.rename(before)
    shutil.rmtree(folder, ignore_errors=True)  # else it would seem that ranks have answered
