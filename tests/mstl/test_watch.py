"""What is shown of a run, and that nothing that becomes of the reader or of a logger reaches the training."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from mstl.watch import Watch, open_watch
from mstl.watching.screen import Screen
from mstl.watching.speaker import Speaker
from mstl.watching.stream import Stream
from tests.mstl.held_clock import Clock

PATIENCE_SECONDS = 120.0  # for a busy machine; nothing waits that long


def entry(step: int, epoch: int = 0, **more: Any) -> dict[str, Any]:
    return {"step": step, "epoch": epoch, "stage": "finetune", "loss": 0.5, "lr": 0.1, "images_per_second": 20.0,
            "data_wait": 0.25, **more}  # fmt: skip


def validation(step: int, epoch: int, auc: float | None) -> dict[str, Any]:
    return {"step": step, "epoch": epoch, "split": "val", "accuracy": 0.5, "auc": auc}


def screen(run: Path, stream: Stream, clock: Clock, steps: int = 100) -> Screen:
    return Screen(run, stage="finetune", steps=steps, epochs=10, every_seconds=10.0, stream=stream, clock=clock)


def test_plain_lines_come_at_the_first_step_every_so_often_and_at_the_end(tmp_path: Path) -> None:
    run, file, clock = tmp_path / "name", tmp_path / "log", Clock()
    with file.open("wb") as log:
        view = screen(run, Stream(log.fileno()), clock, steps=30)
        view.start(0)
        for step in range(1, 31):
            clock.now += 1.0
            view.step(entry(step, (step - 1) // 3))
            if step % 15 == 0:
                view.validation(validation(step, (step - 1) // 3, 0.9 if step == 15 else 0.8))
        view.note("done [bold]and said[/bold]")
        view.close()
    text = file.read_text()
    lines = text.splitlines()
    assert [int(found[1]) for found in re.finditer(r"^name: step (\d+)/30 ", text, re.MULTILINE)] == [1, 11, 21, 30]
    assert lines[2] == "name: epoch 5/10 on val: accuracy 0.5, auc 0.9; best auc 0.9 in epoch 5"
    assert lines[-2] == "name: epoch 10/10 on val: accuracy 0.5, auc 0.8; best auc 0.9 in epoch 5"
    assert lines[-1] == "name: done [bold]and said[/bold]"
    assert all(32 <= ord(character) < 127 or character == "\n" for character in text)


def test_a_resumed_run_knows_its_best(tmp_path: Path) -> None:
    run, clock = tmp_path / "run", Clock()
    run.mkdir()
    history = [validation(3, 0, 0.7), validation(6, 1, 0.95), validation(9, 2, 0.99)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in history))
    with (tmp_path / "log").open("wb") as log:
        view = screen(run, Stream(log.fileno()), clock)
        view.start(6)  # what lies behind is done again
        view.validation(validation(9, 2, 0.8))
        view.close()
    assert (tmp_path / "log").read_text().endswith("auc 0.8; best auc 0.95 in epoch 2\n")


def test_colours_forced_by_the_environment_stay_out_of_a_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    with (tmp_path / "log").open("wb") as log:
        view = screen(tmp_path / "run", Stream(log.fileno()), Clock())
        view.start(0)
        view.step(entry(1))
        view.close()
    assert "\x1b" not in (tmp_path / "log").read_text()


LIVE = """
import sys
from pathlib import Path
from mstl.watching.screen import Screen
from mstl.watching.stream import Stream
stream = Stream()
assert stream.live
view = Screen(Path(sys.argv[1]), stage="finetune", steps=10, epochs=2, every_seconds=10.0, stream=stream)
view.start(0)
view.note("first line")
for step in range(1, 11):
    view.step({"step": step, "epoch": (step - 1) // 5, "stage": "finetune", "loss": 0.5, "lr": 0.1,
               "images_per_second": 20.0, "data_wait": 0.25})
    if step % 5 == 0:
        view.validation({"step": step, "epoch": (step - 1) // 5, "split": "val", "auc": 0.9 - step / 100})
view.close()
"""


def test_on_a_terminal_a_display_stays_below_the_lines(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", LIVE, str(tmp_path / "run")],
        stderr=theirs,
        stdout=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "40"},
    )
    os.close(theirs)
    seen = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # Linux: the other end is closed
            break
        if not part:
            break
        seen += part
    assert process.wait(PATIENCE_SECONDS) == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.decode())
    assert "run: first line" in text
    assert "\x1b[?25h" in seen.decode()  # the cursor is back
    last = text[text.rindex("run  stage finetune") :].splitlines()
    assert last[0].strip() == "run  stage finetune  epoch 2/2"
    assert "10/10 steps" in last[1] and last[1].strip().endswith("0:00:00 left")
    assert "20 img/s, 25% waiting for data" in last[2]
    assert last[3].strip() == "loss 0.5, lr 0.1"
    assert last[4].strip() == "validation of epoch 2: auc 0.8"
    assert last[5].strip() == "best: auc 0.85 in epoch 1"
    assert "run: epoch 2/2 on val: auc 0.8; best auc 0.85 in epoch 1" in text
    assert "epoch 1/2 on val" not in text


GONE = """
import sys, time, warnings
from pathlib import Path
from mstl.watch import open_watch
run = Path(sys.argv[1])
watch = open_watch(run, stage="finetune", steps=1000, epochs=1, config={}, line_seconds=0.0)
with watch:
    watch.start(0)
    for step in range(1, 1001):
        watch.step({"step": step, "epoch": 0, "stage": "finetune", "loss": 0.5, "lr": 0.1,
                    "images_per_second": 20.0, "data_wait": 0.25})
        if step == 500:
            sys.stdin.read()  # until the reader has gone
        while step > 900 and not watch._stream.gone:
            time.sleep(0.01)
        if step > 900:
            watch.alert("still here")
            warnings.warn(f"a library speaks {step}")
            print("and another", file=sys.stderr)
(run / "done").write_text("1000")
"""


def test_training_goes_on_when_the_reader_has_gone(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", GONE, str(tmp_path)],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None and process.stderr is not None
    assert b"step 1/1,000" in process.stderr.readline()
    process.stderr.close()
    process.stdin.close()
    assert process.wait(PATIENCE_SECONDS) == 0
    assert (tmp_path / "done").read_text() == "1000"


def test_training_does_not_wait_for_a_reader_that_has_stopped_reading(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    view = screen(tmp_path / "run", Stream(writer), Clock(), steps=5000)
    view._every = 0.0  # a line a step: far more than the pipe takes
    view.start(0)

    def train() -> None:
        for step in range(1, 5001):
            view.step(entry(step))
        view._speaker.close(patience_seconds=0.1)

    thread = threading.Thread(target=train, daemon=True)
    thread.start()
    thread.join(PATIENCE_SECONDS)
    assert not thread.is_alive()
    os.close(reader)  # lets the writing thread go
    view._speaker._thread.join(PATIENCE_SECONDS)
    assert not view._speaker._thread.is_alive()
    os.close(writer)


def test_a_speaker_says_everything_in_order_before_it_ends(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as log:
        speaker = Speaker(Stream(log.fileno()))
        for number in range(900):
            speaker.say(str(number))
        speaker.close(PATIENCE_SECONDS)
    assert (tmp_path / "log").read_text().split() == [str(number) for number in range(900)]


class Listener:
    def __init__(self, fails: str = "") -> None:
        self.fails, self.heard = fails, list[str]()

    def _hear(self, what: str) -> None:
        self.heard.append(what)
        if what.startswith(self.fails or "nothing"):
            raise OSError(28, "No space left on device")

    def start(self, step: int) -> None:
        self._hear(f"start {step}")

    def step(self, line: Mapping[str, Any]) -> None:
        self._hear(f"step {line['step']}")

    def validation(self, line: Mapping[str, Any]) -> None:
        self._hear(f"validation {line['step']}")

    def note(self, text: str) -> None:
        self._hear(f"note {text}")

    def close(self) -> None:
        self._hear("close")


@pytest.mark.parametrize("fails", ["start", "step 2", "validation", "close"])
def test_a_listener_that_fails_is_left_out_and_said_to_be(fails: str) -> None:
    voice, bad, good = Listener(), Listener(fails), Listener()
    with Watch([voice, bad, good]) as watch:
        watch.start(0)
        watch.step(entry(1))
        watch.step(entry(2))
        watch.validation(validation(2, 0, 0.5))
        watch.step(entry(3))
    whole = ["start 0", "step 1", "step 2", "validation 2", "step 3", "close"]
    said = [line for line in voice.heard if line.startswith("note")]
    assert [line for line in good.heard if not line.startswith("note")] == whole
    assert [line for line in voice.heard if not line.startswith("note")] == whole
    assert len(said) == 1 and "Listener has failed and is left out from here on" in said[0]
    assert bad.heard[-1].startswith(fails)


def test_the_voice_closes_last_and_its_own_failure_is_written_plainly(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as log:
        voice, other = Listener("step 1"), Listener()
        with Watch([voice, other], Stream(log.fileno())) as watch:
            watch.step(entry(1))
            watch.alert("something")
    assert other.heard == ["step 1", "close"]
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines == [
        "rank 0: Listener has failed and is left out from here on: [Errno 28] No space left on device",
        "rank 0: something",
    ]


def test_the_other_ranks_only_speak_of_themselves(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as log, Watch((), Stream(log.fileno())) as watch:
        watch.start(0)
        watch.step(entry(1))
        watch.note("not for this rank")
        watch.alert("skipped an image")
    assert (tmp_path / "log").read_text() == "rank 0: skipped an image\n"


def test_curves_are_drawn_when_training_ends_by_an_error_too(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "metrics.jsonl").write_text(json.dumps(entry(1)) + "\n")
    watch = open_watch(tmp_path, stage="finetune", steps=9, epochs=3, config={})
    with pytest.raises(ZeroDivisionError), watch:
        watch.start(1)
        watch.step(entry(2))
        raise ZeroDivisionError
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert f"curves in {tmp_path / 'curves.png'}" in capfd.readouterr().err


def test_curves_that_cannot_be_drawn_fail_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "metrics.jsonl").write_text("nonsense\n" + json.dumps(entry(2)) + "\n")
    with open_watch(tmp_path, stage="finetune", steps=9, epochs=3, config={}) as watch:
        watch.step(entry(2))
    assert "no curves: " in capfd.readouterr().err
    assert not (tmp_path / "curves.png").exists()
