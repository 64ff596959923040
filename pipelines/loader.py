"""The Loader: batches of a split for one rank, in the plan's order, resumable at any step bit by bit."""

from __future__ import annotations

import base64
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nvidia.dali.pipeline import Pipeline
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from pipelines.batch import Batch
from pipelines.inputs import build_pipeline
from pipelines.order import open_split
from pipelines.recipe import Inputs
from pipelines.state import STATE_VERSION, check_state, identify, order_digest
from pipelines.steps import Steps
from pipelines.unreadable import Unreadable, changed_shard, find_unreadable, too_many, unreachable_store
from shards.errors import MstlError
from shards.plan import Plan, Positions, Remainder, default_chunk
from shards.schema import load_manifest

WINDOW_PAIRS = 8_000
"""About how many (tar, index) pairs one pipeline is built for: epochs of a small split, a part of one of a large split.

DALI maps a file for each and fails beyond half of vm.max_map_count (65,530 by default), all pipelines of a process
together: of each Loader there may be two, the next being built while one is read.
"""
_AHEAD = 4  # steps that DALI may have begun when it fails


class Loader:
    """Batches of one rank. `for epoch in range(loader.epoch, epochs): for batch in loader: ...`

    One iteration gives the rest of the current epoch and then moves on to the next. Position and augmentation
    are part of `state_dict`; the same seed gives the same batches, for any number of threads.

    inputs: the recipe. shards: folder of the shard set. tars: s3:// URL of the same set where DALI is to read the tars
    there (credentials and endpoint from the AWS variables; the folder then needs manifest and indexes only). batch:
    global, over all `world` ranks. epochs: how many can be iterated. device: "cpu" or "gpu" (`device_id` is then the
    local GPU). remainder: see `shards.plan.Plan`. dtype: of the views. max_bad: fraction of the split that this rank
    may skip as unreadable; such an image gives its place in the batch to another of the same batch, and stands in
    `unreadable`. `wait_seconds`: time spent waiting for batches so far.
    Raises MstlError for a shard set, split or batch that does not fit.
    """

    def __init__(
        self,
        inputs: Inputs,
        shards: Path,
        split: str,
        *,
        rank: int,
        world: int,
        batch: int,
        epochs: int,
        device: str,
        seed: int,
        shuffle: bool,
        remainder: Remainder,
        tars: str | None = None,
        dtype: torch.dtype = torch.float32,
        max_bad: float = 0.0,
        threads: int = 2,
        device_id: int = 0,
    ) -> None:
        assert 0 <= rank < world, f"rank {rank} of {world}"
        assert device in ("cpu", "gpu"), device
        self.inputs = inputs
        self.manifest = load_manifest(shards)
        self.epoch = 0
        self.step = 0
        self.wait_seconds = 0.0
        self.unreadable: list[Unreadable] = []
        samples = self.manifest.samples(split)
        self.plan = Plan(
            samples=samples, world=world, batch=batch, epochs=epochs, seed=seed,
            shuffle=shuffle, remainder=remainder, chunk=default_chunk(samples),
        )  # fmt: skip
        self._split = open_split(shards, self.manifest, split, tars)
        self._name = f"{tars or shards} ({split})"
        self._rank = rank
        self._device = device
        self._device_id = device_id
        self._threads = threads
        self._dtype = dtype
        self._allowed = int(max_bad * samples)
        self._steps = Steps(self.plan, rank)
        self._identity = identify(
            self.plan, rank, shard_set=self.manifest.digest(), split=split, device=device, inputs=inputs
        )
        self._window = range(0)  # steps, counted through all epochs, that the pipeline at hand covers
        self._pipeline: Pipeline | None = None
        self._builder = ThreadPoolExecutor(1, thread_name_prefix="next-window")
        self._ahead: tuple[range, Future[Pipeline]] | None = None  # the next window, under way
        self._restored: str | None = None  # DALI's checkpoint to build the pipeline from

    def __len__(self) -> int:
        return self.plan.steps_per_epoch

    def __iter__(self) -> Iterator[Batch]:
        if self.epoch >= self.plan.epochs:
            raise IndexError(
                f"all {self.plan.epochs} epochs of {self._name} have been read; give the Loader more epochs"
            )
        while self.step < len(self):
            batch = self._next()
            self.step += 1
            yield batch
        self.epoch += 1
        self.step = 0

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON values: where the next batch is, the state of the augmentation, and what they belong to."""
        self._enter_window()
        return {
            "version": STATE_VERSION,
            "identity": {**self._identity, "order": order_digest(self.plan, self.epoch)},
            "epoch": self.epoch,
            "step": self.step,
            "window": [self._window.start, self._window.stop],
            "unreadable": sorted(self._steps.unreadable),
            "dali": self._restored if self._pipeline is None else _text(self._pipeline.checkpoint()),
        }

    def load_state_dict(self, state: dict[str, Any], *, other_world: bool = False) -> bool:
        """Continue where `state` was taken; raises MstlError naming what differs if it belongs to other batches.

        other_world: the state may be of another number of ranks (of any one of them: the position is the same). What
        is left of its epoch is then shared anew, each sample once, with new augmentation. Returns whether it was so.
        """
        own = {**self._identity, "order": order_digest(self.plan, state.get("epoch", 0))}
        restriped = check_state(self._name, state, own, other_world=other_world)
        self.close()
        self.epoch, self.step = state["epoch"], state["step"]
        self._steps.unreadable = set(state["unreadable"])
        if restriped:
            if self.step >= len(self):  # the last partial step is shorter, or there is none
                self.epoch, self.step = self.epoch + 1, 0
            self._open_window()
        else:
            self._window, self._restored = range(*state["window"]), state["dali"]
        return restriped

    def close(self) -> None:
        """Free DALI's threads and memory. Within an epoch, load a state before using the Loader again."""
        self._drop_ahead()
        self._pipeline = None
        self._restored = None
        self._window = range(0)

    @property
    def _place(self) -> int:
        """The next step, counted through all epochs."""
        return self.epoch * len(self) + self.step

    def _enter_window(self) -> None:
        """Let the window cover the next step; a new window starts a new pipeline."""
        # Behind an epoch's last step the epoch is not over yet, and there is nothing to read.
        if self._place in self._window or (self.step == len(self) and self._place == self._window.stop):
            return
        if self.step and self._place != self._window.stop:
            raise RuntimeError(f"the Loader of {self._name} was closed or failed within an epoch; load a state first")
        self._open_window()

    def _open_window(self) -> None:
        """A window from the next step on."""
        self._window = self._window_from(self._place)
        self._pipeline = None
        self._restored = None

    def _window_from(self, place: int) -> range:
        """Steps for one pipeline; no longer than the training that is asked for."""
        samples = WINDOW_PAIRS * max(1, (self.plan.chunk or 1) // 2)  # a chunk may lie in two tars
        stop = place + max(1, samples // self.plan.rank_batch)
        return range(place, min(stop, max(self.plan.epochs, self.epoch + 1) * len(self)))

    def _enter_pipeline(self) -> Pipeline:
        """The window's pipeline: at hand, built ahead, or built now; past its middle the next one is begun."""
        if self._pipeline is None:
            ahead, self._ahead = self._ahead, None
            if ahead is not None and ahead[0] == self._window and self._restored is None:
                self._pipeline = ahead[1].result()
            else:
                self._pipeline = self._build(self._window, self._restored)
        window, end = self._window, self.plan.epochs * len(self)
        if self._ahead is None and window.stop < end and self._place >= (window.start + window.stop) // 2:
            upcoming = self._window_from(window.stop)
            self._ahead = upcoming, self._builder.submit(self._build, upcoming, None)
        return self._pipeline

    def _drop_ahead(self) -> None:
        """Afterwards nothing is under way."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None and not ahead[1].cancel():
            wait([ahead[1]])

    def _build(self, window: range, restored: str | None) -> Pipeline:
        """The pipeline of a window, at a restored position or else at its start; what it reads, nothing changes."""
        positions = self._steps.reader_order(window.start, window.stop)
        # DALI reads the indexes when it builds; they need not outlive that.
        with tempfile.TemporaryDirectory(prefix="mstl-order-") as folder:
            tars, indexes = self._split.write(positions, Path(folder))
            pipeline = build_pipeline(
                self.inputs,
                tars,
                indexes,
                batch=self.plan.rank_batch,
                threads=self._threads,
                device=self._device,
                device_id=self._device_id,
                seed=_pipeline_seed(self.plan.seed, self._rank, *divmod(window.start, len(self))),
                checkpoint=None if restored is None else base64.b64decode(restored),
            )
            try:
                pipeline.build()
            except RuntimeError as error:
                raise unreachable_store(error, self._split) or changed_shard(self._split) or error from error
        return pipeline

    def _next(self) -> Batch:
        started = time.perf_counter()
        self._enter_window()
        while True:
            run = self._enter_pipeline().run
            try:
                outputs = run()
                break
            except RuntimeError as error:
                del run  # or it would keep the pipeline
                self._skip_unreadable(error)
        expected = self._steps.at(self.epoch, self.step)
        tensors = [from_dlpack(output.as_tensor())[: len(expected)] for output in outputs]
        batch = self._batch(tensors, expected)
        self.wait_seconds += time.perf_counter() - started
        return batch

    def _skip_unreadable(self, error: RuntimeError) -> None:
        """Note the images that made DALI fail and begin a window at this very step; raises what cannot be skipped."""
        self._pipeline = None
        self._drop_ahead()  # windows begin elsewhere now
        ahead = range(self._place, min(self._place + _AHEAD, self._window.stop))
        positions = np.concatenate([self._steps.at(*divmod(place, len(self))) for place in ahead])
        try:
            found = find_unreadable(
                error, self._split, np.unique(positions), device=self._device, device_id=self._device_id
            )
            if len(self._steps.unreadable) + len(found) > self._allowed:
                raise too_many([*self.unreadable, *found], self._allowed, self._name) from error
        except (MstlError, RuntimeError):
            self.close()
            raise
        self.unreadable += found
        self._steps.unreadable |= {one.position for one in found}
        self._open_window()

    def _batch(self, tensors: list[Tensor], expected: Positions) -> Batch:
        names = self.inputs.view_names
        views = {
            name: x.permute(0, 3, 1, 2).to(self._dtype) for name, x in zip(names, tensors, strict=False)
        }  # a change of type keeps the layout, channels_last
        named, *located = tensors[len(names) :]
        if not np.array_equal(named[:, 0].numpy(), self._split.ids(expected)):
            raise MstlError(
                f"shard set {self._name}",
                why="its tars hold other samples than its manifest says",
                remedy="Check the set with mstl verify; convert the data again",
            )
        device = next(iter(views.values())).device
        named = named.to(device)
        return Batch(
            views=views,
            labels=named[:, 1],
            sample_ids=named[:, 0],
            boxes=located[0][:, :4] if located else None,
            located=located[0][:, 4] == 0 if located else None,
        )


def _text(checkpoint: bytes) -> str:
    return base64.b64encode(checkpoint).decode()


def _pipeline_seed(seed: int, rank: int, epoch: int, step: int) -> int:
    """A seed of DALI's range for the window that starts here; well mixed, so that ranks are unrelated."""
    return int(np.random.SeedSequence([seed, rank, epoch, step]).generate_state(1)[0] >> 1)
