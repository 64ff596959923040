"""Two ranks under the launcher, and something that goes wrong: the job ends with its cause, and nothing is lost."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from mstl.checkpoint import newest_checkpoint
from mstl.runs import open_run, read_metrics
from shards.files import lock_file

HERE = Path(__file__).parent
REPO = HERE.parents[1]
SMALL = ("data.image_size=32", "data.batch_size=8", "data.workers=1", "optim.lr=0.01", "optim.epochs=4",
         "checkpoint.every_steps=1")  # fmt: skip
STEPS = 12  # 20 images in batches of 8, the last one smaller, in 4 epochs
TIMED = ("images_per_second", "data_wait")
PATIENCE_SECONDS = 1800  # for a machine that does other things; none of these waits for it

pytestmark = pytest.mark.long


def words(sets: Path, out: Path, *more: str) -> list[str]:
    settings = [word for field in SMALL for word in ("--set", field)]
    return ["--stage", "finetune", "--model", "resnet14-attn1", "--shards", str(sets / "covid19-ct"),
            "--out", str(out), "--init-from", "none", *settings, *more]  # fmt: skip


def environment(fault: dict[str, Any]) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "",
            "PYTHONPATH": str(REPO), "MSTL_FAULT": json.dumps(fault)}  # fmt: skip


def train(arguments: Sequence[str], fault: dict[str, Any]) -> tuple[int, str]:
    """`mstl train` on two ranks; returns its exit code and what was said."""
    done = subprocess.run(
        [sys.executable, str(HERE / "faulty_command.py"), "train", "--ranks", "2", *arguments],
        env=environment(fault), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        timeout=PATIENCE_SECONDS, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout


def fault(step: int, to: str, number: int = 0, rank: int = 1, once: Path | None = None) -> dict[str, Any]:
    return {"rank": rank, "step": step, "to": to, "signal": number, "once": None if once is None else str(once)}


def processes(out: Path) -> list[psutil.Process]:
    """All that still has to do with a run."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        if str(out) in (process.info["cmdline"] or []) and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def errors(output: str) -> list[str]:
    return [line for line in output.splitlines() if line.startswith("Error")]


def saved(out: Path) -> int:
    newest, damaged = newest_checkpoint(out / "checkpoints")
    assert newest is not None and not damaged
    return newest.step


def ended_well(out: Path) -> None:
    """No process is left, and the folder is free for the next start."""
    assert processes(out) == []
    handle = lock_file(out.parent / f".{out.name}.lock")
    assert handle is not None
    os.close(handle)


@pytest.fixture(scope="module")
def whole(sample_sets: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The log of an undisturbed run."""
    out = tmp_path_factory.mktemp("whole") / "run"
    code, output = train(words(sample_sets, out), fault(0, "self"))
    assert code == 0, output
    ended_well(out)
    return untimed(out)


def untimed(out: Path) -> list[dict[str, Any]]:
    return [{name: value for name, value in line.items() if name not in TIMED} for line in read_metrics(out)]


def test_a_killed_rank_ends_the_job_and_restarts_make_good_for_it(
    sample_sets: Path, tmp_path: Path, whole: list[dict[str, Any]]
) -> None:
    out = tmp_path / "run"
    code, output = train(words(sample_sets, out), fault(5, "self", signal.SIGKILL))
    assert code not in (0, 1), output
    assert "the training processes ended early: a rank was ended by SIGKILL" in output
    assert "Traceback" not in output
    assert 3 <= saved(out) <= 4
    ended_well(out)
    # Continued by the same command, which meets the same fate once and starts again by itself.
    more = ("--max-restarts", "2")
    code, output = train(words(sample_sets, out, *more), fault(3, "self", signal.SIGKILL, once=tmp_path / "once"))
    assert code == 0, output
    assert "a rank was ended by SIGKILL: starts again in 1 s (1 of 2)" in output
    assert "(2 of 2)" not in output
    record = open_run(out)
    assert record.status == "finished"
    [restart] = record.body["restarts"]
    assert restart["cause"] == "a rank was ended by SIGKILL"
    assert 4 <= restart["step"] <= 6
    assert untimed(out) == whole
    ended_well(out)


def test_restarts_are_counted_and_not_made_where_they_cannot_help(sample_sets: Path, tmp_path: Path) -> None:
    always = tmp_path / "always"
    code, output = train(words(sample_sets, always, "--max-restarts", "1"), fault(1, "self", signal.SIGKILL))
    assert code not in (0, 1), output
    assert output.count("starts again") == 1
    never = tmp_path / "never"
    code, output = train(words(sample_sets, never, "--max-restarts", "3"), fault(4, "batch"))
    assert code == 1, output
    assert "starts again" not in output
    [line] = errors(output)
    assert "finetune, step 4: the gradient is not finite (rank 1: loss nan, sample ids [" in line
    assert "was not applied" in line
    assert saved(never) == 3
    assert open_run(never).status == "failed"
    ended_well(never)


@pytest.mark.parametrize(
    ("to", "number", "expected"),
    [
        ("self", signal.SIGTERM, 143),
        ("launcher", signal.SIGTERM, 143),
        ("runner", signal.SIGTERM, 143),
        ("launcher", signal.SIGKILL, None),
        ("runner", signal.SIGKILL, -signal.SIGKILL),  # which is `mstl train` itself
    ],
)
def test_whoever_is_signalled_the_ranks_save_and_leave(
    sample_sets: Path, tmp_path: Path, to: str, number: signal.Signals, expected: int | None
) -> None:
    out = tmp_path / "run"
    code, output = train(words(sample_sets, out), fault(4, to, number))
    if expected is None:
        assert code not in (0, 1), output
        assert "the training processes ended early: the launcher was killed" in output
    else:
        assert code == expected, output
    assert 4 <= saved(out) < STEPS
    assert saved(out) == read_metrics(out)[-1]["step"]
    assert open_run(out).status == "interrupted"
    ended_well(out)


def test_ranks_of_the_deepspeed_command_leave_when_it_is_killed(sample_sets: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "deepspeed.launcher.runner", "--no_local_rank", "--hostfile", os.devnull,
               "--master_port", "29871", "--num_gpus", "2", str(HERE / "faulty_train.py")]  # fmt: skip
    done = subprocess.run(
        [*command, *words(sample_sets, out)], env=environment(fault(4, "runner", signal.SIGKILL)),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=PATIENCE_SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL
    psutil.wait_procs(processes(out), timeout=PATIENCE_SECONDS)
    assert open_run(out).status == "interrupted"
    assert saved(out) == read_metrics(out)[-1]["step"]
    ended_well(out)


def test_a_rank_that_hangs_ends_the_job(sample_sets: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    code, output = train(words(sample_sets, out, "--hang-timeout", "30"), fault(4, "self", signal.SIGSTOP))
    assert code == 4, output
    told = [line for line in errors(output) if "no step has finished for" in line]
    assert len(told) == 1 and "behind step 3" in told[0] and "rank 1 does not answer" in told[0], output
    assert "in update" in (out / "hang" / "rank-0.txt").read_text()
    assert 2 <= saved(out) <= 3
    assert open_run(out).status == "failed"
    ended_well(out)


def test_a_full_disk_is_named_and_the_older_checkpoint_stays(sample_sets: Path, tmp_path: Path) -> None:
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine does not let a process mount file systems in a namespace of its own")
    disk = tmp_path / "disk"
    disk.mkdir()
    command = " ".join([sys.executable, str(HERE / "faulty_command.py"), "train", "--ranks", "2",
                        *words(sample_sets, disk / "run")])  # fmt: skip
    # Room for two checkpoints of this network, not for the third that is written before the first is dropped.
    script = (
        f"mount -t tmpfs -o size=200m tmpfs {disk}; {command} 2>&1; echo rc=$?; ls {disk}/run/checkpoints; "
        f"mount -o remount,size=2g {disk}; {command} 2>&1; echo rc=$?"
    )
    done = subprocess.run(
        ["unshare", "-rm", "bash", "-c", script], env=environment(fault(0, "self")),
        capture_output=True, text=True, timeout=2 * PATIENCE_SECONDS, check=False,
    )  # fmt: skip
    first, _, second = done.stdout.partition("rc=1")
    [line] = errors(first)
    told = re.search(r"could not write it \(No space left on device\); the newest older one is of step (\d+)", line)
    assert told is not None, done.stdout
    assert f"step-{told[1]}\n" in second
    assert f"continues behind step {told[1]}" in second and "rc=0" in second, done.stdout
