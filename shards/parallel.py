"""Mapping a function over jobs in worker processes: results in order, few jobs in flight, errors as they were."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

from shards.errors import MstlError
from shards.progress import Progress
from shards.tally import Counts, Follower, SharedTally, Shown, Tally

Job = TypeVar("Job")
Result = TypeVar("Result")

_LOOK_SECONDS = 0.25
_tally: Tally | None = None  # of this process: what the job at hand counts into


def count(counts: Counts) -> None:
    """Say from within a job how far it is; shown where `ordered_map` was given a progress.

    Raises Stopped when the results are not wanted any more.
    """
    if _tally is not None:
        _tally.add(counts)


def ordered_map(
    function: Callable[[Job], Result], jobs: Iterable[Job], *, workers: int, progress: Progress | None = None
) -> Generator[Result, None, None]:
    """Yield function(job) in the order of the jobs; with one worker in this process, else in spawned ones.

    progress: shows what the jobs `count` while they run; the caller has started it.

    At most four jobs a worker are in flight, so memory stays flat. Function and jobs must be picklable, and a script
    that calls this needs its `if __name__ == "__main__":`. Raises what the function raises; MstlError when a worker
    process dies. Close it (contextlib.closing) before touching what the jobs touch: it waits for those under way.
    """
    if workers == 1:
        with _counting_into(None if progress is None else Shown(progress)):
            yield from map(function, jobs)
        return
    shared = None if progress is None else SharedTally()
    follower = None if progress is None or shared is None else Follower(shared, progress)
    pool = ProcessPoolExecutor(
        workers, mp_context=multiprocessing.get_context("spawn"), initializer=_begin, initargs=(shared,)
    )
    flying: deque[Future[Result]] = deque()
    try:
        for job in jobs:
            with _signals_held():
                flying.append(pool.submit(function, job))
            if len(flying) >= 4 * workers:
                yield _result(flying.popleft(), follower)
        while flying:
            yield _result(flying.popleft(), follower)
    except BrokenProcessPool as error:
        raise MstlError(
            "converting images",
            why="a worker process died, most often for lack of memory",
            remedy="Run the same command again with fewer --workers; finished work is kept",
        ) from error
    finally:
        if shared is not None:
            shared.stop()  # after an error or an interrupt nobody wants to wait for jobs of many images
        pool.shutdown(cancel_futures=True)


@contextmanager
def _counting_into(tally: Tally | None) -> Iterator[None]:
    global _tally
    before, _tally = _tally, tally
    try:
        yield
    finally:
        _tally = before


@contextmanager
def _signals_held() -> Iterator[None]:
    """Hold back Ctrl-C and SIGTERM: a worker that starts inside never gets them, and leaves stopping to its parent."""
    held = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)


def _result(future: Future[Result], follower: Follower | None) -> Result:
    if follower is None:
        return future.result()
    while not wait([future], timeout=_LOOK_SECONDS).done:
        follower.look()
    follower.look()
    return future.result()


def _begin(tally: SharedTally | None) -> None:
    global _tally
    _tally = tally
    threading.Thread(target=_end_with_the_parent, daemon=True).start()


def _end_with_the_parent() -> None:
    """An orphan would write beside the next build."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "this runs in workers only"
    parent.join()
    os._exit(1)
