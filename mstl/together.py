"""Parts of a start that every rank does for itself, and that must succeed on all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist

from mstl.distributed import world_size
from mstl.failures import EveryRankError
from shards.errors import MstlError

Result = TypeVar("Result")


def together(action: Callable[[], Result]) -> Result:
    """What `action` returns on this rank, once it has succeeded on all; all ranks call it.

    Where it raised MstlError on any, every rank raises the lowest one's as EveryRankError: it is said once, and nobody
    waits for those that failed. The action itself must not exchange anything with other ranks.
    """
    if world_size() == 1:
        return action()
    own: MstlError | None = None
    try:
        found = action()
    except MstlError as error:
        own = error
    told: list[MstlError | None] = [None] * world_size()
    dist.all_gather_object(told, own)
    for number, one in enumerate(told):
        if one is not None:
            where = "" if all(told) else f" (on rank {number})"
            raise EveryRankError(one.what, why=f"{one.why}{where}", remedy=one.remedy) from own
    return found
