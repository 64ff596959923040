"""A disk that takes no more is told by the run's folder, since a write to an open file names none."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from mstl.failures import naming
from shards.errors import MstlError


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full, a disk that is always full")
@pytest.mark.parametrize("saved", [False, True])
def test_a_full_disk_names_the_run_and_what_the_same_command_does(tmp_path: Path, saved: bool) -> None:
    if saved:
        (tmp_path / "checkpoints" / "step-3").mkdir(parents=True)
    with pytest.raises(MstlError) as caught, naming(tmp_path), Path("/dev/full").open("wb", buffering=0) as disk:
        disk.write(b"a line of metrics")
    assert caught.value.what == f"run folder {tmp_path}"
    assert "No space left on device" in caught.value.why
    assert ("continues from the newest checkpoint" in caught.value.remedy) == saved
    assert ("starts over" in caught.value.remedy) != saved


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(errno.EACCES, "Permission denied"),  # says nothing of the disk
        ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
        OSError(errno.ENOSPC, "No space left on device", "/elsewhere/file"),  # names its file itself
    ],
)
def test_what_is_no_full_disk_or_names_its_file_passes_as_it_is(tmp_path: Path, error: OSError) -> None:
    with pytest.raises(OSError) as caught, naming(tmp_path):
        raise error
    assert caught.value is error
