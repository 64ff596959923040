"""`mstl runs`: every state a run can be in, broken records included."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from mstl.cli.runs import command
from mstl.run_list import BrokenRun, RunLine, list_runs, lock_path, validation_text
from mstl.runs import write_record
from shards.errors import MstlError
from shards.files import lock_file
from tests.mstl.test_runs import body


def make(path: Path, *, lines: list[dict[str, Any]] | None = None, **changes: Any) -> Path:
    recipe = {"data": {"image_size": 64}, "optim": {"epochs": 4}}
    write_record(path, body(**{"recipe": recipe, "finished": None, **changes}))
    if lines is not None:
        (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def log(steps: int, aucs: list[float | None], per_epoch: int = 5) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        epoch = (step - 1) // per_epoch
        lines.append({"step": step, "epoch": epoch, "loss": 1.0})
        if step % per_epoch == 0 and epoch < len(aucs):
            lines.append({"step": step, "epoch": epoch, "split": "val", "auc": aucs[epoch], "accuracy": 0.5})
    return lines


def only(root: Path) -> RunLine:
    [run] = list_runs(root)
    assert isinstance(run, RunLine), run
    return run


def test_runs_are_listed_by_start_the_broken_ones_last(tmp_path: Path) -> None:
    make(tmp_path / "b", started="2026-01-01T00:00:00+00:00")
    make(tmp_path / "a", started="2026-03-01T00:00:00+00:00")
    make(tmp_path / "demo" / "c", started="2026-02-01T00:00:00+00:00")
    make(tmp_path / "demo" / "c" / "checkpoints" / "d")  # what lies in a run is its own
    make(tmp_path / "1" / "2" / "3" / "4")  # too deep
    for name, text in {"x": "{", "y": json.dumps(body(schema=99)), "z": json.dumps(body(status="odd"))}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(text)
    make(tmp_path / "w", started="yesterday")
    make(tmp_path / "v")
    (tmp_path / "v" / "metrics.jsonl").write_text('{"step": 1}\nnonsense\n')
    (tmp_path / "nothing").mkdir()
    runs = list_runs(tmp_path)
    assert [run.name for run in runs] == ["b", "demo/c", "a", "v", "w", "x", "y", "z"]
    reasons = {run.name: run.why for run in runs if isinstance(run, BrokenRun)}
    assert "metrics.jsonl cannot be read" in reasons["v"]
    assert "yesterday" in reasons["w"]
    assert "cannot be read" in reasons["x"]
    assert "schema 99" in reasons["y"]
    assert "status 'odd'" in reasons["z"]
    with pytest.raises(MstlError, match="is not there"):
        list_runs(tmp_path / "missing")


def test_a_run_is_its_own_list(tmp_path: Path) -> None:
    make(tmp_path / "alone")
    assert only(tmp_path / "alone").name == "alone"


@pytest.mark.parametrize("status", ["finished", "interrupted", "failed"])
def test_the_record_says_how_a_run_ended(tmp_path: Path, status: str) -> None:
    make(tmp_path / "run", status=status, wall_seconds=61.0)
    run = only(tmp_path)
    assert (run.status, run.wall_seconds) == (status, 61.0)


HOLD = "import sys; from pathlib import Path; from shards.files import lock_file; h = lock_file(Path(sys.argv[1])); \
print(h is not None, flush=True); sys.stdin.read()"


def test_running_means_that_somebody_holds_the_lock(tmp_path: Path) -> None:
    path = make(tmp_path / "run", status="running", wall_seconds=100.0)
    os.utime(path / "run.json", (time.time() - 3600, time.time() - 3600))
    assert only(tmp_path).status == "stale"
    assert not lock_path(path).exists()  # looking makes no file
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(lock_path(path))], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline().strip() == "True"
    run = only(tmp_path)
    assert run.status == "running"
    assert run.wall_seconds >= 3700
    holder.kill()  # its lock file stays behind
    holder.communicate()
    run = only(tmp_path)
    assert (run.status, run.wall_seconds) == ("stale", 100.0)
    assert lock_path(path).exists()
    mine = lock_file(lock_path(path))  # nor does looking keep the lock
    assert mine is not None
    os.close(mine)


def test_steps_and_validations(tmp_path: Path) -> None:
    path = make(tmp_path / "run", lines=log(12, [0.7, 0.7]))
    run = only(tmp_path)
    assert (run.step, run.steps) == (12, 20)  # as the first epoch shows
    assert run.best is not None and run.last is not None
    assert (run.best["epoch"], run.last["epoch"]) == (0, 1)  # the earliest of equals
    assert validation_text(run.best) == "auc 0.700 (epoch 1)"
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 13, "spl')
    assert only(tmp_path).step == 12
    make(path, lines=log(3, []), steps=24)
    run = only(tmp_path)
    assert (run.step, run.steps, run.best, run.last) == (3, 24, None, None)
    make(path, lines=log(3, []))
    assert only(tmp_path).steps is None
    (path / "metrics.jsonl").unlink()
    assert only(tmp_path).step == 0


def test_a_validation_without_a_score_shows_its_loss() -> None:
    assert validation_text({"epoch": 1, "auc": None, "accuracy": 0.25}) == "accuracy 0.250 (epoch 2)"
    assert validation_text({"epoch": 1, "loss": 5.4375}) == "loss 5.438 (epoch 2)"
    assert validation_text({"epoch": 1, "loss": None}) == validation_text(None) == "-"


def test_the_table_and_json(tmp_path: Path) -> None:
    make(tmp_path / "first", lines=log(20, [0.5, 0.9, 0.8, 0.6]), wall_seconds=4000.0)
    make(
        tmp_path / "second",
        stage="sstl_m",
        ssl="simclr",
        status="interrupted",
        started="2026-02-01T00:00:00+00:00",
        parent={"path": "/somewhere/first", "weights": "w", "digest": "d"},
    )
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "run.json").write_text("{")
    result = CliRunner().invoke(command, [str(tmp_path)])
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert len(lines) == 4
    assert "\x1b" not in result.output
    words = ["first", "stl_n", "resnet14-attn5", "finished", "20/20", "auc 0.900 (epoch 2)", "auc 0.600 (epoch 4)"]
    words += ["imagenet", "1:06:40"]
    assert all(word in lines[1] for word in words), lines[1]
    assert "sstl_m (simclr)" in lines[2] and " first " in lines[2] and "0/?" in lines[2]
    assert lines[3].startswith("broken: torn: it cannot be read")
    found = json.loads(CliRunner().invoke(command, [str(tmp_path), "--json"]).output)
    assert [run["status"] for run in found] == ["finished", "interrupted", "broken"]
    assert found[0]["best"]["auc"] == 0.9 and found[0]["parent"] is None and found[1]["ssl"] == "simclr"
    empty = tmp_path / "empty"
    empty.mkdir()
    assert CliRunner().invoke(command, [str(empty)]).output == f"No runs in {empty}\n"
    assert CliRunner().invoke(command, [str(empty), "--json"]).output == "[]\n"


def test_curves_on_demand(tmp_path: Path) -> None:
    path = make(tmp_path / "run", lines=log(7, [0.6]))
    make(tmp_path / "untrained", lines=[])
    result = CliRunner().invoke(command, [str(tmp_path), "--curves"])
    assert result.exit_code == 0, result.output
    assert (path / "curves.png").is_file() and f"wrote {path / 'curves.png'}" in result.output
    assert "its log has no steps" in result.output


def test_listing_imports_nothing_heavy(tmp_path: Path) -> None:
    make(tmp_path / "run", lines=log(7, [0.6]))
    code = (
        "import sys\nfrom click.testing import CliRunner\nfrom mstl.cli.runs import command\n"
        "assert 'finished' in CliRunner().invoke(command, [sys.argv[1]]).output\n"
        "print(sorted({'numpy', 'torch', 'nvidia.dali', 'deepspeed', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
