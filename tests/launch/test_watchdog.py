"""The thread that ends a rank when nothing else can."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from launch.processes import StopSignal
from launch.watchdog import Watchdog, allowed_seconds
from mstl.training import Training

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(HERE / "watched_cases.py"), str(tmp_path_factory.mktemp("watched"))],
        env={**os.environ, "PYTHONPATH": str(HERE.parents[1])}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(("name", "behind"), [("hangs", 4), ("hangs_from_the_start", 0)])
def test_a_rank_that_stands_still_is_ended_and_says_where(cases: dict[str, Any], name: str, behind: int) -> None:
    case = cases[name]
    assert case["code"] == 4
    assert case["last words"]
    assert f"in {name}\n" in case["stacks"]
    [line] = case["said"].splitlines()
    assert line.startswith(f"Error: finetune, behind step {behind}: no step has finished for ")
    assert "rank 1 does not answer" in line and "hang; nothing was saved yet, so the same command starts over" in line


def test_a_rank_whose_sibling_has_gone_does_not_wait_for_the_limit(cases: dict[str, Any]) -> None:
    assert cases["loses_a_sibling"]["code"] == 4
    assert "behind step 5: another rank of this machine has gone" in cases["loses_a_sibling"]["said"]


def test_a_rank_that_cannot_stop_is_ended_unless_it_saves(cases: dict[str, Any]) -> None:
    assert cases["is_blocked_when_told_to_stop"]["code"] == 143
    assert "told to stop, but no step has finished since" in cases["is_blocked_when_told_to_stop"]["said"]
    assert cases["saves_when_told_to_stop"]["code"] == 17


def test_slow_steps_are_given_time() -> None:
    assert allowed_seconds(300, steps=0, longest=0) == 900  # graphs are built
    assert allowed_seconds(300, steps=1, longest=0) == 300  # how long the first one took says nothing
    assert allowed_seconds(300, steps=9, longest=99) == 300
    assert allowed_seconds(300, steps=9, longest=200) == 600


def test_a_rank_that_goes_on_is_left_alone(cases: dict[str, Any]) -> None:
    assert (cases["goes_on"]["code"], cases["goes_on"]["said"]) == (17, "")


def test_another_start_keeps_what_explains_the_hang_before_it(tmp_path: Path) -> None:
    training = SimpleNamespace(run=tmp_path, done=0, saving=False, val_loader=None)
    stop = SimpleNamespace(requested=False, look=lambda: None)
    for text in ("first", "second"):
        (tmp_path / "hang").mkdir()
        (tmp_path / "hang" / "rank-1.txt").write_text(text)
        with Watchdog(
            cast(Training, training), cast(StopSignal, stop), [], rank=0, ranks=2, limit_seconds=3600,
            last_words=lambda: None,
        ):  # fmt: skip
            assert not (tmp_path / "hang").exists()  # a rank of this start would seem to have answered
        assert (tmp_path / "hang-before" / "rank-1.txt").read_text() == text
