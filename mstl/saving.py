"""Writing checkpoints behind the training loop's back.

The loop stands still while its state is copied to host memory; a thread of each rank then writes that rank's files,
flushes them and publishes their digests. No thread talks to another rank. Whether all have written is told by two flags
that ride on the reduction which every training step makes anyway; rank 0 then seals the checkpoint, in its thread too.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mstl.checkpoint import BEST_NAME, SHARED_NAME, rank_file, remove_leftovers, seal
from mstl.distributed import rank, world_size
from mstl.failures import EveryRankError
from mstl.places import checkpoint_folders, step_of
from mstl.weights import save_weights
from shards.files import aside_name, sha256_file, sync, write_atomic

RESCUE_SECONDS = 10.0  # well below the 30 that the launcher grants a rank between SIGTERM and SIGKILL


@dataclass(slots=True)
class _Flight:
    """The save under way. First every rank writes; when all have, rank 0 seals."""

    step: int
    aside: Path
    thread: threading.Thread
    sealing: bool = False


class Saver:
    """One rank's share in saving a run; all ranks make the same calls at the same steps.

    root: the folder of the checkpoints; beside it the newest one's best weights are shown as best.safetensors. keep:
    how many stay. log: a file that is flushed to disk before a checkpoint is sealed.
    """

    def __init__(self, root: Path, *, keep: int, log: Path) -> None:
        self._root, self._keep, self._log = root, keep, log
        self._rank, self._ranks = rank(), world_size()
        self._flight: _Flight | None = None
        self._error: Exception | None = None
        token = [secrets.token_hex(4)]  # of this start of the job: what an older one may still be writing is not ours
        if self._rank == 0:
            root.mkdir(parents=True, exist_ok=True)
            remove_leftovers(root)
        if self._ranks > 1:
            dist.broadcast_object_list(token, src=0)
        self._token = token[0]

    @property
    def busy(self) -> bool:
        """This rank's thread is at work. Ask this before `failed`, so that no failure falls between the two."""
        return self._flight is not None and self._flight.thread.is_alive()

    @property
    def failed(self) -> bool:
        """This rank's thread could not do its work."""
        return self._error is not None

    def begin(
        self, step: int, own: dict[str, Any], shared: dict[str, Any] | None, best: dict[str, Tensor] | None
    ) -> None:
        """Start writing; the tensors must not change any more. shared, best: given on rank 0 alone.

        Call `finish` before: at most one save is under way.
        """
        assert self._flight is None, "finish() comes first"
        aside = self._root / f".step-{step}.{self._token}"
        thread = self._start(lambda: self._write(aside, own, shared, best))
        self._flight = _Flight(step, aside, thread)

    def settle(self, *, busy: bool, failed: bool) -> None:
        """Go on with what all ranks together say: `busy` and `failed` are true where they are on any rank.

        Raises MstlError on every rank when one could not write.
        """
        if failed:
            self._give_up()
        if self._flight is None or busy:
            return
        if self._flight.sealing:
            self._flight = None
            return
        self._flight.sealing = True
        if self._rank == 0:
            flight = self._flight
            flight.thread = self._start(lambda: self._seal(flight))

    def finish(self) -> None:
        """Wait until the save under way is sealed; all ranks call it. Raises as `settle`."""
        while self._flight is not None:
            self._flight.thread.join()
            failed = torch.tensor(float(self.failed), device=_device())
            if self._ranks > 1:
                dist.all_reduce(failed)
            self.settle(busy=False, failed=bool(failed > 0))

    def rescue(self) -> None:
        """On the way out with an error: bring the save under way to its end if every rank has written, or soon has."""
        flight, deadline = self._flight, time.monotonic() + RESCUE_SECONDS
        if flight is None or self.failed:
            return
        flight.thread.join(RESCUE_SECONDS)
        if self._rank != 0 or flight.sealing:
            return
        written = [flight.aside / _digests(other) for other in range(self._ranks)]
        while not all(file.is_file() for file in written):
            if time.monotonic() > deadline:
                return
            time.sleep(0.1)
        self._start(lambda: self._seal(flight)).join(max(1.0, deadline - time.monotonic()))

    def _start(self, work: Callable[[], None]) -> threading.Thread:
        def run() -> None:
            try:
                work()
            except Exception as error:  # noqa: BLE001 - the loop raises it at its next step
                self._error = error

        thread = threading.Thread(target=run, name="checkpoint", daemon=True)
        thread.start()
        return thread

    def _write(
        self, aside: Path, own: dict[str, Any], shared: dict[str, Any] | None, best: dict[str, Tensor] | None
    ) -> None:
        aside.mkdir(parents=True, exist_ok=True)
        files: list[Path] = []
        try:
            for name, content in ((SHARED_NAME, shared), (rank_file(self._rank), own)):
                if content is not None:
                    files.append(aside / name)
                    _write_tensors(files[-1], content)
            if best is not None:
                files.append(aside / BEST_NAME)
                save_weights(files[-1], best)
            digests = {file.name: {"bytes": file.stat().st_size, "sha256": sha256_file(file)} for file in files}
            write_atomic(aside / _digests(self._rank), json.dumps(digests).encode())
        except BaseException:
            for file in files:  # a full disk has better uses for it
                file.unlink(missing_ok=True)
            raise

    def _seal(self, flight: _Flight) -> None:
        files: dict[str, dict[str, Any]] = {}
        for other in range(self._ranks):
            files |= json.loads((flight.aside / _digests(other)).read_text())
        for other in range(self._ranks):
            (flight.aside / _digests(other)).unlink()
        if self._log.exists():
            sync(self._log)
        seal(flight.aside, self._root, flight.step, files, ranks=self._ranks, keep=self._keep)
        if BEST_NAME in files:
            _show(self._root / f"step-{flight.step}" / BEST_NAME, self._root.parent / BEST_NAME)

    def _give_up(self) -> None:
        assert self._flight is not None
        texts: list[str | None] = [_told(self._error)]
        if self._ranks > 1:
            texts *= self._ranks
            dist.all_gather_object(texts, _told(self._error))
        which, text = next((number, text) for number, text in enumerate(texts) if text is not None)
        step, self._error = self._flight.step, None
        self._flight.thread.join()
        if self._rank == 0:
            shutil.rmtree(self._flight.aside, ignore_errors=True)
        self._flight = None
        older = [str(step_of(folder)) for folder in checkpoint_folders(self._root)]
        held = f"the newest older one is of step {older[0]}" if older else "there is no older one"
        raise EveryRankError(
            f"checkpoint of step {step} in {self._root}",
            why=f"rank {which} could not write it ({text}); {held}",
            remedy="Mend that (a full disk: make room) and give the same command again",
        )


def _digests(rank: int) -> str:
    return f"rank-{rank}.json"


def _write_tensors(path: Path, content: dict[str, Any]) -> None:
    with path.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())


def _show(source: Path, target: Path) -> None:
    """Let a file be seen under a second name too, without a copy where the file system can."""
    aside = aside_name(target)
    try:
        os.link(source, aside)
    except OSError:
        shutil.copyfile(source, aside)
    aside.replace(target)


def _told(error: Exception | None) -> str | None:
    if error is None:
        return None
    cause = error
    while not isinstance(cause, OSError) and isinstance(cause.__cause__ or cause.__context__, Exception):
        cause = cause.__cause__ or cause.__context__  # type: ignore[assignment]
    text = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(cause)
    return text.splitlines()[0] if text else type(cause).__name__


def _device() -> torch.device:
    """Where a reduction over the ranks takes its values from."""
    cuda = dist.is_initialized() and dist.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
