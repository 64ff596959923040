"""Checkpoints on disk: folders sealed by a file of digests; an incomplete one is never loaded.

    checkpoints/step-N/   complete.json        step, number of ranks, size and digest of every other file
                          shared.pt            what is equal on all ranks: weights, and the optimizer's state
                          rank-R.pt            what is rank R's own: loader, random numbers, batch norm statistics
                          best.safetensors     the weights of the best validation so far, if there was one
    checkpoints/.*        being written or removed; rubbish after a crash

The files are torch's, read with weights_only, and not DeepSpeed's own: its save makes all ranks wait for the disk, its
load runs whatever code the file holds, and its files of another number of ranks cannot be read.
"""

from __future__ import annotations

import json
import secrets
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from mstl.distributed import rank, world_size
from mstl.failures import EveryRankError
from mstl.places import checkpoint_folders, step_of
from shards.files import sha256_file, sync, write_atomic

SEAL_NAME = "complete.json"
SHARED_NAME = "shared.pt"
BEST_NAME = "best.safetensors"
VERSION = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A whole checkpoint; `ranks` is how many wrote it."""

    folder: Path
    step: int
    ranks: int

    def shared(self) -> dict[str, Any]:
        """What is equal on all ranks, on the CPU."""
        return _load(self.folder / SHARED_NAME)

    def own(self, rank: int) -> dict[str, Any]:
        """What one of the ranks that wrote it had of its own, on the CPU."""
        return _load(self.folder / rank_file(rank))


def rank_file(rank: int) -> str:
    return f"rank-{rank}.pt"


def newest_checkpoint(root: Path) -> tuple[Checkpoint | None, list[Path]]:
    """The newest checkpoint whose files are all there and unchanged, and the damaged ones that are newer.

    Every rank gets rank 0's answer. Raises EveryRankError when there are checkpoints and all are damaged (starting
    afresh is the user's decision), and for one that another version wrote.
    """
    damaged: list[Path] = []
    seal: dict[str, Any] | None = None
    folder = root
    if rank() == 0:
        for folder in checkpoint_folders(root):
            seal = _whole(folder)
            if seal is not None:
                break
            damaged.append(folder)
    answer = [(seal, folder, damaged)]
    if world_size() > 1:
        dist.broadcast_object_list(answer, src=0)
    seal, folder, damaged = answer[0]
    if seal is None:
        if damaged:
            names = ", ".join(other.name for other in damaged)
            raise EveryRankError(
                f"checkpoints in {root}",
                why=f"none is whole (files of {names} are missing or changed)",
                remedy=f"Bring them back from a copy, or remove {root.parent} to start over",
            )
        return None, []
    if seal.get("version") != VERSION:
        raise EveryRankError(
            f"checkpoint {folder}",
            why=f"it has version {seal.get('version', 1)}, this program reads {VERSION}",
            remedy="Finish the run with the version of MSTL that wrote it, or name another --out",
        )
    return Checkpoint(folder=folder, step=seal["step"], ranks=seal["ranks"]), damaged


def seal(aside: Path, root: Path, step: int, files: dict[str, dict[str, Any]], *, ranks: int, keep: int) -> None:
    """Give a folder whose files are on disk its seal, then its name; then drop all but the newest `keep`.

    A kill at any moment leaves the older checkpoints whole, or this one.
    """
    body = {"version": VERSION, "step": step, "ranks": ranks, "files": files}
    write_atomic(aside / SEAL_NAME, json.dumps(body, indent=1).encode())
    sync(aside)
    final = root / f"step-{step}"
    if final.exists():
        _remove(final)  # it was damaged and passed over, or this program would not have done its steps again
    aside.rename(final)
    sync(root)
    with suppress(OSError):  # the new one stands: what cannot be dropped now is tried again behind the next
        for other in checkpoint_folders(root):
            # Newer ones were damaged, or this one would not have followed an older: their steps are being done again.
            if step_of(other) > step:
                _remove(other)
        for old in checkpoint_folders(root)[keep:]:
            _remove(old)


def remove_leftovers(root: Path) -> None:
    """Drop what a killed job was writing or removing."""
    for folder in root.glob(".*"):
        shutil.rmtree(folder, ignore_errors=True)


def _remove(folder: Path) -> None:
    """Drop a checkpoint: first its name, so that a kill leaves no half of one under it."""
    gone = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.gone")
    folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def _load(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return loaded


def _whole(folder: Path) -> dict[str, Any] | None:
    """The content of a checkpoint's seal when every file is as it was sealed, else None."""
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        body: dict[str, Any] = json.loads((folder / SEAL_NAME).read_text())
        if all(
            (folder / name).stat().st_size == entry["bytes"] and sha256_file(folder / name) == entry["sha256"]
            for name, entry in body["files"].items()
        ):
            return body
    return None
