"""The process this rank is: its environment, its process group, its device, its signals."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from contextlib import suppress
from types import FrameType

import psutil
import torch

from mstl.cli.launcher import COMMAND_PID

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def set_environment() -> None:
    """Fill in what a launcher would have set, so that plain `python launch/train.py` is one rank."""
    if "RANK" in os.environ:
        _end_with_the_launcher()
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    for name, value in alone.items():
        os.environ.setdefault(name, value)
    if os.environ.get("DS_ACCELERATOR") == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the launcher has made every rank a GPU visible
    elif not torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"
    # Two ranks on one CPU otherwise start a thread per core each and run several times slower.
    if "OMP_NUM_THREADS" not in os.environ:
        torchrun, deepspeed = os.environ.get("LOCAL_WORLD_SIZE"), os.environ.get("LOCAL_SIZE")
        local = int(torchrun or deepspeed or os.environ["WORLD_SIZE"])
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // max(1, local)))


def local_rank() -> int:
    return int(os.environ["LOCAL_RANK"])


def device() -> torch.device:
    """This rank's device: its own GPU, or the CPU where there is none."""
    return torch.device("cuda", local_rank()) if torch.cuda.is_available() else torch.device("cpu")


def _end_with_the_launcher() -> None:
    """Get SIGTERM when the parent process dies: a launcher killed outright (out of memory) would leave its ranks."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def launchers() -> list[psutil.Process]:
    """The processes whose end means that nobody waits for this job any more: `mstl train` and deepspeed's runner.

    Killed outright they cannot pass it on: what starts the ranks is a child of theirs and does not notice. Raises
    psutil.NoSuchProcess when one of them is gone already.
    """
    found = []
    if COMMAND_PID in os.environ:
        found.append(psutil.Process(int(os.environ[COMMAND_PID])))
    above = os.getppid()
    if above == 0:  # the first process of a container: its parent cannot be seen from inside
        return found
    with suppress(psutil.AccessDenied):
        parent = psutil.Process(above)
        if "deepspeed.launcher.launch" in parent.cmdline():
            runner = parent.parent()
            if runner is not None and any("deepspeed" in word for word in runner.cmdline()):
                found.append(runner)
    return found


def siblings() -> list[psutil.Process]:
    """The other ranks that this rank's launcher has started on this machine; none for a process of its own."""
    if os.environ["WORLD_SIZE"] == "1":
        return []
    with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        family = psutil.Process(os.getppid()).children()
        return [process for process in family if process.pid != os.getpid() and sys.argv[0] in process.cmdline()]
    return []


def alive(process: psutil.Process) -> bool:
    """Whether a process still runs; one that has ended and was not waited for does not."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


class StopSignal:
    """Remembers SIGTERM, SIGINT or SIGHUP; the training loop saves and leaves at its next step.

    Ctrl-C after any of them ends the process at once; SIGTERM does not, since one request may come twice: from a
    scheduler that signals every process, and from a launcher that passes it on. Install it when the loop is about to
    start: until then a signal has nothing to save. The death of what started this job, killed outright, counts as a
    signal too.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._launchers: list[psutil.Process] = []
        try:
            self._launchers = launchers()
        except psutil.NoSuchProcess:
            self.signal = signal.SIGTERM
        # Python's handlers run in the main thread alone, which may be blocked; this pipe is written in any case.
        self._arrived, written = os.pipe()
        for end in (self._arrived, written):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(written, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._remember)

    def _remember(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the signature of a handler
        if self.signal is not None and number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.signal = self.signal or number

    def look(self) -> None:
        """Learn of a signal that the main thread has not been able to take; for another thread to call."""
        with suppress(BlockingIOError):
            for number in os.read(self._arrived, 64):
                if number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                    self.signal = self.signal or number

    @property
    def requested(self) -> bool:
        return self.signal is not None or not all(map(alive, self._launchers))

    @property
    def exit_code(self) -> int:
        """128 + signal number, as a shell reports it; 143 where another rank got the signal."""
        return 128 + (self.signal or signal.SIGTERM)
