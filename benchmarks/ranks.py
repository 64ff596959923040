"""Ranks that a benchmark starts on this machine, and what goes wrong in one of them as one message."""

from __future__ import annotations

import json
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import ProcessExitedException, spawn

from benchmarks.roofline import enough_memory
from launch.here import join_here
from mstl.failures import RankLostError, between_ranks, in_words
from shards.errors import MstlError
from shards.files import write_atomic

KINDS = BUG, FAILED, LOST = "bug", "failed", "lost"


def on_ranks(ranks: int, task: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What task(device, *arguments) returned on each of so many ranks, each a new process; it must fit into JSON.

    Raises MstlError for what a rank raised as MstlError, for want of memory, and where a rank was killed.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else ranks
    if ranks > gpus:
        raise MstlError(f"{ranks} ranks", why=f"there are {gpus} GPUs here", remedy="Name as many, or fewer")
    with tempfile.TemporaryDirectory(prefix="mstl-bench-") as name:
        folder = Path(name)
        try:
            spawn(_rank, args=(ranks, folder, task, arguments), nprocs=ranks)  # type: ignore[no-untyped-call]
        except ProcessExitedException as error:
            raise _told(folder, error) from error
        return [json.loads((folder / f"{index}.json").read_text()) for index in range(ranks)]


def _rank(index: int, ranks: int, folder: Path, task: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        with enough_memory():
            found = task(join_here(index, ranks, folder), *arguments)
            (folder / f"{index}.json").write_text(json.dumps(found))
            dist.barrier()
    except Exception as error:  # noqa: BLE001 - told by the parent process, which raises it
        if isinstance(error, RankLostError) or between_ranks(error):
            _leave(folder, LOST, index, in_words(error))
        elif isinstance(error, MstlError):
            _leave(folder, FAILED, index, error.what, error.why, error.remedy)
        else:
            _leave(folder, BUG, index, traceback.format_exc())
        sys.exit(1)
    dist.destroy_process_group()


def _leave(folder: Path, kind: str, index: int, *words: str) -> None:
    write_atomic(folder / f"{kind}-{index}", json.dumps(words).encode())


def _told(folder: Path, error: ProcessExitedException) -> Exception:
    """What went wrong first, as far as can be known: a rank that lost another is not the reason."""
    words = {kind: [json.loads(file.read_text()) for file in sorted(folder.glob(f"{kind}-*"))] for kind in KINDS}
    if words[BUG]:
        return RuntimeError(f"a rank failed:\n{words[BUG][0][0]}")
    if words[FAILED]:
        what, why, remedy = words[FAILED][0]
        return MstlError(what, why=why, remedy=remedy)
    killed = f"it was ended by {error.signal_name}" if error.signal_name else "it ended without a word"
    why = f"another rank has ended or does not answer ({words[LOST][0][0]})" if words[LOST] else killed
    return MstlError(f"rank {error.error_index}", why=why,
                     remedy="Where memory ran short, name a smaller --batch or fewer ranks")  # fmt: skip
