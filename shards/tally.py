"""Counters that worker processes raise and the process which started them reads: progress within a long job."""

from __future__ import annotations

from dataclasses import dataclass
from multiprocessing import get_context
from typing import Protocol

from shards.progress import Progress


@dataclass(frozen=True, slots=True)
class Counts:
    """Images done, the bytes they took, how many of them were refused, and images an earlier run had done."""

    images: int = 0
    size_bytes: int = 0
    refused: int = 0
    skipped: int = 0


class Tally(Protocol):
    """What a job counts into while it runs."""

    def add(self, counts: Counts) -> None:
        """Add to the counters."""


class Stopped(Exception):
    """The process that started this job does not want its result any more."""


class SharedTally:
    """Counters in shared memory; picklable for the start of a worker process only."""

    def __init__(self) -> None:
        self._cells = get_context("spawn").Array("q", 5)

    def add(self, counts: Counts) -> None:
        """Add to the counters, from any process; raises Stopped after `stop`."""
        with self._cells.get_lock():
            if self._cells[4]:
                raise Stopped
            self._cells[0] += counts.images
            self._cells[1] += counts.size_bytes
            self._cells[2] += counts.refused
            self._cells[3] += counts.skipped

    def read(self) -> Counts:
        """The counters now."""
        with self._cells.get_lock():
            return Counts(*self._cells[:4])

    def stop(self) -> None:
        """Make the jobs still running end at their next count."""
        with self._cells.get_lock():
            self._cells[4] = 1


class Shown:
    """A tally that shows what is added to it at once: for work in this process."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def add(self, counts: Counts) -> None:
        """Show the steps."""
        if counts.skipped:
            self._progress.skip(counts.skipped)
        self._progress.advance(counts.images, size_bytes=counts.size_bytes, refused=counts.refused)


class Follower:
    """Shows what was added to a shared tally since it looked last."""

    def __init__(self, tally: SharedTally, progress: Progress) -> None:
        self._tally, self._shown = tally, Shown(progress)
        self._last = tally.read()

    def look(self) -> None:
        """Show the difference."""
        now, last = self._tally.read(), self._last
        self._last = now
        if now != last:
            self._shown.add(
                Counts(
                    now.images - last.images,
                    now.size_bytes - last.size_bytes,
                    now.refused - last.refused,
                    now.skipped - last.skipped,
                )
            )
