"""When DALI fails on data: find the images that cannot be decoded, or the shard that is gone, and say so."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipelines import recipe
from pipelines.inputs import build_pipeline
from pipelines.order import SplitOrder
from shards.errors import MstlError
from shards.plan import Positions
from shards.remote_store import is_url

_READER = "fn.readers.webdataset`"
_DATA_OPERATORS = ("fn.decoders.image`", "fn.decoders.image_random_crop`", _READER)
_REMEDY = "Convert the data again with mstl shard --force: images that do not decode are then left out"


@dataclass(frozen=True, slots=True)
class Unreadable:
    """An image that cannot be read: its position in the split, its sample id, its tar and DALI's reason."""

    position: int
    sample_id: int
    tar: str
    reason: str

    def __str__(self) -> str:
        return f"sample {self.sample_id} in {self.tar}: its image cannot be read ({self.reason})"


def find_unreadable(
    error: RuntimeError, split: SplitOrder, positions: Positions, *, device: str, device_id: int
) -> list[Unreadable]:
    """The images among these positions that DALI cannot decode, at least one.

    DALI does not say which image it was, and works ahead of what it gives out, so they are decoded again one at a time.
    Raises MstlError for a shard that is gone or has changed its size; `error` itself where it does not come from
    reading or decoding, or does not show again: then it is a fault of the program or the machine.
    """
    if not any(operator in str(error) for operator in _DATA_OPERATORS):
        raise error
    if unreachable := unreachable_store(error, split):
        raise unreachable
    if changed := changed_shard(split):
        raise changed
    found = list(_failing(split, positions, device, device_id))
    if not found:
        raise error
    return found


def too_many(found: list[Unreadable], allowed: int, split: str) -> MstlError:
    """The error for more unreadable images than are allowed; `found` are all of them."""
    if len(found) == 1 and not allowed:
        [one] = found
        return MstlError(
            f"sample {one.sample_id} in {one.tar}",
            why=f"its image cannot be read ({one.reason})",
            remedy=f"{_REMEDY}; or let training skip some with data.max_bad",
        )
    return MstlError(
        f"{len(found)} images of {split}",
        why=f"they cannot be read, and data.max_bad allows {allowed}; first {found[0]}",
        remedy=_REMEDY,
    )


def changed_shard(split: SplitOrder) -> MstlError | None:
    """The user's error for the first local tar that is gone or has another size than when the set was opened."""
    for shard in split.shards:
        if is_url(shard.tar):
            continue
        path = Path(shard.tar)
        size = path.stat().st_size if path.is_file() else None
        if size != shard.size_bytes:
            now = "it is gone" if size is None else f"it has {size} bytes and had {shard.size_bytes}"
            return MstlError(
                f"shard {shard.tar}",
                why=f"{now} since this job began",
                remedy="Bring it back and run the same command again",
            )
    return None


def unreachable_store(error: RuntimeError, split: SplitOrder) -> MstlError | None:
    """The user's error where DALI's reader failed on tars at a URL; None for any other failure."""
    urls = [shard.tar for shard in split.shards if is_url(shard.tar)]
    if not urls or _READER not in str(error):
        return None
    folder = urls[0].rpartition("/")[0]  # not every message names the tar
    return MstlError(
        next((url for url in urls if url.partition("://")[2].partition("/")[2] in str(error)), folder),
        why=f"DALI cannot read it ({_reason(error) or 'it does not say why'})",
        remedy="Check network and store, and that DALI has the endpoint, region and credentials in AWS_ variables or "
        "profile; the same command continues. With --cache tars are copied before they are read",
    )


def _failing(split: SplitOrder, positions: Positions, device: str, device_id: int) -> Iterator[Unreadable]:
    """Those of the positions that fail on their own; after a failure a pipeline is of no use, so another is built."""
    rest = positions
    while len(rest):
        with tempfile.TemporaryDirectory(prefix="mstl-order-") as folder:
            tars, indexes = split.write(rest, Path(folder))
            pipeline = build_pipeline(
                recipe.evaluation(8), tars, indexes, batch=1, threads=1, device=device, device_id=device_id, seed=0
            )
            good = 0
            try:
                for _ in range(len(rest)):
                    pipeline.run()
                    good += 1
            except RuntimeError as error:
                at = rest[good : good + 1]
                tar = split.shards[int(split.locate(at)[0][0])].tar
                yield Unreadable(int(at[0]), int(split.ids(at)[0]), tar, _reason(error))
        rest = rest[good + 1 :]


def _reason(error: RuntimeError) -> str:
    """What DALI reports after its trace of the pipeline's definition."""
    _, _, told = str(error).partition("encountered:")
    lines = [line.strip() for line in told.splitlines() if line.strip()]
    return lines[0].strip(": ") if lines else str(error)
