"""When DALI fails on data: find the one image of the batch that cannot be decoded and say so."""

from __future__ import annotations

import tempfile
from pathlib import Path

from pipelines import recipe
from pipelines.inputs import build_pipeline
from pipelines.order import SplitOrder
from shards.errors import MstlError
from shards.plan import Positions

_DATA_OPERATORS = ("fn.decoders.image`", "fn.readers.webdataset`")


def explain(error: RuntimeError, split: SplitOrder, positions: Positions, *, device: str, device_id: int) -> MstlError:
    """The user's error for a batch of these positions that DALI could not make.

    DALI does not say which image it was, so they are decoded again, one at a time. Raises `error` itself where it does
    not come from reading or decoding, or does not show again: then it is a fault of the program or the machine.
    """
    if not any(operator in str(error) for operator in _DATA_OPERATORS):
        raise error
    found = _first_unreadable(split, positions, device, device_id)
    if found is None:
        raise error
    number, reason = found
    at = positions[number : number + 1]
    shard = split.shards[int(split.locate(at)[0][0])]
    return MstlError(
        f"sample {split.ids(at)[0]} in {shard.tar}",
        why=f"its image cannot be read ({reason})",
        remedy="Convert the data again with mstl shard --force: images that do not decode are then left out",
    )


def _first_unreadable(split: SplitOrder, positions: Positions, device: str, device_id: int) -> tuple[int, str] | None:
    """Number and reason of the first of these samples that fails on its own."""
    with tempfile.TemporaryDirectory(prefix="mstl-order-") as folder:
        tars, indexes = split.write(positions, Path(folder))
        pipeline = build_pipeline(
            recipe.evaluation(8), tars, indexes, batch=1, threads=1, device=device, device_id=device_id, seed=0
        )
        for number in range(len(positions)):
            try:
                pipeline.run()
            except RuntimeError as error:
                return number, _reason(error)
    return None


def _reason(error: RuntimeError) -> str:
    """What DALI reports after its trace of the pipeline's definition."""
    _, _, told = str(error).partition("encountered:")
    lines = [line.strip() for line in told.splitlines() if line.strip()]
    return lines[0] if lines else str(error)
