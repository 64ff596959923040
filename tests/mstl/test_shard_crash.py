"""`mstl shard` as a process that is killed, runs out of disk or may not write: nothing finished is lost."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

KILLS = 20
REPO = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
MSTL = [sys.executable, "-m", "mstl.cli.main", "shard", "--src", "folder"]


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Two classes of 300 small images."""
    root = tmp_path_factory.mktemp("raw")
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (root / name).mkdir()
        for i in range(300):
            Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(root / name / f"{name}{i}.png")
    return root


def arguments(raw, out):
    return [*MSTL, "--root", str(raw), "--out", str(out), "--samples-per-shard", "10", "--workers", "2"]


def content(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def whole(raw, tmp_path_factory):
    """The bytes of an undisturbed build."""
    out = tmp_path_factory.mktemp("whole") / "set"
    subprocess.run(arguments(raw, out), env=ENVIRONMENT, check=True, capture_output=True)
    return content(out)


def finished_shards(out):
    """How many shards a build into a folder has finished so far."""
    return len(list(Path(f"{out}.building/.records").glob("*.json")))


def test_killed_at_twenty_random_moments_it_ends_with_the_same_bytes(raw, whole, tmp_path):
    moments = random.Random(7)
    kills, finished, left = 0, 0, set()
    out = tmp_path / "set"
    while kills < KILLS:
        goal = finished_shards(out) + moments.randrange(8)  # no share of a time: machines are slow and fast by turns
        with subprocess.Popen(
            arguments(raw, out), env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        ) as process:  # fmt: skip
            while process.poll() is None and finished_shards(out) < goal:
                time.sleep(0.001)
            time.sleep(moments.uniform(0, 0.05))
            if kills % 2:
                process.kill()  # its workers find out by themselves
            else:
                os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
        if code == -signal.SIGKILL:
            kills += 1
            left.add(len(list((tmp_path / "set.building").rglob("*.tar"))))
        elif (out / "dataset.json").exists():  # it was faster than the kill
            assert code == 0 and content(out) == whole
            finished += 1
            shutil.rmtree(out)
        assert finished < 5 * KILLS
    again = subprocess.run(arguments(raw, out), env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert content(out) == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set"]
    assert len(left) > 2  # the kills met the build at different stages


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("shards", [0, 1, 40])
def test_stopped_by_a_signal_it_says_what_is_kept(raw, whole, tmp_path, number, code, shards):
    """As a terminal or Slurm does it: the signal goes to the workers too."""
    out = tmp_path / "set"
    with subprocess.Popen(
        arguments(raw, out), env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    ) as process:  # fmt: skip
        while process.poll() is None and not ((tmp_path / "set.building").exists() and finished_shards(out) >= shards):
            time.sleep(0.001)
        os.killpg(process.pid, number)
        _, told = process.communicate()
    if process.returncode or shards < 40:  # a fast machine may have written the last 20 meanwhile
        assert process.returncode == code
        assert "Stopped. Finished shards are kept: the same command" in told and "Traceback" not in told, told
    assert subprocess.run(arguments(raw, out), env=ENVIRONMENT, capture_output=True, check=False).returncode == 0
    assert content(out) == whole


def in_a_namespace(script):
    """Run a shell script where it may mount file systems of its own; skip where the kernel does not allow that."""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine does not let a process mount file systems in a namespace of its own")
    return subprocess.run(
        ["unshare", "-rm", "bash", "-c", script], env=ENVIRONMENT, capture_output=True, text=True, check=False
    )


def lines(path):
    return path.read_text().splitlines()


def test_a_full_disk_is_named_and_finished_shards_are_used_again(raw, whole, tmp_path):
    disk, kept = tmp_path / "disk", tmp_path / "kept"
    disk.mkdir()
    shard = " ".join(arguments(raw, disk / "set"))
    result = in_a_namespace(
        f"mount -t tmpfs -o size=2m tmpfs {disk}; {shard}; echo rc=$?; "
        f"stat -c '%n %i' {disk}/set.building/train/*.tar > {tmp_path}/before; "
        f"ls {disk}/set.building/.records > {tmp_path}/records; "
        f"mount -o remount,size=64m {disk}; {shard}; echo rc=$?; "
        f"stat -c '%n %i' {disk}/set/train/*.tar > {tmp_path}/after; cp -r {disk}/set {kept}"
    )
    assert "rc=1" in result.stdout and "rc=0" in result.stdout, result.stderr
    [message] = [line for line in result.stderr.splitlines() if line.startswith("Error:")]
    assert "No space left on device" in message and "finished shards are kept" in message
    # A shard is finished when its record stands: the disk may fill up between the tar and that.
    finished = {line.removeprefix("train-").removesuffix(".json") for line in lines(tmp_path / "records")}
    before = {line for line in lines(tmp_path / "before") if Path(line.split()[0]).stem in finished}
    assert len(before) == len(finished) >= 3
    assert {line.replace("set.building", "set") for line in before} <= set(lines(tmp_path / "after"))
    assert content(kept) == whole


def test_a_disk_that_may_not_be_written_is_named(raw, tmp_path):
    result = in_a_namespace(
        f"mount -t tmpfs -o ro tmpfs {tmp_path}; {' '.join(arguments(raw, tmp_path / 'set'))}; echo rc=$?"
    )
    assert "rc=1" in result.stdout
    [message] = [line for line in result.stderr.splitlines() if line.startswith("Error:")]
    assert "Read-only file system" in message and "--out" in message
    assert "Traceback" not in result.stderr
