"""Checkpoints of a run: written aside, sealed by a digest file, renamed; an incomplete one is never loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from mstl.distributed import barrier, rank, world_size
from mstl.engine import Engine
from shards.errors import MstlError
from shards.files import sha256_file, sync, write_atomic

SEAL_NAME = "complete.json"


def save_checkpoint(root: Path, step: int, engine: Engine, rank_state: dict[str, Any], *, keep: int) -> Path:
    """Write `root/step-N` from all ranks and drop all but the newest `keep`; returns the folder.

    A kill at any moment leaves the older checkpoints whole: the folder gets its name only when it is sealed.
    """
    final = root / f"step-{step}"
    aside = root / f".step-{step}.partial"
    if rank() == 0:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    barrier()
    engine.save(aside)
    torch.save(rank_state, aside / f"rank-{rank()}.pt")
    barrier()
    if rank() == 0:
        _seal(aside, step)
        shutil.rmtree(final, ignore_errors=True)
        aside.rename(final)
        sync(root)
        for other in _folders(root):
            # Newer ones were damaged, or this one would not have followed an older: their steps are being done again.
            if step_of(other) > step:
                shutil.rmtree(other)
        for old in _folders(root)[keep:]:
            shutil.rmtree(old)
    barrier()
    return final


def load_checkpoint(folder: Path, engine: Engine) -> dict[str, Any]:
    """Restore the engine on all ranks and return this rank's own state; raises MstlError for another world size."""
    written_by = len(list(folder.glob("rank-*.pt")))
    if written_by != world_size():
        raise MstlError(
            f"checkpoint {folder}",
            why=f"it was written by {written_by} ranks and this job has {world_size()}",
            remedy=f"Start the job with {written_by} ranks",
        )
    engine.load(folder)
    state: dict[str, Any] = torch.load(folder / f"rank-{rank()}.pt", weights_only=True)
    return state


def newest_checkpoint(root: Path) -> tuple[Path | None, list[Path]]:
    """The newest checkpoint whose files are all there and unchanged, and the damaged ones that are newer.

    Every rank gets rank 0's answer. Raises MstlError when there are checkpoints and all are damaged: starting afresh
    is the user's decision.
    """
    damaged: list[str] = []
    found: str | None = None
    if rank() == 0:
        for folder in _folders(root):
            if _whole(folder):
                found = str(folder)
                break
            damaged.append(str(folder))
    answer = [(found, damaged)]
    if world_size() > 1:
        dist.broadcast_object_list(answer, src=0)
    found, damaged = answer[0]
    if found is None and damaged:
        raise MstlError(
            f"checkpoints in {root}",
            why=f"none is whole (files of {Path(damaged[0]).name} are missing or changed)",
            remedy=f"Bring them back from a copy, or remove {root.parent} to start over",
        )
    return (None if found is None else Path(found)), [Path(name) for name in damaged]


def step_of(folder: Path) -> int:
    """The number of steps done at a checkpoint."""
    return int(folder.name.removeprefix("step-"))


def _folders(root: Path) -> list[Path]:
    """The checkpoint folders, newest first."""
    found = [folder for folder in root.glob("step-*") if folder.name.removeprefix("step-").isdigit()]
    return sorted(found, key=step_of, reverse=True)


def _seal(folder: Path, step: int) -> None:
    files = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        sync(file)
        files[file.relative_to(folder).as_posix()] = {"bytes": file.stat().st_size, "sha256": sha256_file(file)}
    write_atomic(folder / SEAL_NAME, json.dumps({"step": step, "files": files}, indent=1).encode())


def _whole(folder: Path) -> bool:
    try:
        files = json.loads((folder / SEAL_NAME).read_text())["files"]
        return all(
            (folder / name).stat().st_size == entry["bytes"] and sha256_file(folder / name) == entry["sha256"]
            for name, entry in files.items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
