"""Which steps one DALI pipeline is built for, and building the next one while this one is read."""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
from nvidia.dali.pipeline import Pipeline

from pipelines.held import Held
from pipelines.order import SplitOrder
from pipelines.steps import Steps
from pipelines.unreadable import changed_shard, unreachable_store
from shards.plan import Plan

WINDOW_PAIRS = 8_000
"""About how many (tar, index) pairs one pipeline is built for: epochs of a small split, a part of one of a large split.

DALI maps a file for each and fails beyond half of vm.max_map_count (65,530 by default), all pipelines of a process
together: of each Loader there may be two, the next being built while one is read.
"""


class Build(Protocol):
    """Makes the pipeline over (tar, index) pairs, as `pipelines.inputs.build_pipeline` does."""

    def __call__(
        self, tars: Sequence[str], indexes: Sequence[str], /, *, seed: int, checkpoint: bytes | None
    ) -> Pipeline: ...


class Windows:
    """The window at hand and its pipeline, for one rank. Steps, here places, are counted through all epochs.

    A window is entered with `begin` or `restore`; its pipeline is built when it is first asked for.
    """

    def __init__(self, plan: Plan, rank: int, steps: Steps, split: SplitOrder, build: Build) -> None:
        self._plan, self._rank, self._steps, self._split = plan, rank, steps, split
        self._make = build
        self.window = range(0)
        self._held: Held | None = None
        self._restored: str | None = None  # DALI's checkpoint to build the pipeline from
        self._builder = ThreadPoolExecutor(1, thread_name_prefix="next-window")
        self._ahead: tuple[range, Future[Held]] | None = None  # the next window, under way

    def begin(self, place: int) -> None:
        """A window from this place on, without a pipeline yet."""
        self.restore(self._from(place), None)

    def restore(self, window: range, dali: str | None) -> None:
        """The window and the checkpoint of a state."""
        self._drop_pipeline()
        self.window, self._restored = window, dali

    def close(self) -> None:
        """Free DALI's threads and memory; afterwards there is no window, and nothing under way."""
        self.drop_ahead()
        self.restore(range(0), None)

    def drop_pipeline(self) -> None:
        """Forget a pipeline that failed, and what is under way: windows will begin elsewhere now."""
        self._drop_pipeline()
        self.drop_ahead()

    def drop_ahead(self) -> None:
        """Afterwards nothing is under way."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None and not ahead[1].cancel() and ahead[1].exception() is None:  # waits for it
            ahead[1].result().close()

    def checkpoint(self) -> str | None:
        """DALI's position within the window as text; None at its start, before there is a pipeline."""
        if self._held is None:
            return self._restored
        return base64.b64encode(self._held.pipeline.checkpoint()).decode()

    def pipeline(self, place: int) -> Pipeline:
        """The window's pipeline: at hand, built ahead, or built now; past its middle the next one is begun."""
        if self._held is None:
            ahead, self._ahead = self._ahead, None
            if ahead is not None and ahead[0] == self.window and self._restored is None:
                self._held = ahead[1].result()
            else:
                self._held = self._build(self.window, self._restored)
        window, end = self.window, self._plan.epochs * self._plan.steps_per_epoch
        if self._ahead is None and window.stop < end and place >= (window.start + window.stop) // 2:
            upcoming = self._from(window.stop)
            self._ahead = upcoming, self._builder.submit(self._build, upcoming, None)
        return self._held.pipeline

    def _from(self, place: int) -> range:
        """Steps for one pipeline; no longer than the training that is asked for."""
        each = self._plan.steps_per_epoch
        samples = WINDOW_PAIRS * max(1, (self._plan.chunk or 1) // 2)  # a chunk may lie in two tars
        stop = place + max(1, samples // self._plan.rank_batch)
        return range(place, min(stop, max(self._plan.epochs, place // each + 1) * each))

    def _drop_pipeline(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            held.close()

    def _build(self, window: range, restored: str | None) -> Held:
        """The pipeline of a window, at a restored position or else at its start; what it reads, nothing changes."""
        positions = self._steps.reader_order(window.start, window.stop)
        epoch, step = divmod(window.start, self._plan.steps_per_epoch)
        # DALI reads the indexes when it builds; they need not outlive that.
        with tempfile.TemporaryDirectory(prefix="mstl-order-") as folder:
            tars, indexes = self._split.write(positions, Path(folder))
            pipeline = self._make(
                tars,
                indexes,
                seed=_pipeline_seed(self._plan.seed, self._rank, epoch, step),
                checkpoint=None if restored is None else base64.b64decode(restored),
            )
            try:
                pipeline.build()
            except RuntimeError as error:
                raise unreachable_store(error, self._split) or changed_shard(self._split) or error from error
        return Held(pipeline)


def _pipeline_seed(seed: int, rank: int, epoch: int, step: int) -> int:
    """A seed of DALI's range for the window that starts here; well mixed, so that ranks are unrelated."""
    return int(np.random.SeedSequence([seed, rank, epoch, step]).generate_state(1)[0] >> 1)
