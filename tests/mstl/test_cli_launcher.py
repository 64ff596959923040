"""The launcher as a child: what is made of how it ended, what becomes of those it leaves, and signals on their way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from mstl.cli import launcher
from mstl.cli.launcher import Ended, Launcher
from mstl.failures import report_exit, reported_exits

REPO = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("code", "exits", "transient", "stopped", "cause"),
    [
        (247, {0: 4}, True, False, "a rank was ended by SIGKILL"),  # -9, as the launcher passes it on
        (245, {}, True, False, "a rank was ended by SIGSEGV"),
        (4, {0: 4, 1: 4}, True, False, "a rank was lost"),
        (137, {0: 4}, True, False, "a rank was ended by SIGKILL"),  # as a shell in between says it
        (247, {0: 3}, True, False, "a rank was ended by SIGKILL"),  # which took rank 0 down in its own way
        (-11, {}, True, False, "the launcher was ended by SIGSEGV"),
        (3, {0: 4, 1: 3}, False, False, "rank 1 crashed"),
        (4, {0: 4, 1: 3}, False, False, "rank 1 crashed"),  # whichever it noticed first
        (3, {}, False, False, "a rank crashed"),
        (5, {}, False, False, "the launcher's exit code is 5"),
        (4, {0: 4, 1: 1}, False, False, "a rank was lost"),  # rank 1 has said what is wrong
        (1, {0: 1, 1: 1}, False, False, "the launcher's exit code is 1"),
        (2, {0: 2}, False, False, "the launcher's exit code is 2"),
        (1, {}, False, False, "the launcher's exit code is 1"),  # it has started nobody
        (143, {0: 143, 1: 143}, False, True, "the launcher's exit code is 143"),
        (1, {0: 143, 1: 143}, False, True, "the launcher's exit code is 1"),  # as it ends on SIGTERM itself
        (-15, {0: 143, 1: 143}, False, True, "the launcher's exit code is -15"),
        (0, {0: 143, 1: 143}, True, False, "the launcher was killed"),
        (-9, {0: 143}, True, False, "the launcher was killed"),
    ],
)
def test_how_a_job_ended(code: int, exits: dict[int, int], transient: bool, stopped: bool, cause: str) -> None:
    ended = Ended(code, exits)
    assert (ended.transient, ended.stopped) == (transient, stopped)
    if transient or ended.crashed:
        assert ended.cause == cause


def test_ranks_leave_their_exit_codes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    report_exit(1)  # nobody asks
    monkeypatch.setenv("MSTL_REPORTS", str(tmp_path))
    report_exit(4)
    (tmp_path / "rank-1").write_text("half")
    assert reported_exits(tmp_path) == {3: 4}


LAUNCHER_SCRIPT = """
import os, subprocess, sys, time
# A rank that outlives its launcher, and saves when it is told to stop.
rank = subprocess.Popen([sys.executable, sys.argv[1], sys.argv[2]])
while not os.path.exists(sys.argv[2]):
    time.sleep(0.01)
sys.exit(int(sys.argv[3])) if sys.argv[3] != "wait" else rank.wait()
sys.exit(rank.returncode)
"""
RANK_SCRIPT = """
import os, signal, sys, time
from mstl.failures import report_exit
def stop(number, frame):
    report_exit(128 + number)
    sys.exit(128 + number)
signal.signal(signal.SIGTERM, signal.SIG_IGN if "deaf" in sys.argv[0] else stop)
open(sys.argv[1], "w").write(str(os.getpid()))
while True:
    time.sleep(0.05)
"""


def scripts(folder: Path, rank: str) -> tuple[str, str, str]:
    (folder / "launch.py").write_text(LAUNCHER_SCRIPT)
    (folder / rank).write_text(RANK_SCRIPT)
    return str(folder / "launch.py"), str(folder / rank), str(folder / "started")


@pytest.mark.parametrize("rank", ["rank.py", "deaf.py"])
def test_what_a_launcher_leaves_may_save_and_is_gone_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: str
) -> None:
    launch, script, started = scripts(tmp_path, rank)
    if rank == "deaf.py":
        monkeypatch.setattr(launcher, "LEAVE_SECONDS", 0.5)
    with Launcher(script) as running:
        ended = running.run(
            [sys.executable, launch, script, started, "0", "deepspeed.launcher.fake"],
            {**os.environ, "PYTHONPATH": str(REPO)},
        )
    assert ended == Ended(0, {} if rank == "deaf.py" else {0: 143})
    left = int(Path(started).read_text())
    assert not psutil.pid_exists(left) or psutil.Process(left).status() == psutil.STATUS_ZOMBIE
    assert running.received == 0


def test_a_signal_goes_to_the_ranks_and_ends_a_pause(tmp_path: Path) -> None:
    launch, script, started = scripts(tmp_path, "rank.py")
    command = f"""
import os, sys
from mstl.cli.launcher import Launcher
with Launcher({script!r}) as running:
    words = [{launch!r}, {script!r}, {started!r}, "wait", "deepspeed.launcher.fake"]
    ended = running.run([sys.executable, *words], os.environ)
    print(ended.code, dict(ended.exits), running.received, running.pause(3600))
"""
    with subprocess.Popen(
        [sys.executable, "-c", command], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(REPO)}
    ) as process:
        while not Path(started).exists():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=300)
    assert said.split("\n")[0] == "143 {0: 143} 2 False"


def test_a_signal_while_the_launcher_is_being_started_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sent within Popen, when there is nobody yet to pass it on to."""
    start = subprocess.Popen

    def signalled(*arguments: Any, **options: Any) -> Any:
        process = start(*arguments, **options)
        os.kill(os.getpid(), signal.SIGTERM)
        return process

    monkeypatch.setattr(launcher.subprocess, "Popen", signalled)
    with Launcher("train.py") as running:
        ended = running.run([sys.executable, "-c", "import time; time.sleep(600)"], dict(os.environ))
    assert running.received == signal.SIGTERM
    assert ended.code == -signal.SIGTERM
