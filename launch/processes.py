"""The process this rank is: its environment, its process group, its device, its signals."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from types import FrameType

import torch

from mstl.cli.train import COMMAND_PID

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def set_environment() -> None:
    """Fill in what a launcher would have set, so that plain `python launch/train.py` is one rank."""
    if "RANK" in os.environ:
        _end_with_the_launcher()
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    for name, value in alone.items():
        os.environ.setdefault(name, value)
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # Two ranks on one CPU otherwise start a thread per core each and run several times slower.
    local = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
    if "OMP_NUM_THREADS" not in os.environ:
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


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody's, hence alive
        return True
    return True


class StopSignal:
    """Remembers SIGTERM, SIGINT or SIGHUP; the training loop saves and leaves at its next step.

    The second one ends the process at once. Install it when the loop is about to start: until then a signal has
    nothing to save. The death of the `mstl train` that started this job, killed outright, counts as a signal too.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._command = int(os.environ.get(COMMAND_PID, "0"))
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._remember)

    def _remember(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the signature of a handler
        if self.signal is not None:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.signal = number

    @property
    def requested(self) -> bool:
        return self.signal is not None or (self._command > 0 and not _alive(self._command))

    @property
    def exit_code(self) -> int:
        """128 + signal number, as a shell reports it; 143 where another rank got the signal."""
        return 128 + (self.signal or signal.SIGTERM)
