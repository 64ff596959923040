"""How training processes end, and how each tells it to the command that started them. Imports no torch."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mstl.places import way_on
from shards.errors import MstlError
from shards.files import write_atomic

LOST = 4
"""Exit code of a rank that ended because another one had, or hangs: the job may succeed when it is started again."""
RESTART_CAUSE = "MSTL_RESTART_CAUSE"  # in the ranks' environment: why `mstl train` had to start them again
REPORTS = "MSTL_REPORTS"  # in the ranks' environment: the folder where each leaves its exit code

_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


class EveryRankError(MstlError):
    """A failure that all ranks raise alike: the first one speaks for them."""


class RankLostError(MstlError):
    """This rank can do nothing without another, which has gone or does not answer."""


@contextmanager
def naming(run: Path) -> Iterator[None]:
    """Raise MstlError with the run folder where its disk takes no more: a write to an open file names no file."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno not in _UNWRITABLE:
            raise
        raise MstlError(
            f"run folder {run}",
            why=f"it cannot be written to ({error.strerror})",
            remedy=f"Mend that (a full disk: make room); {way_on(run)}",
        ) from error


def report_exit(code: int) -> None:
    """Leave this rank's exit code for the command that started the job; the launcher passes on one of all."""
    folder = os.environ.get(REPORTS)
    if folder is not None:
        with suppress(OSError):
            write_atomic(Path(folder) / f"rank-{os.environ.get('RANK', '0')}", str(code).encode())


def reported_exits(folder: Path) -> dict[int, int]:
    """The exit codes that ranks have left, by rank; one that was killed outright left none."""
    found = {}
    for file in folder.glob("rank-*"):
        with suppress(OSError, ValueError):
            found[int(file.name.removeprefix("rank-"))] = int(file.read_text())
    return found


def between_ranks(error: Exception) -> bool:
    """Whether an exchange with other ranks failed, most often because one is gone.

    torch has a type for what NCCL and its store raise; gloo raises RuntimeError with the name of its source file.
    """
    typed = any(kind.__name__ == "DistError" for kind in type(error).__mro__)  # by name: no torch here
    return typed or (isinstance(error, RuntimeError) and "gloo" in str(error).lower())


def in_words(error: Exception) -> str:
    """The first sentence of such a failure, without the places in gloo's and torch's sources that it begins with."""
    first = str(error).partition("\n")[0].partition(". ")[0]
    return re.sub(r"\[[^\]\s]*\.(?:cc|cpp|h|hpp):\d+\]\s*", "", first).strip() or type(error).__name__
