"""Real trainings in processes of their own: the chain, two ranks, kill and resume, bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from mstl.checkpoint import newest_checkpoint
from mstl.models.registry import build_backbone
from mstl.runs import open_run, read_metrics
from mstl.weights import load_weights

SMALL = ("data.image_size=32", "data.batch_size=8", "data.workers=1", "optim.lr=0.01")
TIMED = ("images_per_second", "data_wait")
MODEL = "resnet14-attn1"


def words(stage: str, sets: Path, out: Path, *more: str, fields: Sequence[str] = ()) -> list[str]:
    source = {"stl_n": "imagenet", "stl_m": "covidx"}.get(stage, "covid19-ct")
    settings = [word for field in (*SMALL, *fields) for word in ("--set", field)]
    return ["--stage", stage, "--model", MODEL, "--shards", str(sets / source), "--out", str(out), *settings, *more]


def start(arguments: Sequence[str], ranks: int | None = None) -> subprocess.Popen[str]:
    """Plain python for one rank (`ranks` None), else `mstl train`; a process group of its own."""
    script = find_spec("launch.train")
    assert script is not None
    command = [sys.executable, str(script.origin)]
    if ranks is not None:
        command = [sys.executable, "-m", "mstl", "train", "--ranks", str(ranks)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        [*command, *arguments],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def run(arguments: Sequence[str], ranks: int | None = None, code: int = 0) -> str:
    process = start(arguments, ranks)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == code, output
    return output


def untimed(out: Path) -> list[dict[str, Any]]:
    return [{name: value for name, value in line.items() if name not in TIMED} for line in read_metrics(out)]


def same_weights(left: Path, right: Path) -> bool:
    a, b = load_weights(left / "weights.safetensors"), load_weights(right / "weights.safetensors")
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def kill_at(arguments: Sequence[str], out: Path, step: int, number: int, ranks: int | None = None) -> int:
    """Start, wait until the log holds a step, send a signal (SIGKILL: to all processes); returns the exit code."""
    process = start(arguments, ranks)
    deadline = time.monotonic() + 200
    while len(read_metrics(out)) < step:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "no progress"
        time.sleep(0.005)
    if number == signal.SIGKILL:
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
    process.send_signal(number)
    process.communicate(timeout=120)
    return process.returncode


def test_the_chain_hands_weights_from_stage_to_stage(sample_sets: Path, tmp_path: Path) -> None:
    one_epoch = ("optim.epochs=1",)
    for stage in ("stl_n", "stl_m", "sstl_m", "finetune"):
        run(words(stage, sample_sets, tmp_path / stage, fields=one_epoch))
    names = set(build_backbone(MODEL).state_dict())
    head = ["fc.bias", "fc.weight"]
    expected = {"stl_n": None, "stl_m": head, "sstl_m": head, "finetune": []}
    for stage, dropped in expected.items():
        record = open_run(tmp_path / stage)
        assert record.status == "finished"
        account = record.body["carry"]
        if dropped is None:
            assert account is None
        else:
            assert (account["carried"], account["new"], account["dropped"]) == (len(names), [], dropped)
            assert sum(account["reasons"].values()) == len(dropped) and account["notes"] == []
        held = set(load_weights(record.weights))
        assert held == (names if stage == "sstl_m" else names | set(head))
        steps = [line for line in read_metrics(tmp_path / stage) if "loss" in line and "split" not in line]
        assert [line["step"] for line in steps] == list(range(1, len(steps) + 1))
        assert {"step", "epoch", "stage", "loss", "lr", "images_per_second", "data_wait"} <= steps[0].keys()
        assert any(line.get("split") == "val" for line in read_metrics(tmp_path / stage))
    assert {"contrastive", "region"} <= read_metrics(tmp_path / "sstl_m")[0].keys()
    parent = open_run(tmp_path / "finetune").body["parent"]
    assert parent["path"] == str((tmp_path / "sstl_m").resolve())
    # Of what judges patients' images there is a model card, with the stages behind it.
    assert [stage for stage in expected if (tmp_path / stage / "model_card.md").is_file()] == ["finetune"]
    card = (tmp_path / "finetune/model_card.md").read_text()
    assert all(f"| {stage} | resnet" in card for stage in expected) and "Never evaluated" in card
    assert "already finished" in run(words("finetune", sample_sets, tmp_path / "finetune", fields=one_epoch))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killed_and_resumed_is_bitwise_the_undisturbed_run(
    sample_sets: Path, tmp_path: Path, number: signal.Signals
) -> None:
    fields = ("optim.epochs=3", "checkpoint.every_steps=1", "model.dropout=0.3")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run(words("finetune", sample_sets, whole, "--init-from", "none", fields=fields))
    arguments = words("finetune", sample_sets, broken, "--init-from", "none", fields=fields)
    code = kill_at(arguments, broken, 4, number)
    assert code == (-9 if number == signal.SIGKILL else 143)
    assert open_run(broken).status == ("running" if number == signal.SIGKILL else "interrupted")
    assert "continues behind step" in run([*arguments, "--resume", "must"])
    assert untimed(broken) == untimed(whole)
    assert same_weights(whole, broken)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["stl_n", "stl_m", "sstl_m", "finetune"])
def test_two_ranks_killed_and_resumed_under_the_launcher(sample_sets: Path, tmp_path: Path, stage: str) -> None:
    fields = ("optim.epochs=3", "checkpoint.every_steps=1")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run(words(stage, sample_sets, whole, "--init-from", "none", fields=fields), ranks=2)
    arguments = words(stage, sample_sets, broken, "--init-from", "none", fields=fields)
    kill_at(arguments, broken, 4, signal.SIGKILL, ranks=2)
    assert "continues behind step" in run([*arguments, "--resume", "must"], ranks=2)
    assert untimed(broken) == untimed(whole)
    assert same_weights(whole, broken)
    assert open_run(broken).body["world_size"] == 2


def test_a_signal_to_the_command_lets_both_ranks_save_first(sample_sets: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start(words("sstl_m", sample_sets, out, "--init-from", "none", fields=("optim.epochs=500",)), ranks=2)
    deadline = time.monotonic() + 200
    while len(read_metrics(out)) < 3:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "no progress"
        time.sleep(0.01)
    ranks = training_processes(out)
    assert len(ranks) == 2
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143, output
    assert open_run(out).status == "interrupted"
    assert newest_checkpoint(out / "checkpoints")[0] is not None
    assert training_processes(out) == [], "a rank lives on"


def test_ranks_save_and_leave_when_the_command_is_killed_outright(sample_sets: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start(words("finetune", sample_sets, out, "--init-from", "none", fields=("optim.epochs=500",)), ranks=1)
    while len(read_metrics(out)) < 3:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 60
    while training_processes(out):
        assert time.monotonic() < deadline, "a rank lives on"
        time.sleep(0.1)
    assert open_run(out).status == "interrupted"
    assert newest_checkpoint(out / "checkpoints")[0] is not None


def training_processes(out: Path) -> list[int]:
    """Ranks that train into a folder."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        if str(out) in line and any(word.endswith("launch/train.py") for word in line) and "deepspeed" not in str(line):
            found.append(process.pid)
    return found


def test_a_second_job_for_the_same_folder_is_refused(sample_sets: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = words("finetune", sample_sets, out, "--init-from", "none", fields=("optim.epochs=500",))
    first = start(arguments)
    try:
        while not read_metrics(out):
            assert first.poll() is None
            time.sleep(0.02)
        assert "another process trains into it" in run(arguments, code=1)
        assert first.poll() is None
    finally:
        first.kill()
        first.communicate()


def test_two_ranks_under_the_launcher(sample_sets: Path, tmp_path: Path) -> None:
    output = run(
        words("sstl_m", sample_sets, tmp_path / "run", "--init-from", "none", fields=("optim.epochs=1",)), ranks=2
    )
    record = open_run(tmp_path / "run")
    assert (record.status, record.body["world_size"]) == ("finished", 2), output


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--shards", "missing"), "Make it with: mstl shard --src imagenet"),
        (("--model", "resnet9"), "Choose from resnet14"),
        (("--set", "data.batch_size=1000"), "smaller batch"),
        (("--set", "data.batch_size=1"), "normalisation needs two"),
        (("--set", "optim.speed=1"), "Fields, the nearest first: optim."),
        (("--init-from", "missing"), "Name a run folder or a weights file"),
        (("--resume", "must"), "Use --resume auto"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    sample_sets: Path, tmp_path: Path, more: tuple[str, ...], says: str
) -> None:
    out = tmp_path / "run"
    output = run(words("stl_n", sample_sets, out, *more, fields=("optim.epochs=1",)), code=1)
    errors = [line for line in output.splitlines() if line.startswith("Error")]
    assert len(errors) == 1, output
    assert says in errors[0]
    assert "Traceback" not in output
    assert not out.exists()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--model", "resnet9"), "Choose from resnet14"),
        (("--set", "data.batch_size=9"), "cannot be shared equally by 2 ranks"),
    ],
)
def test_bad_input_of_many_ranks_is_one_line_from_the_command(
    sample_sets: Path, tmp_path: Path, more: tuple[str, ...], says: str
) -> None:
    output = run(words("stl_n", sample_sets, tmp_path / "run", *more), ranks=2, code=1)
    [line] = output.splitlines()
    assert line.startswith("Error: ") and says in line


def test_a_checkpoint_of_another_network_is_refused(sample_sets: Path, tmp_path: Path) -> None:
    run(words("stl_n", sample_sets, tmp_path / "small", fields=("optim.epochs=1",)))
    arguments = words(
        "stl_m", sample_sets, tmp_path / "big", "--init-from", str(tmp_path / "small"), fields=("optim.epochs=1",)
    )
    arguments[arguments.index(MODEL)] = "resnet26"
    output = run(arguments, code=1)
    assert "weights do not fit the network" in output
    assert json.loads((tmp_path / "small" / "run.json").read_text())["status"] == "finished"
    assert not (tmp_path / "big").exists()
