"""Ranks that a program starts itself on this machine, without a launcher: for benchmarks and tests."""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torch.distributed as dist

from launch.engine import _timeout, start_processes
from launch.processes import device, set_environment


def join_here(index: int, ranks: int, folder: Path) -> torch.device:
    """Make this process rank `index` of so many on this machine, as a launcher would; returns its device.

    folder: a new one, the same for all: they meet in a file, and not at a port that another program might take.
    """
    os.environ.update(
        RANK=str(index), LOCAL_RANK=str(index), WORLD_SIZE=str(ranks), LOCAL_WORLD_SIZE=str(ranks),
        MASTER_ADDR="127.0.0.1", MASTER_PORT="0",
    )  # fmt: skip
    set_environment()
    on = device()
    if on.type == "cuda":
        torch.cuda.set_device(on)
    if ranks > 1:  # alone, start_processes needs nobody to meet
        backend = "nccl" if on.type == "cuda" else "gloo"
        store = dist.FileStore(str(folder / "store"), ranks)  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=index, world_size=ranks, timeout=_timeout())
    start_processes()  # joins the group that it finds
    return on
