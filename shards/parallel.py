"""Mapping a function over jobs in worker processes: results in order, few jobs in flight, errors as they were."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import TypeVar

from shards.errors import MstlError

Job = TypeVar("Job")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class _Failed:
    """An MstlError on its way through a pipe: exceptions with keyword-only arguments do not survive pickling."""

    what: str
    why: str
    remedy: str


def ordered_map(
    function: Callable[[Job], Result], jobs: Iterable[Job], *, workers: int
) -> Generator[Result, None, None]:
    """Yield function(job) in the order of the jobs; with one worker in this process, else in spawned ones.

    At most four jobs a worker are in flight, so memory stays flat. Function and jobs must be picklable, and a script
    that calls this needs its `if __name__ == "__main__":`. Raises what the function raises; MstlError when a worker
    process dies. Close it (contextlib.closing) before touching what the jobs touch: it waits for those under way.
    """
    if workers == 1:
        yield from map(function, jobs)
        return
    pool = ProcessPoolExecutor(
        workers, mp_context=multiprocessing.get_context("spawn"), initializer=_live_and_die_with_the_parent
    )
    flying: deque[Future[Result | _Failed]] = deque()
    try:
        for job in jobs:
            flying.append(pool.submit(_call, function, job))
            if len(flying) >= 4 * workers:
                yield _unwrap(flying.popleft())
        while flying:
            yield _unwrap(flying.popleft())
    except BrokenProcessPool as error:
        raise MstlError(
            "converting images",
            why="a worker process died, most often for lack of memory",
            remedy="Run the same command again with fewer --workers; finished work is kept",
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _call(function: Callable[[Job], Result], job: Job) -> Result | _Failed:
    try:
        return function(job)
    except MstlError as error:
        return _Failed(error.what, error.why, error.remedy)


def _unwrap(future: Future[Result | _Failed]) -> Result:
    result = future.result()
    if isinstance(result, _Failed):
        raise MstlError(result.what, why=result.why, remedy=result.remedy)
    return result


def _live_and_die_with_the_parent() -> None:
    """Leave interrupts to the parent, and end when it is gone: an orphan would write beside the next build."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()


def _end_with_the_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "this runs in workers only"
    parent.join()
    os._exit(1)
