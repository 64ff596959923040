"""Running a study, with small programs in place of trainings: order, failures, slots, signals, what is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tiny_runs import make_shards

from mstl.cli.run import command
from mstl.study import devices, preflight, runner
from mstl.study.devices import Slot, make_slots
from mstl.study.digests import Code
from mstl.study.planned import Planned, StudyPlan
from mstl.study.preflight import plan_study
from mstl.study.processes import failure_of, words_of
from mstl.study.progress import Progress, read_progress
from mstl.study.runner import Running, run_study
from mstl.study.screen import StudyScreen
from mstl.study.spec import read_study
from mstl.study.state import StudyState, read_status
from mstl.watching.stream import Stream
from shards.errors import MstlError
from shards.files import lock_file

NODE = '[[node]]\nname = "{name}"\nstage = "finetune"\ndata = "ct"\n{more}\n'
HEAD = 'name = "s"\nnetworks = ["resnet14"]\n[set]\ndata.image_size = 32\ndata.batch_size = 4\n[data]\nct = "{ct}"\n'
PATIENCE = 300.0  # seconds; for a machine with every core busy

CODE = Code(version="1", revision=None, dirty=False, sha256="c" * 64)

# What stands for `mstl train`: waits until the files it is told of are there, then does as it is told.
PROGRAM = """
import json, os, pathlib, signal, sys, time
name, out, wait, end = sys.argv[1], pathlib.Path(sys.argv[2]), sys.argv[3].split(":"), sys.argv[4]
place = out.parents[3]

def stop(number, frame):
    (place / f"stopped-{name}-{len(list(place.glob('stopped-*')))}").write_text(str(number))
    if end != "stubborn":
        sys.exit(143)

signal.signal(signal.SIGTERM, stop)
(place / f"begun-{name}").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
with open(place / "order", "a") as file:
    file.write(name + "\\n")
deadline = time.monotonic() + 300
while not all((place / one).exists() for one in wait if one) and time.monotonic() < deadline:
    time.sleep(0.02)
if end == "fail":
    print("Error: thing: it is broken. Mend it")
    sys.exit(1)
if end == "crash":
    print("Traceback: something")
    sys.exit(3)
out.mkdir(parents=True, exist_ok=True)
(out / "weights.safetensors").write_bytes(b"w")
(out / "run.json").write_text('{"status": "finished"}')
if name.startswith("judge"):
    (out / "evaluation" / "test").mkdir(parents=True)
    (out / "evaluation" / "test" / "metrics.json").write_text("{}")
"""


class Told:
    """A watcher that remembers."""

    def __init__(self, state: StudyState) -> None:
        self.state, self.changes, self.notes = state, [], []  # type: tuple[StudyState, list[tuple[str, str]], list[str]]

    def changed(self, name: str) -> None:
        self.changes.append((name.partition("/")[0], self.state.states[name].state))

    def look(self, running: Any) -> None:
        pass

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets") / "ct"
    make_shards(folder)
    return folder


@pytest.fixture
def prepare(tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., StudyPlan]:
    """Writes a study of nodes {name: parent}; `waits` and `ends` tell its programs what to do."""

    def make(
        nodes: dict[str, str],
        waits: dict[str, str] | None = None,
        ends: dict[str, str] | None = None,
        evaluate: bool = False,
    ) -> StudyPlan:
        text = ('evaluate = ["test"]\n' if evaluate else "") + HEAD.format(ct=shards)
        for name, parent in nodes.items():
            text += NODE.format(name=name, more=f'from = "{parent}"' if parent else "")
        (tmp_path / "s.toml").write_text(text)

        def words(plan: StudyPlan, planned: Planned, step: str, ranks: int) -> list[str]:
            name = planned.node.spec.name if step == "train" else f"judge-{planned.node.spec.name}"
            do = [(waits or {}).get(name, ""), (ends or {}).get(name, "well")]
            return [sys.executable, "-c", PROGRAM, name, str(plan.out / planned.path), *do]

        monkeypatch.setattr(runner, "words_of", words)
        monkeypatch.setattr(runner, "POLL_SECONDS", 0.02)
        monkeypatch.setattr(preflight, "code_identity", lambda: CODE)
        monkeypatch.setattr(runner, "code_sha256", lambda: CODE.sha256)
        return plan_study(read_study(tmp_path / "s.toml"), tmp_path / "out")

    return make


def go(plan: StudyPlan, slots: int = 1, only: tuple[str, ...] = ()) -> tuple[int, StudyState, Told]:
    state = StudyState.open(plan)
    told = Told(state)
    rooms = [
        Slot(name=str(number), ranks=1, environment={"CUDA_VISIBLE_DEVICES": str(number)}) for number in range(slots)
    ]
    return run_study(plan, state, rooms, plan.graph.chosen(only), told), state, told


def states(state: StudyState) -> dict[str, str]:
    return {name.partition("/")[0]: status.state for name, status in state.states.items()}


def order(plan: StudyPlan) -> list[str]:
    return (plan.out / "order").read_text().split() if (plan.out / "order").is_file() else []


def test_parents_run_first_and_what_is_finished_is_skipped(prepare: Callable[..., StudyPlan]) -> None:
    plan = prepare({"c": "b", "b": "a", "a": ""})
    code, state, told = go(plan, slots=3)
    assert (code, states(state)) == (0, dict.fromkeys("abc", "finished"))
    assert order(plan) == ["a", "b", "c"]
    assert told.changes == [(name, how) for name in "abc" for how in ("running", "finished")]
    assert all(status.seconds is not None for status in state.states.values())
    assert json.loads((plan.out / "study.json").read_text())["nodes"][0]["state"] == "finished"
    again, state, told = go(plan)
    assert (again, told.changes) == (0, [])
    assert order(plan) == ["a", "b", "c"]


def test_a_failure_blocks_what_stands_on_it_and_nothing_else_and_is_tried_again(
    prepare: Callable[..., StudyPlan],
) -> None:
    nodes = {"a": "", "b": "a", "c": "b", "d": "", "e": "d"}
    plan = prepare(nodes, ends={"a": "fail", "d": "crash"})
    code, state, _ = go(plan)
    assert code == 1
    assert states(state) == {"a": "failed", "b": "blocked", "c": "blocked", "d": "failed", "e": "blocked"}
    first, second = (state.states[f"{name}/resnet14-attn0/s0"].error for name in "ad")
    assert first is not None
    assert second is not None
    assert (first.what, first.why) == ("training of a/resnet14-attn0/s0", "thing: it is broken. Mend it")
    assert (plan.out / first.log).read_text().endswith("\nError: thing: it is broken. Mend it\n")
    assert second.why == "it ended with exit code 3; its last words: Traceback: something"
    plan = prepare(nodes, ends={"d": "crash"})
    code, state, _ = go(plan, only=("c",))  # with all that it needs, and nothing else
    assert code == 0
    assert states(state) == {"a": "finished", "b": "finished", "c": "finished", "d": "waiting", "e": "waiting"}
    assert order(plan) == ["a", "d", "a", "b", "c"]


def test_what_is_trained_and_not_evaluated_is_only_evaluated(prepare: Callable[..., StudyPlan]) -> None:
    plan = prepare({"a": "", "b": "a"}, ends={"judge-a": "fail"}, evaluate=True)
    code, state, _ = go(plan)
    error = state.states["a/resnet14-attn0/s0"].error
    assert (code, states(state)) == (1, {"a": "failed", "b": "blocked"})
    assert error is not None
    assert error.what == "evaluation of a/resnet14-attn0/s0"
    assert go(prepare({"a": "", "b": "a"}, evaluate=True))[0] == 0
    assert order(plan) == ["a", "judge-a", "judge-a", "b", "judge-b"]


def test_as_many_nodes_run_at_once_as_there_are_slots_each_on_its_own_device(prepare: Callable[..., StudyPlan]) -> None:
    # Each ends only when the other has begun: one after the other they would wait for ever.
    plan = prepare({"a": "", "b": "", "c": ""}, waits={"a": "begun-b", "b": "begun-a"})
    code, _, told = go(plan, slots=2)
    assert code == 0
    assert {(plan.out / f"begun-{name}").read_text() for name in "ab"} == {"0", "1"}
    assert [name for name, how in told.changes[:2] if how == "running"] == ["a", "b"]
    assert told.changes.index(("c", "running")) > 2


def after(condition: Callable[[], bool], action: Callable[[], object]) -> threading.Thread:
    """Do something in a thread as soon as something holds."""

    def wait() -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.02)
        action()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_a_signal_lets_running_nodes_save_and_starts_no_more(prepare: Callable[..., StudyPlan]) -> None:
    plan = prepare({"a": "", "b": "a"}, waits={"a": "never"})
    thread = after((plan.out / "begun-a").exists, lambda: os.kill(os.getpid(), signal.SIGTERM))
    code, state, _ = go(plan)
    thread.join()
    assert code == 143
    assert states(state) == {"a": "waiting", "b": "waiting"}
    assert [file.read_text() for file in plan.out.glob("stopped-*")] == [str(int(signal.SIGTERM))]
    assert state.states["a/resnet14-attn0/s0"].seconds is not None
    plan = prepare({"a": "", "b": "a"})
    assert go(plan)[0] == 0  # the same command continues
    assert order(plan) == ["a", "a", "b"]


def test_the_second_signal_is_passed_on_and_the_third_kills(prepare: Callable[..., StudyPlan]) -> None:
    plan = prepare({"a": ""}, waits={"a": "never"}, ends={"a": "stubborn"})
    pid = os.getpid()

    def stopped(times: int) -> Callable[[], bool]:
        return lambda: len(list(plan.out.glob("stopped-*"))) >= times

    threads = [after((plan.out / "begun-a").exists, lambda: os.kill(pid, signal.SIGINT))]
    threads += [after(stopped(times), lambda: os.kill(pid, signal.SIGINT)) for times in (1, 2)]
    code, state, told = go(plan)
    for thread in threads:
        thread.join()
    assert (code, states(state)) == (130, {"a": "waiting"})
    assert len(told.notes) == 3


def test_a_killed_study_takes_its_processes_with_it(tmp_path: Path) -> None:
    script = (
        "import subprocess, sys, types, pathlib, time\n"
        "from mstl.study.processes import start_process\n"
        "place = pathlib.Path(sys.argv[1])\n"
        "plan = types.SimpleNamespace(out=place)\n"
        "planned = types.SimpleNamespace(path='runs/a/x/s0')\n"
        f"words = [sys.executable, '-c', {PROGRAM!r}, 'a', str(place / planned.path), 'never', '']\n"
        "start_process(plan, planned, words, {})\n"
        "time.sleep(600)\n"
    )
    study = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)])
    try:
        wait_for((tmp_path / "begun-a").exists)
        study.kill()
        wait_for(lambda: any(tmp_path.glob("stopped-a-*")))
    finally:
        study.kill()
        study.wait()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_training_that_outlives_its_study_is_waited_for(prepare: Callable[..., StudyPlan]) -> None:
    plan = prepare({"a": ""})
    run = plan.out / next(iter(plan.nodes.values())).path
    run.parent.mkdir(parents=True)
    lock = run.parent / f".{run.name}.lock"
    holder = subprocess.Popen(
        [sys.executable, "-c", "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); "
         "print('held', flush=True); sys.stdin.read()", str(lock)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert holder.stdout is not None
    assert holder.stdin is not None
    holder.stdout.readline()
    state = StudyState.open(plan)
    told = Told(state)
    thread = after(lambda: bool(told.notes), holder.stdin.close)
    assert run_study(plan, state, [Slot(name="0", ranks=1)], set(plan.nodes), told) == 0
    thread.join()
    holder.wait()
    holder.stdout.close()
    assert "another process trains into its folder" in told.notes[0]
    assert order(plan) == ["a"]


def test_two_studies_do_not_work_in_one_folder(prepare: Callable[..., StudyPlan]) -> None:
    plan = prepare({"a": ""})
    plan.out.mkdir()
    lock = lock_file(plan.out / ".study.lock")
    assert lock is not None
    with pytest.raises(MstlError, match="another mstl run works there"):
        go(plan)
    os.close(lock)
    assert go(plan)[0] == 0


def test_code_that_changes_under_way_starts_nothing_more(
    prepare: Callable[..., StudyPlan], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = prepare({"a": "", "b": "a"})
    changed = lambda: "0" * 64 if (plan.out / "begun-a").exists() else plan.code.sha256  # noqa: E731
    monkeypatch.setattr(runner, "code_sha256", changed)
    with pytest.raises(MstlError, match="code was changed while it ran"):
        go(plan)
    assert order(plan) == ["a"]
    assert read_status(plan.out, plan.nodes["a/resnet14-attn0/s0"]).state == "finished"
    assert go(replace(plan, any_code=True))[0] == 0
    assert order(plan) == ["a", "b"]


def test_a_failure_is_looked_for_behind_what_was_in_the_log_before(prepare: Callable[..., StudyPlan]) -> None:
    plan = prepare({"a": ""})
    planned = next(iter(plan.nodes.values()))
    log = plan.out / f"{planned.path}.log"
    log.parent.mkdir(parents=True)
    log.write_text("Error: an older one\n")
    behind = log.stat().st_size
    with log.open("a") as file:
        file.write("$ command\nlast words\n")
    assert failure_of(plan, planned, "train", -9, 0).why == "an older one"
    found = failure_of(plan, planned, "judge", -9, behind)
    assert (found.what, found.why) == (
        "evaluation of a/resnet14-attn0/s0",
        "it was ended by signal 9; its last words: last words",
    )


def test_the_commands_are_those_of_the_program(tmp_path: Path, shards: Path) -> None:
    text = HEAD.format(ct=shards) + NODE.format(name="a", more='evaluate = ["test"]\nexplain = 2')
    text += NODE.format(name="b", more='from = "a"\nset."checkpoint.every_minutes" = "none"')
    text += '[[node]]\nname = "l"\nkind = "leep"\ndata = "ct"\nfrom = "a"\nsplit = "val"\n'
    (tmp_path / "s.toml").write_text(text)
    plan = plan_study(read_study(tmp_path / "s.toml"), tmp_path / "out")
    a, b, leep = plan.nodes.values()
    words = words_of(plan, b, "train", 2)[3:]
    assert words[:2] == ["mstl", "train"]
    pairs = list(zip(words[2::2], words[3::2], strict=True))
    assert ("--init-from", str(plan.out / a.path)) in pairs
    assert ("--out", str(plan.out / b.path)) in pairs
    assert [value for name, value in pairs if name == "--set"] == [
        "data.image_size=32", "data.batch_size=4", 'checkpoint.every_minutes="none"',
    ]  # fmt: skip
    assert dict(pairs)["--ranks"] == "2"
    assert "--ssl" not in words
    # mstl train understands them
    from mstl.cli.train import command as train

    with train.make_context("train", words[2:]) as context:
        assert context.params["overrides"][-1] == 'checkpoint.every_minutes="none"'
    first = dict(zip(*[iter(words_of(plan, a, "train", 1)[5:])] * 2, strict=True))
    assert first["--init-from"] == "none"
    assert words_of(plan, a, "judge", 1)[3:] == ["mstl.study.judge", "evaluate", str(plan.out / a.path), "test", "2"]
    assert words_of(plan, leep, "leep", 1)[3:] == [
        "mstl.study.judge", "leep", str(plan.out / a.path), "resnet14-attn0", "0", "32", str(shards), "val",
        str(plan.out / leep.path),
    ]  # fmt: skip


def test_progress_is_the_last_whole_training_line(tmp_path: Path) -> None:
    assert read_progress(tmp_path) is None
    lines = [{"step": step, "epoch": step // 10, "loss": step / 2, "filler": "x" * 100} for step in range(1, 400)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text + '{"step": 399, "split": "val", "loss": 1}\n{"step": 400, "ep')
    assert read_progress(tmp_path) == Progress(step=399, epoch=39, loss=199.5)


def test_slots_are_gpus_one_by_one_or_together_or_shares_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, 5")
    one = make_slots("one", None)
    assert [(slot.ranks, dict(slot.environment)) for slot in one] == [
        (1, {"CUDA_VISIBLE_DEVICES": "2"}),
        (1, {"CUDA_VISIBLE_DEVICES": "5"}),
    ]
    (both,) = make_slots("all", None)
    assert (both.ranks, dict(both.environment)) == (2, {"CUDA_VISIBLE_DEVICES": "2,5"})
    with pytest.raises(MstlError, match="there are 2 GPUs"):
        make_slots("one", 3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(devices.os, "sched_getaffinity", lambda _: set(range(8)))
    assert [slot.environment["OMP_NUM_THREADS"] for slot in make_slots("one", 3)] == ["2", "2", "2"]
    (alone,) = make_slots("all", None)
    assert (alone.ranks, alone.environment["OMP_NUM_THREADS"]) == (1, "8")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")  # the user's own
    assert dict(make_slots("one", 2)[0].environment) == {}


def test_the_screen_says_what_begins_ends_and_fails(prepare: Callable[..., StudyPlan], tmp_path: Path) -> None:
    plan = prepare({"a": "", "b": "a", "c": ""}, ends={"a": "fail"})
    state = StudyState.open(plan)
    with (tmp_path / "said").open("wb") as file:
        screen = StudyScreen(plan, state, set(plan.nodes), slots=1, every_seconds=1e6, stream=Stream(file.fileno()))
        run_study(plan, state, [Slot(name="0", ranks=1)], set(plan.nodes), screen)
        screen.close()
    said = (tmp_path / "said").read_text().splitlines()
    steps = "600"  # 10 images by 4, 200 epochs
    assert said[0] == f"[0/3] a/resnet14-attn0/s0: begins, {steps} steps"
    assert "[1/3] a/resnet14-attn0/s0: failed: thing: it is broken. Mend it" in said
    assert "[2/3] b/resnet14-attn0/s0: blocked, it stands on one that failed" in said
    assert said[-1].startswith("[3/3] c/resnet14-attn0/s0: finished in 0:00:")


def test_lines_on_running_nodes_tell_their_progress_and_the_time_left(
    prepare: Callable[..., StudyPlan], tmp_path: Path
) -> None:
    plan = prepare({"a": "", "c": ""})
    state = StudyState.open(plan)
    now = [0.0]
    with (tmp_path / "said").open("wb") as file:
        screen = StudyScreen(
            plan, state, set(plan.nodes), slots=1, every_seconds=10, stream=Stream(file.fileno()), clock=lambda: now[0]
        )
        one = Running(
            planned=next(iter(plan.nodes.values())), slot=Slot(name="0", ranks=1), steps=["train"], behind=0,
            process=None, began=time.monotonic(), progress=Progress(step=30, epoch=9, loss=0.25),
        )  # type: ignore[arg-type]  # fmt: skip
        screen.look([one])
        now[0] = 11.0
        screen.look([one])
        screen.close()
    assert (tmp_path / "said").read_text().splitlines() == [
        "a/resnet14-attn0/s0: training, epoch 10, step 30 of 600, loss 0.25",
        "[0/2] time left unknown: nothing like it has run yet",
    ]


def test_the_command_shows_the_graph_and_ends_with_one_when_a_node_fails(
    prepare: Callable[..., StudyPlan], tmp_path: Path
) -> None:
    plan = prepare({"a": "", "b": "a", "c": ""}, ends={"a": "fail"})
    words = [str(tmp_path / "s.toml"), "--out", str(plan.out)]
    shown = CliRunner().invoke(command, [*words, "--dry-run"])
    assert shown.exit_code == 0, shown.output
    assert "b  finetune on ct, resnet14-attn0 x seed 0, 600 steps  1 waiting  time unknown" in shown.output
    assert "3 nodes: 3 waiting" in shown.output
    assert "unknown" in shown.output.splitlines()[-1]
    assert not plan.out.exists()
    with pytest.raises(MstlError, match="no node fits it"):
        CliRunner().invoke(command, [*words, "--only", "x"], catch_exceptions=False)
    done = CliRunner().invoke(command, words)
    assert done.exit_code == 1
    log = next(plan.out.glob("runs/a/resnet14-attn0/*.log"))
    assert f"Error: training of a/resnet14-attn0/s0: thing: it is broken. Mend it. Log: {log}" in done.output
    assert "s: 1 finished, 1 failed, 1 blocked" in done.output
    again = CliRunner().invoke(command, [*words, "--dry-run"])
    assert "1 failed before" in again.output
    assert CliRunner().invoke(command, [*words, "--only", "c"]).exit_code == 0
