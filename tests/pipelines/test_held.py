"""A Loader that the garbage collector finds on a thread of its own pipeline: nothing hangs, nothing is aborted."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from nvidia.dali import fn, pipeline_def
from nvidia.dali.pipeline import Pipeline

from pipelines.held import Held

COLLECTED_IN_ITS_OWN_GRAPH = """
    import gc, itertools, sys, threading, weakref
    from pathlib import Path
    from pipelines import lobes
    from pipelines.loader import Loader
    from pipelines.recipe import multi_view_ct

    gc.disable()
    dropped, collected, real = threading.Event(), threading.Event(), lobes._find_bodies

    def collecting(seen):
        if next(calls) >= 2 * 2:  # the third batch, begun behind the second; each is worked on in two parts
            dropped.wait(120)
            gc.collect()
            collected.set()
        return real(seen)

    calls, lobes._find_bodies = itertools.count(), collecting
    loader = Loader(multi_view_ct(24), Path(sys.argv[1]), "train", rank=0, world=1, batch=4, epochs=100, device="cpu",
                    seed=0, shuffle=True, remainder="keep", threads=2)
    stream = iter(loader)
    next(stream), next(stream)
    loader.itself, gone = (loader, stream), weakref.ref(loader)
    del loader, stream
    dropped.set()
    assert collected.wait(120), "its graph waits for the collection of itself"
    assert gone() is None
    print("well")
"""


def test_a_loader_collected_by_its_own_graph_ends(noise_shards: Path) -> None:
    program = [sys.executable, "-c", textwrap.dedent(COLLECTED_IN_ITS_OWN_GRAPH), str(noise_shards)]
    root = Path(__file__).parents[2]
    done = subprocess.run(program, capture_output=True, text=True, timeout=300, cwd=root)
    assert done.stdout == "well\n", done.stderr
    assert done.returncode == 0, done.stderr


def test_a_closed_pipeline_is_not_kept() -> None:
    @pipeline_def(batch_size=1, num_threads=1, device_id=None)
    def graph() -> object:
        return fn.random.uniform(range=(0.0, 1.0))

    held = Held(graph())
    assert isinstance(held.pipeline, Pipeline)
    held.close()
    held.close()
    with pytest.raises(RuntimeError, match="was closed"):
        _ = held.pipeline
