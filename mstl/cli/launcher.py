"""The launcher as a child of the command: signals are passed on, nothing outlives it, and why it ended is told."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING

from mstl.failures import LOST, REPORTS, reported_exits
from mstl.surroundings import take_stop_signals

if TYPE_CHECKING:
    import psutil

MODULE = "deepspeed.launcher"
COMMAND_PID = "MSTL_COMMAND_PID"  # in the ranks' environment: they stop when that process is gone
LEAVE_SECONDS = 60.0  # for ranks whose launcher is gone to save and leave
KILLED_SECONDS = 30.0  # for what was killed outright to disappear
_FAILED, _USAGE, _BUG = 1, 2, 3
_STOPPED = (128 + signal.SIGHUP, 128 + signal.SIGINT, 128 + signal.SIGTERM)


@dataclass(frozen=True, slots=True)
class Ended:
    """How a job ended: the launcher's exit code, and those of the ranks that could tell theirs."""

    code: int
    exits: Mapping[int, int]

    @property
    def stopped(self) -> bool:
        """Ranks were told to stop, by a signal that this command did not get: they have saved and left."""
        return not self._launcher_gone and any(code in _STOPPED for code in self.exits.values())

    @property
    def transient(self) -> bool:
        """Ranks or their launcher were lost, and nobody named a cause that will still be there, or asked to stop."""
        if self.stopped or any(code in (_FAILED, _USAGE) for code in self.exits.values()):
            return False
        # Where one was killed outright, what looks like a bug of another may have come of that.
        if self._launcher_gone or self._signal is not None:
            return True
        return not self.crashed and (self.code == LOST or (self.code not in (_FAILED, _USAGE) and self._lost))

    @property
    def crashed(self) -> str:
        """Who ended with a bug and its traceback, such as 'rank 1'; empty where nobody did."""
        for rank, code in self.exits.items():
            if code == _BUG:
                return f"rank {rank}"
        return "a rank" if self.code == _BUG else ""

    @property
    def _lost(self) -> bool:
        return LOST in self.exits.values()

    @property
    def _launcher_gone(self) -> bool:
        # deepspeed's runner, which starts on the nodes of a hostfile, exits with 0 when what it started is killed.
        return self.code in (0, -signal.SIGKILL)

    @property
    def _signal(self) -> signal.Signals | None:
        """What ended the rank that the launcher saw end, or the launcher itself."""
        if self.code in _STOPPED:  # saved, and left in order
            return None
        number = -self.code if self.code < 0 else self.code - 128
        if self.code > 192:  # a rank's negative code, as an exit code holds it
            number = 256 - self.code
        with suppress(ValueError):
            return signal.Signals(number)
        return None

    @property
    def cause(self) -> str:
        """What is known, in a few words."""
        if self._launcher_gone:
            return "the launcher was killed"
        if self._signal is not None:
            return f"{'the launcher' if self.code < 0 else 'a rank'} was ended by {self._signal.name}"
        if self.crashed:
            return f"{self.crashed} crashed"
        return "a rank was lost" if self._lost else f"the launcher's exit code is {self.code}"


class Launcher:
    """Runs launchers one after another, each in a session of its own, while this process passes its signals on.

    The launcher itself must not get the first one: it would die at once, or kill its ranks while they save. The
    second signal goes to everybody. `received` is the last signal, 0 when there was none.
    """

    def __init__(self, script: str) -> None:
        """script: the training script, by which ranks are known."""
        self._script = script
        self._session: int | None = None
        self.received = 0

    def __enter__(self) -> Launcher:
        self._give_back = take_stop_signals(self._forward)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._give_back()

    def run(self, arguments: Sequence[str], environment: Mapping[str, str]) -> Ended:
        """Start a launcher and wait until it and all that it started have ended."""
        with tempfile.TemporaryDirectory(prefix="mstl-reports-") as reports:
            told = {**environment, COMMAND_PID: str(os.getpid()), REPORTS: reports}
            process = subprocess.Popen(arguments, start_new_session=True, env=told)
            self._session = process.pid
            if self.received:  # while it was being started, when there was nobody yet to pass it on to
                self._pass_on(first=True)
            try:
                code = process.wait()
                self._end_leftovers(process.pid)
            finally:
                self._session = None
            return Ended(code, reported_exits(Path(reports)))

    def pause(self, seconds: float) -> bool:
        """Wait; returns False as soon as a signal asks this command to stop."""
        deadline = time.monotonic() + seconds
        while not self.received and time.monotonic() < deadline:
            time.sleep(0.1)
        return not self.received

    def _forward(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the signature of a handler
        first, self.received = not self.received, number
        self._pass_on(first=first)

    def _pass_on(self, *, first: bool) -> None:
        if self._session is None:
            return
        ranks = [process.pid for process in _members(self._session) if self._is_rank(process)] if first else []
        # Whoever has ended meanwhile needs no signal, and must not keep it from the others.
        if not ranks:
            with suppress(ProcessLookupError):
                os.killpg(self._session, signal.SIGTERM)
        for rank in ranks:
            with suppress(ProcessLookupError):
                os.kill(rank, signal.SIGTERM)

    def _is_rank(self, process: psutil.Process) -> bool:
        import psutil

        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            words = process.cmdline()
            return self._script in words and not any(word.startswith(MODULE) for word in words)
        return False

    def _end_leftovers(self, session: int) -> None:
        """A launcher that is killed leaves its ranks: let them save, then make sure that they are gone."""
        left = list(_members(session))
        for process in left:
            if self._is_rank(process):
                with suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGTERM)
        left = _wait_for(session, LEAVE_SECONDS)
        for process in left:
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        if left:  # they hold the run's lock, and the GPUs' memory, until they are gone
            _wait_for(session, KILLED_SECONDS)


def _wait_for(session: int, seconds: float) -> list[psutil.Process]:
    """Wait for a session's processes to end; those that have not."""
    deadline = time.monotonic() + seconds
    while (left := list(_members(session))) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


def _members(session: int) -> Iterator[psutil.Process]:
    """The processes of a session, whoever their parents are by now; without those that have only to be waited for."""
    import psutil

    for process in psutil.process_iter(["status"]):
        with suppress(OSError, psutil.NoSuchProcess):
            if os.getsid(process.pid) == session and process.info["status"] != psutil.STATUS_ZOMBIE:
                yield process
