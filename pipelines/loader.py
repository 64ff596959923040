"""The Loader: batches of a split for one rank, in the plan's order, resumable at any step bit by bit."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from pipelines.batch import Batch
from pipelines.inputs import build_pipeline
from pipelines.order import open_split
from pipelines.recipe import Inputs
from pipelines.state import STATE_VERSION, check_state, identify, order_digest
from pipelines.steps import Steps
from pipelines.unreadable import Unreadable, find_unreadable, too_many
from pipelines.windows import Windows
from shards.errors import MstlError
from shards.plan import Plan, Positions, Remainder, default_chunk
from shards.schema import load_manifest

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
        self._device = device
        self._device_id = device_id
        self._dtype = dtype
        self._allowed = int(max_bad * samples)
        self._steps = Steps(self.plan, rank)
        self._identity = identify(
            self.plan, rank, shard_set=self.manifest.digest(), split=split, device=device, inputs=inputs
        )
        build = partial(
            build_pipeline, inputs, batch=self.plan.rank_batch, threads=threads, device=device, device_id=device_id
        )
        self._windows = Windows(self.plan, rank, self._steps, self._split, build)

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
        window = self._windows.window
        return {
            "version": STATE_VERSION,
            "identity": {**self._identity, "order": order_digest(self.plan, self.epoch)},
            "epoch": self.epoch,
            "step": self.step,
            "window": [window.start, window.stop],
            "unreadable": sorted(self._steps.unreadable),
            "dali": self._windows.checkpoint(),
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
            self._windows.begin(self._place)
        else:
            self._windows.restore(range(*state["window"]), state["dali"])
        return restriped

    def close(self) -> None:
        """Free DALI's threads and memory. Within an epoch, load a state before using the Loader again."""
        self._windows.close()

    @property
    def _place(self) -> int:
        """The next step, counted through all epochs."""
        return self.epoch * len(self) + self.step

    def _enter_window(self) -> None:
        """Let the window cover the next step; a new window starts a new pipeline."""
        window = self._windows.window
        # Behind an epoch's last step the epoch is not over yet, and there is nothing to read.
        if self._place in window or (self.step == len(self) and self._place == window.stop):
            return
        if self.step and self._place != window.stop:
            raise RuntimeError(f"the Loader of {self._name} was closed or failed within an epoch; load a state first")
        self._windows.begin(self._place)

    def _next(self) -> Batch:
        started = time.perf_counter()
        self._enter_window()
        while True:
            run = self._windows.pipeline(self._place).run
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
        self._windows.drop_pipeline()
        ahead = range(self._place, min(self._place + _AHEAD, self._windows.window.stop))
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
        self._windows.begin(self._place)

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
