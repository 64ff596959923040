"""What a Loader's state belongs to, and whether another Loader may go on from it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from pipelines.recipe import Inputs
from shards.errors import MstlError
from shards.plan import Plan

STATE_VERSION = 2
# What may differ when a job goes on with another number of ranks: the plan gives each its share of what is left.
_OF_THE_RANKS = ("world size", "rank")
_ORDER_SAMPLES = 65_536


def identify(plan: Plan, rank: int, *, shard_set: str, split: str, device: str, inputs: Inputs) -> dict[str, Any]:
    """What batches depend on, by name; the number of epochs is not among it, so training can be prolonged."""
    return {
        "shard set": shard_set,
        "split": split,
        "world size": plan.world,
        "rank": rank,
        "batch size": plan.batch,
        "seed": plan.seed,
        "shuffle": plan.shuffle,
        "remainder": plan.remainder,
        "chunk": plan.chunk,
        "device": device,
        **{f"inputs.{name}": value for name, value in inputs.to_dict().items()},
    }


def order_digest(plan: Plan, epoch: int) -> str:
    """Digest of an epoch's order, the same for any number of ranks: numpy does not promise equal permutations."""
    places = np.unique(np.linspace(0, plan.samples - 1, min(_ORDER_SAMPLES, plan.samples)).astype(np.int64))
    return hashlib.sha256(plan.positions(epoch, places).tobytes()).hexdigest()


def check_state(name: str, state: Mapping[str, Any], own: Mapping[str, Any], *, other_world: bool) -> bool:
    """Whether the state is of another number of ranks; raises MstlError naming what else differs.

    other_world: a different number of ranks is welcome.
    """
    if state.get("version") != STATE_VERSION:
        raise MstlError(
            f"loader state for {name}",
            why=f"it has version {state.get('version')!r}, this program reads {STATE_VERSION}",
            remedy="Resume with the version of MSTL that wrote it",
        )
    saved = state["identity"]
    differing = [key for key, value in own.items() if saved.get(key) != value]
    restriped = saved.get("world size") != own["world size"]
    if other_world and restriped:
        differing = [key for key in differing if key not in _OF_THE_RANKS]
    if differing:
        raise MstlError(
            f"loader state for {name}",
            why="it was saved with other " + "; ".join(_difference(key, saved, own) for key in differing),
            remedy="Resume with the same settings and data, or start the stage anew",
        )
    return bool(restriped)


def _difference(name: str, saved: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    before, now = (json.dumps(values.get(name)) for values in (saved, own))
    return f"{name} (then {before}, now {now})"
