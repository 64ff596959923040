"""Ends DALI's pipelines on a thread that is none of theirs.

A graph that calls Python does so on threads of its pipeline. The garbage collector works on whatever thread happens to
allocate: on one of these it may find the Loader of that very pipeline to be garbage, and the pipeline would wait for
its own thread to end. The process then hangs or is aborted. So a pipeline that nobody closed is not left to the
collector, but handed to a thread that does nothing else.
"""

from __future__ import annotations

import atexit
import threading
import weakref
from queue import SimpleQueue

from nvidia.dali.pipeline import Pipeline

_dropped: SimpleQueue[Pipeline | None] = SimpleQueue()
"""Its `put` may be called anywhere, within a collection too. None: there will be no more."""
_starting = threading.Lock()
_undertaker: threading.Thread | None = None


class Held:
    """A pipeline until `close`, which ends it on the caller's thread; or until this object is dropped, on any."""

    def __init__(self, pipeline: Pipeline) -> None:
        _start_undertaker()
        self._end = weakref.finalize(self, _dropped.put, pipeline)
        self._end.atexit = False  # DALI ends what is left then

    @property
    def pipeline(self) -> Pipeline:
        """Not to be kept; raises RuntimeError behind `close`."""
        held = self._end.peek()
        if held is None:
            raise RuntimeError("this pipeline was closed")
        _, _, (pipeline,), _ = held
        assert isinstance(pipeline, Pipeline)
        return pipeline

    def close(self) -> None:
        """End the pipeline now, unless somebody else still holds it."""
        self._end.detach()


def _start_undertaker() -> None:
    global _undertaker
    with _starting:
        if _undertaker is None or not _undertaker.is_alive():  # a forked process has none
            _undertaker = threading.Thread(target=_bury, name="end-of-pipelines", daemon=True)
            _undertaker.start()
            atexit.register(_finish, _undertaker)


def _bury() -> None:
    while _dropped.get() is not None:  # the last reference: the pipeline ends here
        pass


def _finish(undertaker: threading.Thread) -> None:
    """A process that ends within the end of a pipeline is aborted."""
    _dropped.put(None)
    undertaker.join()
