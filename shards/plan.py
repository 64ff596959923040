"""Which sample goes to which rank at which step: pure arithmetic, the same on every rank, with no file in sight."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from shards.errors import MstlError

Positions = NDArray[np.int64]
Remainder = Literal["keep", "drop", "pad"]

SMALL_SPLIT = 65536
LARGE_CHUNK = 10
"""Divides the thousand samples of a tar, so that few chunks lie in two. Of ImageNet 3 % of all pairs of samples in a
batch of 256 meet again in the next epoch (40: 14 %), for about 20 µs of a sample's time."""


def default_chunk(samples: int) -> int:
    """Contiguous samples kept together when shuffling: 1 for a small split, 10 for a large one (fewer index files)."""
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
        order = self.part(epoch, 0, self.used)
        order.flags.writeable = False
        return order

    def part(self, epoch: int, start: int, stop: int) -> Positions:
        """[stop - start] positions of `order(epoch)[start:stop]`, at a cost that hardly depends on the split's size."""
        # "pad" repeats from the start of the epoch.
        return self.positions(epoch, np.arange(start, stop, dtype=np.int64) % self.samples)

    def positions(self, epoch: int, places: Positions) -> Positions:
        """The positions at these places (0 … samples-1) of an epoch's order, which is the same for any `world`."""
        return _shuffled(self, epoch, places) if self.shuffle else places

    def rank_step(self, rank: int, epoch: int, step: int) -> Positions:
        """[valid(step)] positions of one rank at one step of an epoch; ranks hold consecutive parts of the batch."""
        if not 0 <= rank < self.world:
            raise IndexError(f"rank {rank} of {self.world}")
        size = self.valid(step)
        start = step * self.batch + rank * size
        return self.part(epoch, start, start + size)

    def rank_batches(self, rank: int, epoch: int) -> list[Positions]:
        """The epoch of one rank, step by step: [valid(step)] positions each."""
        return [self.rank_step(rank, epoch, step) for step in range(self.steps_per_epoch)]

    def filled(self, rank: int, epoch: int, first_step: int = 0, stop_step: int | None = None) -> Positions:
        """[steps · rank_batch] positions of one rank for some steps of an epoch, with a partial last step filled up by
        repeats of its own samples: what a reader of fixed batch size is given; the first `valid(step)` of each step are
        real."""
        steps = range(first_step, self.steps_per_epoch if stop_step is None else stop_step)
        rows = [np.resize(self.rank_step(rank, epoch, step), self.rank_batch) for step in steps]
        return np.concatenate(rows) if rows else np.empty(0, dtype=np.int64)

    def _check_step(self, step: int) -> None:
        if not 0 <= step < self.steps_per_epoch:
            raise IndexError(f"step {step} of {self.steps_per_epoch}")


def _shuffled(plan: Plan, epoch: int, places: Positions) -> Positions:
    """The positions at these places of a permutation of 0 … samples-1: chunks in random order, each shuffled within."""
    chunk = plan.chunk or default_chunk(plan.samples)
    chunks = _chunk_order(plan, epoch, chunk)
    short = -plan.samples % chunk  # what the last chunk lacks; the places behind it move up by that
    if short:
        after = int(np.flatnonzero(chunks == len(chunks) - 1)[0] + 1) * chunk - short
        places = np.where(places < after, places, places + short)
    wanted, rows = np.unique(places // chunk, return_inverse=True)
    first = chunks[wanted].astype(np.int64) * chunk
    if chunk == 1:
        return np.asarray(first[rows])
    members = first[:, None] + np.arange(chunk)
    ranks = _mixed(members, _key(plan.seed, epoch))
    ranks[members >= plan.samples] = np.iinfo(np.uint64).max  # what the last chunk lacks comes last in it
    inner = np.argsort(ranks, axis=1, kind="stable")
    return np.asarray(first[rows] + inner[rows, places % chunk])


@lru_cache(maxsize=2)
def _chunk_order(plan: Plan, epoch: int, chunk: int) -> NDArray[np.signedinteger[Any]]:
    """A permutation of the chunks; kept for the epoch at hand, since every step and check asks for it."""
    chunks = -(-plan.samples // chunk)
    kind = np.int32 if chunks < 2**31 else np.int64
    order = np.random.default_rng([plan.seed, epoch]).permutation(np.arange(chunks, dtype=kind))
    order.flags.writeable = False
    return order


def _key(seed: int, epoch: int) -> np.uint64:
    return np.uint64(np.random.SeedSequence([seed, epoch, 1]).generate_state(1, np.uint64)[0])


def _mixed(values: Positions, key: np.uint64) -> NDArray[np.uint64]:
    """A hash of each value under a key (the finaliser of SplitMix64): random ranks that need no generator's state."""
    mixed = values.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + key
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))
