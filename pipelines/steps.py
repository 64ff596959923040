"""What one rank reads, step by step: the plan's positions, with images that cannot be read replaced."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from shards.errors import MstlError
from shards.plan import Plan, Positions


class Steps:
    """The positions of a rank. Batches keep their size: an unreadable image gives its place to others of its step.

    `unreadable` may grow; a step is then asked for anew.
    """

    def __init__(self, plan: Plan, rank: int) -> None:
        self._plan, self._rank = plan, rank
        self.unreadable: set[int] = set()

    def at(self, epoch: int, step: int) -> Positions:
        """[valid(step)] positions of a step; raises MstlError when none of them can be read."""
        return self._readable(self._plan.rank_step(self._rank, epoch, step))

    def reader_order(self, start: int, stop: int) -> Positions:
        """What a reader of fixed batch size is given for the steps start … stop-1, counted through all epochs.

        [stop - start, rank_batch] flattened; a partial step is filled up by repeats of its own.
        """
        each = self._plan.steps_per_epoch
        parts = []
        for epoch in range(start // each, -(-stop // each)):
            first, last = max(start - epoch * each, 0), min(stop - epoch * each, each)
            parts.append(self._plan.filled(self._rank, epoch, first, last))
        rows = np.concatenate(parts).reshape(-1, self._plan.rank_batch)
        if self.unreadable:
            for row in np.flatnonzero(self._is_bad(rows).any(axis=1)):
                rows[row] = np.resize(self.at(*divmod(start + int(row), each)), self._plan.rank_batch)
        return rows.reshape(-1)

    def _readable(self, positions: Positions) -> Positions:
        if not self.unreadable:
            return positions
        bad = self._is_bad(positions)
        if not bad.any():
            return positions
        if bad.all():
            raise MstlError(
                f"a batch of {len(positions)} images",
                why="none of them can be read",
                remedy="Convert the data again with mstl shard --force: images that do not decode are then left out",
            )
        replaced = positions.copy()
        replaced[bad] = np.resize(positions[~bad], int(bad.sum()))
        return replaced

    def _is_bad(self, positions: Positions) -> NDArray[np.bool_]:
        return np.isin(positions, _array(self.unreadable))


def _array(positions: Iterable[int]) -> Positions:
    return np.array(sorted(positions), dtype=np.int64)
