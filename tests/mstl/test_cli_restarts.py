"""When `mstl train` starts a job again, when it does not, and what it says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mstl.cli import train
from mstl.cli.launcher import Ended
from mstl.failures import RESTART_CAUSE

DONE = Ended(0, {0: 0, 1: 0})
LOST = Ended(4, {0: 4, 1: 4})
KILLED = Ended(247, {0: 4})
BUG = Ended(3, {0: 4, 1: 3})
BAD_INPUT = Ended(1, {0: 1, 1: 1})
USAGE = Ended(2, {0: 2})


class Jobs:
    """Stands for the launcher: each start ends as the next of a list says."""

    def __init__(self, endings: Sequence[Ended]) -> None:
        self.endings = list(endings)
        self.received = 0
        self.causes: list[str | None] = []
        self.resumes: list[str] = []
        self.done = False

    def __enter__(self) -> Jobs:
        return self

    def __exit__(self, *error: object) -> None: ...

    def run(self, arguments: Sequence[str], environment: Mapping[str, str]) -> Ended:
        self.resumes.append(arguments[0])
        self.causes.append(environment.get(RESTART_CAUSE))
        ended = self.endings.pop(0)
        self.done = ended == DONE
        return ended

    def pause(self, seconds: float) -> bool:
        assert seconds <= train.LONGEST_PAUSE_SECONDS
        return True


def start(monkeypatch: pytest.MonkeyPatch, out: Path, endings: Sequence[Ended], restarts: int) -> tuple[int, Jobs]:
    jobs = Jobs(endings)
    monkeypatch.delenv(RESTART_CAUSE, raising=False)
    monkeypatch.setattr(train, "Launcher", lambda script: jobs)
    monkeypatch.setattr(train, "check_job", lambda options, world: SimpleNamespace(finished=False))
    monkeypatch.setattr(train, "launcher_command", lambda options, *_: [options["resume"]])
    monkeypatch.setattr(train, "_finished", lambda *_: jobs.done)
    options: dict[str, Any] = {"stage": "finetune", "out": out, "resume": "must"}
    return train.start(options, 2, max_restarts=restarts), jobs


@pytest.mark.parametrize(
    ("ending", "code", "says"),
    [
        (BUG, 3, "rank 1 crashed: a bug, see above, which another start would meet again"),
        (BAD_INPUT, 1, "not started again"),
        (USAGE, 2, "not started again"),
    ],
)
def test_what_would_happen_again_ends_the_job_at_once(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    ending: Ended,
    code: int,
    says: str,
) -> None:
    found, jobs = start(monkeypatch, tmp_path, [ending, DONE], 3)
    assert (found, len(jobs.causes)) == (code, 1)
    said = capsys.readouterr().err
    assert says in said and "starts again" not in said


def test_lost_ranks_are_started_again_behind_the_newest_checkpoint(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, jobs = start(monkeypatch, tmp_path, [KILLED, LOST, DONE], 3)
    assert found == 0
    assert jobs.causes == [None, "a rank was ended by SIGKILL", "a rank was lost"]
    assert jobs.resumes == ["must", "auto", "auto"]
    assert "a rank was lost: starts again in 2 s (2 of 3)" in capsys.readouterr().err


@pytest.mark.parametrize("saved", [True, False])
def test_no_checkpoint_is_promised_that_there_is_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], saved: bool
) -> None:
    (tmp_path / "checkpoints" / (f"{'' if saved else '.'}step-3")).mkdir(parents=True)
    found, _ = start(monkeypatch, tmp_path, [LOST], 0)
    assert found == 4
    said = capsys.readouterr().err
    assert "Error: the training processes ended early: a rank was lost" in said
    assert ("continues from the newest checkpoint" in said) == saved
    assert ("nothing was saved yet" in said) != saved


def test_a_bug_without_restarts_is_said_without_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, _ = start(monkeypatch, tmp_path, [BUG], 0)
    assert (found, capsys.readouterr().err) == (3, "rank 1 crashed: a bug, see above\n")


def test_a_finished_job_starts_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train, "check_job", lambda options, world: SimpleNamespace(finished=True))
    monkeypatch.setattr(train, "Launcher", None)
    assert train.start({"stage": "finetune", "out": tmp_path}, 2) == 0
    assert "already finished; name another --out" in capsys.readouterr().err
