"""The Loader: batches of a split for one rank, in the plan's order, resumable at any step bit by bit."""

from __future__ import annotations

import base64
import hashlib
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from nvidia.dali.pipeline import Pipeline
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from pipelines.batch import Batch
from pipelines.inputs import build_pipeline
from pipelines.order import open_split
from pipelines.recipe import Inputs
from pipelines.unreadable import explain
from shards.errors import MstlError
from shards.plan import Plan, Positions, Remainder, default_chunk
from shards.schema import load_manifest

WINDOW_SAMPLES = 20_000
"""Samples of one rank that one pipeline is built for, in whole epochs: small splits are not rebuilt every epoch."""
STATE_VERSION = 1


class Loader:
    """Batches of one rank. `for epoch in range(loader.epoch, epochs): for batch in loader: ...`

    One iteration gives the rest of the current epoch and then moves on to the next. Position and augmentation
    are part of `state_dict`; the same seed gives the same batches, for any number of threads.

    inputs: the recipe. shards: folder of the shard set. batch: global, over all `world` ranks. epochs: how many can
    be iterated. device: "cpu" or "gpu" (`device_id` is then the local GPU). remainder: see `shards.plan.Plan`.
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
        samples = self.manifest.samples(split)
        self.plan = Plan(
            samples=samples, world=world, batch=batch, epochs=epochs, seed=seed,
            shuffle=shuffle, remainder=remainder, chunk=default_chunk(samples),
        )  # fmt: skip
        self._split = open_split(shards, self.manifest, split)
        self._name = f"{shards} ({split})"
        self._rank = rank
        self._device = device
        self._device_id = device_id
        self._threads = threads
        self._identity = self._identify(split)
        self._window = range(0)  # epochs that the pipeline at hand covers
        self._pipeline: Pipeline | None = None
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
            "identity": {**self._identity, "order": self._order_digest(self.epoch)},
            "epoch": self.epoch,
            "step": self.step,
            "window": [self._window.start, self._window.stop],
            "dali": self._restored if self._pipeline is None else _text(self._pipeline.checkpoint()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken; raises MstlError naming what differs if it belongs to other batches."""
        if state.get("version") != STATE_VERSION:
            raise MstlError(
                f"loader state for {self._name}",
                why=f"it has version {state.get('version')!r}, this program reads {STATE_VERSION}",
                remedy="Resume with the version of MSTL that wrote it",
            )
        own = {**self._identity, "order": self._order_digest(state["epoch"])}
        differing = [name for name, value in own.items() if state["identity"].get(name) != value]
        if differing:
            raise MstlError(
                f"loader state for {self._name}",
                why="it was saved with other " + "; ".join(_difference(n, state["identity"], own) for n in differing),
                remedy="Resume with the same settings and data, or start the stage anew",
            )
        self.close()
        self.epoch, self.step = state["epoch"], state["step"]
        self._window = range(*state["window"])
        self._restored = state["dali"]

    def close(self) -> None:
        """Free DALI's threads and memory. Within an epoch, load a state before using the Loader again."""
        self._pipeline = None
        self._restored = None
        self._window = range(0)

    def _identify(self, split: str) -> dict[str, Any]:
        """What batches depend on, by name; the number of epochs is not among it, so training can be prolonged."""
        plan = self.plan
        return {
            "shard set": self.manifest.digest(),
            "split": split,
            "world size": plan.world,
            "rank": self._rank,
            "batch size": plan.batch,
            "seed": plan.seed,
            "shuffle": plan.shuffle,
            "remainder": plan.remainder,
            "chunk": plan.chunk,
            "device": self._device,
            **{f"inputs.{name}": value for name, value in self.inputs.to_dict().items()},
        }

    def _order_digest(self, epoch: int) -> str:
        """Digest of an epoch's order: numpy does not promise equal permutations over its versions."""
        return hashlib.sha256(self.plan.order(epoch).tobytes()).hexdigest()

    def _enter_window(self) -> None:
        """Let the window cover the current epoch; a new window starts a new pipeline."""
        if self.epoch in self._window:
            return
        if self.step:
            raise RuntimeError(f"the Loader of {self._name} was closed or failed within an epoch; load a state first")
        epochs = max(1, WINDOW_SAMPLES // (self.plan.rank_batch * len(self)))
        self._window = range(self.epoch, min(self.epoch + epochs, max(self.plan.epochs, self.epoch + 1)))
        self._pipeline = None
        self._restored = None

    def _build(self) -> Pipeline:
        """The pipeline of the window, at the restored position if there is one, else at its start."""
        positions = np.concatenate([self.plan.filled(self._rank, epoch) for epoch in self._window])
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
                seed=_pipeline_seed(self.plan.seed, self._rank, self._window.start),
                checkpoint=None if self._restored is None else base64.b64decode(self._restored),
            )
            try:
                pipeline.build()
            except RuntimeError as error:
                raise self._unopened(error) from error
        return pipeline

    def _unopened(self, error: RuntimeError) -> Exception:
        """A shard that vanished since the set was opened is named; any other fault of the graph stays itself."""
        gone = [str(shard.tar) for shard in self._split.shards if not Path(shard.tar).is_file()]
        if not gone:
            return error
        return MstlError(
            f"shard {gone[0]}",
            why="it is gone since this job began",
            remedy="Bring it back and run the same command again",
        )

    def _next(self) -> Batch:
        started = time.perf_counter()
        self._enter_window()
        if self._pipeline is None:
            self._pipeline = self._build()
        expected = self.plan.rank_step(self._rank, self.epoch, self.step)
        try:
            outputs = self._pipeline.run()
        except RuntimeError as error:
            self.close()
            raise explain(error, self._split, expected, device=self._device, device_id=self._device_id) from error
        tensors = [from_dlpack(output.as_tensor())[: len(expected)] for output in outputs]
        self.wait_seconds += time.perf_counter() - started
        return self._batch(tensors, expected)

    def _batch(self, tensors: list[Tensor], expected: Positions) -> Batch:
        names = self.inputs.view_names
        views = {name: x.permute(0, 3, 1, 2) for name, x in zip(names, tensors, strict=False)}
        named, *located = tensors[len(names) :]
        if not np.array_equal(named[:, 0].numpy(), self._split.ids(expected)):
            raise MstlError(
                f"shard set {self._name}",
                why="its tars hold other samples than its manifest says",
                remedy="Check the set with mstl verify; convert the data again",
            )
        device = next(iter(views.values())).device
        named = named.to(device, non_blocking=True)
        boxes = located[0][:, :4] if located else None
        return Batch(views=views, labels=named[:, 1], sample_ids=named[:, 0], boxes=boxes)


def _text(checkpoint: bytes) -> str:
    return base64.b64encode(checkpoint).decode()


def _pipeline_seed(seed: int, rank: int, epoch: int) -> int:
    """A seed of DALI's range for the window that starts at this epoch; well mixed, so that ranks are unrelated."""
    return int(np.random.SeedSequence([seed, rank, epoch]).generate_state(1)[0] >> 1)


def _difference(name: str, saved: dict[str, Any], own: dict[str, Any]) -> str:
    before, now = (json.dumps(values.get(name)) for values in (saved, own))
    return f"{name} (then {before}, now {now})"
