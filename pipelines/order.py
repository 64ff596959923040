"""The plan handed to DALI: index files that list the samples of a rank in the plan's order.

DALI's webdataset reader follows its index files line by line, so (tar, index) pairs written here decide order,
sharding and repeats. A shard's own index is checked against the manifest and never parsed: its lines are copied.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shards.errors import MstlError
from shards.index import VERSION
from shards.plan import Positions
from shards.schema import Manifest, Shard


@dataclass(frozen=True, slots=True)
class IndexedShard:
    """A tar with the text of its index; line i is `text[ends[i]:ends[i + 1]]`, the header coming before ends[0]."""

    tar: str  # path, or the s3:// URL that DALI reads it from
    size_bytes: int  # of the tar
    text: bytes
    ends: NDArray[np.int64]

    def lines(self, positions: Positions) -> bytes:
        """Index lines of the samples at these positions of the shard, in the order asked for."""
        starts, stops = self.ends[positions].tolist(), self.ends[positions + 1].tolist()
        return b"".join(self.text[start:stop] for start, stop in zip(starts, stops, strict=True))


@dataclass(frozen=True, slots=True)
class SplitOrder:
    """The shards of a split and where each starts: position p of the split has sample id `ids(p)`."""

    shards: tuple[IndexedShard, ...]
    starts: NDArray[np.int64]
    first_ids: NDArray[np.int64]

    def locate(self, positions: Positions) -> tuple[NDArray[np.intp], Positions]:
        """Number of the shard of each position, and the position within that shard."""
        numbers = np.searchsorted(self.starts, positions, side="right") - 1
        return numbers, positions - self.starts[numbers]

    def ids(self, positions: Positions) -> Positions:
        """Sample ids at positions of the split."""
        numbers, within = self.locate(positions)
        return np.asarray(self.first_ids[numbers] + within)

    def write(self, positions: Positions, folder: Path) -> tuple[list[str], list[str]]:
        """Write index files that read these positions in order; returns tars and indexes, pair by pair.

        Neighbours of the same tar share one pair: a split of one tar needs a single file for any order.
        """
        numbers, within = self.locate(positions)
        cuts = np.flatnonzero(np.diff(numbers)) + 1
        tars, indexes = [], []
        for i, run in enumerate(np.split(np.arange(len(positions)), cuts)):
            shard = self.shards[numbers[run[0]]]
            index = folder / f"{i:07d}.idx"
            index.write_bytes(_header(len(run)) + shard.lines(within[run]))
            tars.append(shard.tar)
            indexes.append(str(index))
        return tars, indexes


def open_split(folder: Path, manifest: Manifest, split: str, tars: str | None = None) -> SplitOrder:
    """Read the indexes of a split; raises MstlError where a shard is missing or is not what the manifest says.

    Indexes are checked in full, tars by size: reading all of them here would double the reading of an epoch.
    tars: URL of the set for DALI to read tars from; they are then not looked at here (see shards.cache).
    """
    shards = manifest.shards(split)
    sizes = [shard.samples for shard in shards]
    return SplitOrder(
        shards=tuple(_open_shard(folder, shard, tars) for shard in shards),
        starts=np.cumsum([0, *sizes[:-1]], dtype=np.int64),
        first_ids=np.array([shard.first_id for shard in shards], dtype=np.int64),
    )


def _open_shard(folder: Path, shard: Shard, tars: str | None) -> IndexedShard:
    tar = str(folder / shard.path) if tars is None else f"{tars}/{shard.path}"
    try:
        found = shard.bytes if tars is not None else Path(tar).stat().st_size
        text = (folder / shard.index).read_bytes()
    except OSError as error:
        raise _damaged(f"shard {tar}", f"it or its index cannot be read ({error.strerror})") from error
    if found != shard.bytes:
        raise _damaged(f"shard {tar}", f"it has {found} bytes, the manifest says {shard.bytes}")
    ends = np.flatnonzero(np.frombuffer(text, dtype=np.uint8) == ord("\n")) + 1
    matches = hashlib.sha256(text).hexdigest() == shard.index_sha256
    if not (
        matches and text.startswith(_header(shard.samples)) and len(ends) == shard.samples + 1 and ends[-1] == len(text)
    ):
        raise _damaged(f"index {folder / shard.index}", "it is not the one the manifest describes")
    return IndexedShard(tar=tar, size_bytes=shard.bytes, text=text, ends=ends)


def _header(samples: int) -> bytes:
    return f"{VERSION} {samples}\n".encode()


def _damaged(what: str, why: str) -> MstlError:
    return MstlError(what, why=why, remedy="Check the set with mstl verify; copy it again, or convert the data again")
