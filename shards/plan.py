"""Which sample goes to which rank at which step: pure arithmetic, the same on every rank, with no file in sight."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from shards.errors import MstlError

Positions = NDArray[np.int64]
Remainder = Literal["keep", "drop", "pad"]

SMALL_SPLIT = 65536
LARGE_CHUNK = 32


def default_chunk(samples: int) -> int:
    """Contiguous samples kept together when shuffling: 1 for a small split, 32 for a large one (sequential reads)."""
    return 1 if samples <= SMALL_SPLIT else LARGE_CHUNK


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The order of a split over ranks, steps and epochs.

    samples: size of the split; its positions are 0 … samples-1 in shard order.
    world: number of ranks. batch: global batch, a multiple of `world`; each rank holds batch/world of it.
    epochs: how many the user means to train; any epoch's order can be asked for.
    shuffle: a new seeded permutation each epoch, else shard order. chunk: contiguous positions that stay
        neighbours in a shuffled order (None: `default_chunk`); they are shuffled among themselves too.
    remainder: what happens to the samples that fill no whole global batch. "keep": one smaller last step, cut to
        a multiple of `world`; "drop": they are left out; "pad": all are kept, and the last step is filled to a
        multiple of `world` with repeats from the start of the epoch (evaluation: repeats have equal ids).

    At every step all ranks hold equally many samples. Raises MstlError where that cannot be.
    """

    samples: int
    world: int
    batch: int
    epochs: int
    seed: int
    shuffle: bool
    remainder: Remainder
    chunk: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("samples", 1), ("world", 1), ("batch", 1), ("epochs", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise MstlError(
                    f"{name} {getattr(self, name)}", why=f"it must be at least {least}", remedy=f"Give a larger {name}"
                )
        if self.chunk is not None and self.chunk < 1:
            raise MstlError(f"chunk {self.chunk}", why="it must be at least 1", remedy="Leave it out for the default")
        if self.remainder not in get_args(Remainder):
            raise MstlError(
                f"remainder {self.remainder!r}", why="it is unknown", remedy="Use " + ", ".join(get_args(Remainder))
            )
        if self.batch % self.world:
            lower = max(1, self.batch // self.world) * self.world
            raise MstlError(
                f"global batch size {self.batch}",
                why=f"it cannot be shared equally by {self.world} ranks",
                remedy=f"Use a multiple of {self.world}, for example {lower}",
            )
        if self.steps_per_epoch == 0:
            least = self.batch if self.remainder == "drop" else self.world
            raise MstlError(
                f"a split of {self.samples} samples",
                why=f"it does not fill one step: {self.world} ranks, global batch {self.batch}, "
                f"remainder {self.remainder!r} need at least {least}",
                remedy="Use fewer ranks, a smaller batch or more data",
            )

    @property
    def rank_batch(self) -> int:
        """Samples of one rank in a full step."""
        return self.batch // self.world

    @property
    def used(self) -> int:
        """Samples of one epoch over all ranks, repeats of "pad" included."""
        full, rest = divmod(self.samples, self.batch)
        if self.remainder == "drop":
            rest = 0
        elif self.remainder == "keep":
            rest -= rest % self.world
        else:
            rest += -rest % self.world
        return full * self.batch + rest

    @property
    def left_out(self) -> int:
        """Samples that one epoch leaves out (others each epoch, where shuffled)."""
        return max(0, self.samples - self.used)

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one epoch, equal on every rank."""
        return -(-self.used // self.batch)

    def valid(self, step: int) -> int:
        """Real samples of each rank at a step of an epoch: `rank_batch`, fewer at a partial last step."""
        self._check_step(step)
        return min(self.batch, self.used - step * self.batch) // self.world

    def order(self, epoch: int) -> Positions:
        """[used] positions of one epoch over all ranks, in reading order."""
        return _order(self, epoch)

    def rank_step(self, rank: int, epoch: int, step: int) -> Positions:
        """[valid(step)] positions of one rank at one step of an epoch; ranks hold consecutive parts of the batch."""
        if not 0 <= rank < self.world:
            raise IndexError(f"rank {rank} of {self.world}")
        size = self.valid(step)
        start = step * self.batch + rank * size
        return self.order(epoch)[start : start + size]

    def rank_batches(self, rank: int, epoch: int) -> list[Positions]:
        """The epoch of one rank, step by step: [valid(step)] positions each."""
        return [self.rank_step(rank, epoch, step) for step in range(self.steps_per_epoch)]

    def filled(self, rank: int, epoch: int) -> Positions:
        """[steps_per_epoch · rank_batch] positions of one rank with a partial last step filled up by repeats of its own
        samples: what a reader of fixed batch size is given; the first `valid(step)` of each step are real."""
        return np.concatenate([np.resize(step, self.rank_batch) for step in self.rank_batches(rank, epoch)])

    def _check_step(self, step: int) -> None:
        if not 0 <= step < self.steps_per_epoch:
            raise IndexError(f"step {step} of {self.steps_per_epoch}")


@lru_cache(maxsize=2)
def _order(plan: Plan, epoch: int) -> Positions:
    """The order behind `Plan.order`; kept for the epoch at hand, since every step and check asks for it."""
    if plan.shuffle:
        positions = _shuffled(plan.samples, plan.chunk or default_chunk(plan.samples), plan.seed, epoch)
    else:
        positions = np.arange(plan.samples, dtype=np.int64)
    order = np.resize(positions, plan.used)  # cuts, or repeats from the start for "pad"
    order.flags.writeable = False
    return order


def _shuffled(samples: int, chunk: int, seed: int, epoch: int) -> Positions:
    """A permutation of 0 … samples-1: chunks of contiguous positions in random order, each shuffled within."""
    random = np.random.default_rng([seed, epoch])
    chunks = -(-samples // chunk)
    grid = np.arange(chunks * chunk, dtype=np.int64).reshape(chunks, chunk)
    if chunk > 1:
        grid = random.permuted(grid, axis=1)
    flat = random.permutation(grid).reshape(-1)
    return flat[flat < samples]
