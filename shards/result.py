"""What the shards of a build add up to, in memory that hardly grows with the number of images."""

from __future__ import annotations

from collections import defaultdict

from shards.duplicates import DuplicateFinder
from shards.job import Written
from shards.schema import Shard


class Result:
    """Shards and samples per class by split, and the refused images, of the jobs added so far."""

    def __init__(self, classes: int) -> None:
        self.shards: defaultdict[str, list[Shard]] = defaultdict(list)
        self.class_counts: defaultdict[str, list[int]] = defaultdict(lambda: [0] * classes)
        self.refused: list[dict[str, str]] = []
        self.deep = 0
        self._duplicates = DuplicateFinder()

    def add(self, split: str, written: Written) -> None:
        """Take in what became of one job."""
        if written.shard is not None:
            self.shards[split].append(written.shard)
        self.refused += written.refused
        self.deep += written.deep
        for label, sha256 in written.samples:
            self.class_counts[split][label] += 1
            self._duplicates.add(sha256, split, label)

    def duplicates(self) -> int:
        """How many images have the bytes of an earlier one."""
        return self._duplicates.result(most_groups=0).repeated
