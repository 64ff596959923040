"""TensorBoard and Weights & Biases: all numbers, each step once, whatever becomes of the sessions."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mstl.watching import loggers
from mstl.watching.loggers import TensorBoard, WandB, check_loggers
from shards.errors import MstlError

PATIENCE_SECONDS = 240.0

# Trains for pretence from one step to another, with a validation every fourth, and is killed there or ends well.
SESSION = """
import os, signal, sys
from pathlib import Path
from mstl.runs import MetricsLog
from mstl.watching.loggers import TensorBoard, WandB
run, begin, end, killed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "killed"
logger = TensorBoard(run) if sys.argv[5] == "tensorboard" else WandB(run, "mstl-test", {"stage": "finetune"})
log = MetricsLog(run, resume_step=begin)
logger.start(begin)
for step in range(begin + 1, end + 1):
    entry = {"step": step, "epoch": 0, "stage": "finetune", "loss": step / 10, "lr": 0.1,
             "images_per_second": 20.0, "data_wait": 0.25}
    log.write(entry)
    logger.step(entry)
    if step % 4 == 0:
        entry = {"step": step, "epoch": 0, "split": "val", "auc": step / 100, "f1": None}
        log.write(entry)
        logger.validation(entry)
if killed:
    if sys.argv[5] == "tensorboard":
        logger._writer.flush()
    os.kill(os.getpid(), signal.SIGKILL)
logger.close()
"""


def session(run: Path, begin: int, end: int, *, killed: bool, logger: str) -> None:
    words = [str(run), str(begin), str(end), "killed" if killed else "well", logger]
    done = subprocess.run(
        [sys.executable, "-c", SESSION, *words],
        env={**os.environ, "WANDB_MODE": "offline"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode == (-signal.SIGKILL if killed else 0), done.stderr


@pytest.mark.long
def test_tensorboard_shows_each_step_once_after_a_kill(tmp_path: Path) -> None:
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    session(tmp_path, 0, 9, killed=True, logger="tensorboard")
    session(tmp_path, 6, 12, killed=False, logger="tensorboard")  # its last checkpoint was at step 6
    held = accumulators.EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"scalars": 0})
    held.Reload()
    assert set(held.Tags()["scalars"]) == {
        "train/epoch", "train/loss", "train/lr", "speed/images_per_second", "speed/data_wait", "val/epoch", "val/auc"
    }  # fmt: skip
    assert [(e.step, round(e.value, 4)) for e in held.Scalars("train/loss")] == [(s, s / 10) for s in range(1, 13)]
    assert [(e.step, round(e.value, 4)) for e in held.Scalars("val/auc")] == [(4, 0.04), (8, 0.08), (12, 0.12)]


def records(path: Path) -> Iterator[Any]:
    """The records of a .wandb file: a LevelDB log of protocol buffers behind seven bytes of its own."""
    messages = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    data, place, part = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        part = (b"" if kind in (1, 2) else part) + data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            record = messages.Record()
            record.ParseFromString(part)
            yield record


@pytest.mark.long
@pytest.mark.parametrize("killed", [True, False])
def test_the_newest_offline_session_of_wandb_holds_each_step_once(tmp_path: Path, killed: bool) -> None:
    pytest.importorskip("wandb")
    session(tmp_path, 0, 9, killed=killed, logger="wandb")
    [first] = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    time.sleep(1.1)  # W&B names a session's folder by the second
    session(tmp_path, 6, 12, killed=False, logger="wandb")
    [second] = set((tmp_path / "wandb").glob("offline-run-*/*.wandb")) - {first}
    assert first.name == second.name  # one id
    rows: dict[int, dict[str, float]] = {}
    for record in records(second):
        if record.WhichOneof("record_type") == "run":
            assert (record.run.project, record.run.display_name) == ("mstl-test", tmp_path.name)
        if record.WhichOneof("record_type") == "history":
            row = {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            assert record.history.step.num not in rows
            rows[record.history.step.num] = row
    assert {step: row["train/loss"] for step, row in rows.items()} == {s: s / 10 for s in range(1, 13)}
    assert {step: row["val/auc"] for step, row in rows.items() if "val/auc" in row} == {4: 0.04, 8: 0.08, 12: 0.12}
    assert "val/f1" not in rows[4]


class FakeWandB(SimpleNamespace):
    """Stands for the package; remembers what it was asked."""

    class Error(Exception):
        """As the package's."""

    def __init__(self, *, key: bool = True, fails: str | None = None, has: int = 0) -> None:
        super().__init__(Settings=dict)
        self.key, self.fails, self.has, self.asked, self.logged = key, fails, has, list[dict[str, Any]](), list[Any]()

    def login(self, *, prompt: bool) -> bool:
        assert not prompt
        return self.key

    def init(self, **asked: Any) -> SimpleNamespace:
        if self.fails is not None:
            raise self.Error(self.fails)
        self.asked.append(asked)
        return SimpleNamespace(
            step=self.has, log=lambda row, step: self.logged.append((step, row)), finish=lambda: None
        )


def fake(monkeypatch: pytest.MonkeyPatch, package: FakeWandB) -> FakeWandB:
    monkeypatch.setattr(loggers, "import_module", lambda name: {"wandb": package}[name])
    monkeypatch.setattr(loggers, "find_spec", lambda name: object())
    return package


def test_what_the_server_lacks_is_sent_and_what_it_has_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [{"step": step, "loss": 0.5} for step in range(1, 9)]
    lines.insert(6, {"step": 6, "epoch": 0, "split": "val", "auc": 0.5})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    package = fake(monkeypatch, FakeWandB(has=5))  # steps up to 4
    logger = WandB(tmp_path, "project", {"seed": 1})
    logger.start(6)  # the checkpoint; steps 7 and 8 of the log come again
    for step in (7, 8):
        logger.step({"step": step, "loss": 0.5})
    assert [(step, next(iter(row))) for step, row in package.logged] == [
        (5, "train/loss"), (6, "train/loss"), (6, "val/epoch"), (7, "train/loss"), (8, "train/loss")
    ]  # fmt: skip
    ahead = fake(monkeypatch, FakeWandB(has=9))  # the server was told more than the checkpoint holds
    logger = WandB(tmp_path, "project", {"seed": 1})
    logger.start(6)
    for step in (7, 8, 9):
        logger.step({"step": step, "loss": 0.5})
    assert [step for step, _ in ahead.logged] == [9]
    assert package.asked[0]["id"] == ahead.asked[0]["id"] and len(package.asked[0]["id"]) == 8
    assert (package.asked[0]["project"], package.asked[0]["resume"]) == ("project", "allow")


def test_what_wandb_refuses_is_an_expected_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, FakeWandB(fails="no such project\nmore"))
    with pytest.raises(MstlError, match=r"--wandb project: Weights & Biases says: no such project\. .*WANDB_MODE=off"):
        WandB(tmp_path, "project", {})


@pytest.mark.parametrize("package", ["tensorboard", "wandb"])
def test_a_missing_package_is_named_with_the_command_that_brings_it(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loggers, "find_spec", lambda name: None)
    check_loggers(tensorboard=False, wandb=None)
    with pytest.raises(
        MstlError, match=rf"--{package}: the package {package} is missing\. pip install 'mstl\[{package}\]'"
    ):
        check_loggers(tensorboard=package == "tensorboard", wandb="project" if package == "wandb" else None)


def test_without_a_key_wandb_is_refused_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, FakeWandB(key=False))
    monkeypatch.delenv("WANDB_MODE", raising=False)
    with pytest.raises(MstlError, match="nobody is logged in"):
        check_loggers(tensorboard=False, wandb="project")
    monkeypatch.setenv("WANDB_MODE", "offline")
    check_loggers(tensorboard=False, wandb="project")


def test_tensorboard_that_never_started_closes_too(tmp_path: Path) -> None:
    TensorBoard(tmp_path).close()
    assert not (tmp_path / "tensorboard").exists()
