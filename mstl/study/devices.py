"""What a study's nodes run on: a GPU each, all GPUs one after the other, or some beside each other on a CPU."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mstl.surroundings import visible_devices
from shards.errors import MstlError

PerNode = Literal["one", "all"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Slot:
    """Room for one node at a time. ranks: processes of its training. environment: added to ours for them."""

    name: str
    ranks: int
    environment: Mapping[str, str] = field(default_factory=dict)


def make_slots(per_node: PerNode, jobs: int | None) -> list[Slot]:
    """The slots of this machine. jobs: nodes at a time on the CPU, None is one; raises MstlError where there are GPUs.

    On the CPU the cores are shared out, but for what OMP_NUM_THREADS says already.
    """
    gpus = visible_gpus()
    if gpus and jobs is not None:
        raise MstlError(
            f"--jobs {jobs}",
            why=f"there are {len(gpus)} GPUs, and nodes share them by --per-node",
            remedy="Leave it out, or run on the CPU with CUDA_VISIBLE_DEVICES=-1",
        )
    if gpus and per_node == "all":
        return [Slot(name=f"GPUs {','.join(gpus)}", ranks=len(gpus), environment=_seen(gpus))]
    if gpus:
        return [Slot(name=f"GPU {gpu}", ranks=1, environment=_seen([gpu])) for gpu in gpus]
    count = jobs or 1
    threads = max(1, len(os.sched_getaffinity(0)) // count)
    own = {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(threads)}
    return [Slot(name=f"CPU {number}", ranks=1, environment=own) for number in range(count)]


def visible_gpus() -> list[str]:
    """The GPUs that processes started here may use, as CUDA_VISIBLE_DEVICES names them."""
    named = visible_devices()
    if named is not None:
        return named
    if not Path("/dev/nvidiactl").exists():
        return []
    return sorted((file.name.removeprefix("nvidia") for file in Path("/dev").glob("nvidia[0-9]*")), key=int)


def _seen(gpus: list[str]) -> dict[str, str]:
    return {"CUDA_VISIBLE_DEVICES": ",".join(gpus)}
