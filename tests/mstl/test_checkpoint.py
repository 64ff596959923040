"""Checkpoints: written behind the caller's back, sealed or not there, pruned, verified before they are loaded."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from mstl import saving
from mstl.checkpoint import newest_checkpoint
from mstl.failures import EveryRankError
from mstl.saving import Saver
from mstl.weights import load_weights
from shards.errors import MstlError

HERE = Path(__file__).parent


def state(step: int) -> dict[str, Any]:
    return {"loader": {"epoch": step, "dali": "text"}, "rng": torch.get_rng_state(), "best": float("-inf")}


def open_saver(run: Path, keep: int = 2) -> Saver:
    return Saver(run / "checkpoints", keep=keep, log=run / "metrics.jsonl")


def save(run: Path, step: int, keep: int = 2, best: float | None = None) -> None:
    saver = open_saver(run, keep)
    weights = None if best is None else {"w": torch.tensor([best])}
    saver.begin(step, state(step), {"weight": torch.full((3,), float(step))}, weights)
    saver.finish()


def steps(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def test_the_newest_is_found_and_read_and_old_ones_go(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        save(tmp_path, step, best=step / 10)
    assert steps(tmp_path) == ["step-10", "step-15"]
    newest, damaged = newest_checkpoint(tmp_path / "checkpoints")
    assert newest is not None and damaged == []
    assert (newest.step, newest.ranks) == (15, 1)
    assert torch.equal(newest.shared()["weight"], torch.full((3,), 15.0))
    own = newest.own(0)
    assert own["loader"] == {"epoch": 15, "dali": "text"}
    assert own["best"] == float("-inf")
    assert torch.equal(own["rng"], torch.get_rng_state())
    assert load_weights(tmp_path / "best.safetensors")["w"] == 1.5


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing", "unsealed"])
def test_a_damaged_one_is_passed_over(tmp_path: Path, damage: str) -> None:
    for step in (1, 2):
        save(tmp_path, step)
    root = tmp_path / "checkpoints"
    victim = root / "step-2" / ("complete.json" if damage == "unsealed" else "shared.pt")
    content = bytearray(victim.read_bytes())
    if damage in ("missing", "unsealed"):
        victim.unlink()
    elif damage == "truncated":
        victim.write_bytes(content[:-1])
    else:
        content[len(content) // 2] ^= 1
        victim.write_bytes(content)
    newest, damaged = newest_checkpoint(root)
    assert newest is not None and newest.step == 1
    assert damaged == [root / "step-2"]


def test_pruning_never_takes_the_one_just_written_for_a_damaged_newer_one(tmp_path: Path) -> None:
    for step in (10, 20):
        save(tmp_path, step)
    (tmp_path / "checkpoints/step-20/shared.pt").unlink()
    save(tmp_path, 15, keep=1)
    assert steps(tmp_path) == ["step-15"]
    newest, damaged = newest_checkpoint(tmp_path / "checkpoints")
    assert newest is not None and newest.step == 15 and damaged == []


def test_one_that_was_damaged_is_written_again(tmp_path: Path) -> None:
    save(tmp_path, 10)
    (tmp_path / "checkpoints/step-10/shared.pt").unlink()
    save(tmp_path, 10)
    newest, damaged = newest_checkpoint(tmp_path / "checkpoints")
    assert newest is not None and newest.step == 10 and damaged == []
    assert steps(tmp_path) == ["step-10"]


def test_when_all_are_damaged_nobody_starts_over_silently(tmp_path: Path) -> None:
    for step in (1, 20):
        save(tmp_path, step)
        (tmp_path / f"checkpoints/step-{step}/complete.json").write_text("[]")
    with pytest.raises(EveryRankError, match=r"none is whole \(files of step-20, step-1 are missing or changed\)"):
        newest_checkpoint(tmp_path / "checkpoints")


def test_all_damaged_ones_on_the_way_to_a_whole_one_are_named(tmp_path: Path) -> None:
    root = tmp_path / "checkpoints"
    for step in (1, 2, 3):
        save(tmp_path, step, keep=3)
    for step in (2, 3):
        (root / f"step-{step}/shared.pt").unlink()
    newest, damaged = newest_checkpoint(root)
    assert newest is not None and newest.step == 1
    assert damaged == [root / "step-3", root / "step-2"]


def test_one_of_another_version_is_refused(tmp_path: Path) -> None:
    save(tmp_path, 1)
    seal = tmp_path / "checkpoints/step-1/complete.json"
    body = json.loads(seal.read_text())
    del body["version"]
    seal.write_text(json.dumps(body))
    with pytest.raises(EveryRankError, match=r"version 1, this program reads 2.*name another --out"):
        newest_checkpoint(tmp_path / "checkpoints")


def test_none_is_found_where_there_is_none(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "absent") == (None, [])


def test_the_caller_goes_on_while_a_slow_disk_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)
    disk, write = threading.Event(), saving._write_tensors

    def slow(path: Path, content: dict[str, Any]) -> None:
        assert disk.wait(60)
        write(path, content)

    monkeypatch.setattr(saving, "_write_tensors", slow)
    saver = open_saver(tmp_path)
    saver.begin(2, state(2), {"weight": torch.zeros(3)}, None)
    assert saver.busy and not saver.failed
    saver.settle(busy=saver.busy, failed=False)  # as every step does
    newest, _ = newest_checkpoint(tmp_path / "checkpoints")
    assert newest is not None and newest.step == 1
    disk.set()
    saver.finish()
    assert not saver.busy
    newest, _ = newest_checkpoint(tmp_path / "checkpoints")
    assert newest is not None and newest.step == 2


def test_steps_alone_bring_a_save_to_its_end(tmp_path: Path) -> None:
    saver = open_saver(tmp_path)
    saver.begin(2, state(2), {"weight": torch.zeros(3)}, None)
    for _ in range(2):  # written, sealed: a step may come at any time in between
        assert saver._flight is not None
        saver._flight.thread.join()
        assert not saver.busy
        saver.settle(busy=False, failed=saver.failed)
    saver.begin(3, state(3), {"weight": torch.zeros(3)}, None)  # nothing is under way any more
    saver.finish()
    assert steps(tmp_path) == ["step-2", "step-3"]


@pytest.mark.parametrize("noticed", ["at a step", "at the end"])
def test_a_failed_save_is_told_and_leaves_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noticed: str
) -> None:
    save(tmp_path, 1)

    def full(path: Path, content: dict[str, Any]) -> None:
        path.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saving, "_write_tensors", full)
    saver = open_saver(tmp_path)
    saver.begin(2, state(2), {"weight": torch.zeros(3)}, None)
    assert saver._flight is not None
    saver._flight.thread.join()
    says = r"step 2 in .*rank 0 could not write it \(No space left on device\); the newest older one is of step 1\."
    with pytest.raises(MstlError, match=says):
        if noticed == "at the end":
            saver.finish()
        else:
            saver.settle(busy=saver.busy, failed=saver.failed)
    assert steps(tmp_path) == ["step-1"]
    monkeypatch.undo()
    save(tmp_path, 2)
    assert steps(tmp_path) == ["step-1", "step-2"]


def test_a_seal_that_fails_is_told_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(saving, "seal", forbidden)
    saver = open_saver(tmp_path)
    saver.begin(2, state(2), {"weight": torch.zeros(3)}, None)
    with pytest.raises(MstlError, match=r"Permission denied\); there is no older one"):
        saver.finish()


def test_leaving_with_an_error_a_written_save_is_still_sealed(tmp_path: Path) -> None:
    saver = open_saver(tmp_path)
    saver.rescue()  # nothing under way
    saver.begin(2, state(2), {"weight": torch.zeros(3)}, None)
    saver.rescue()
    newest, _ = newest_checkpoint(tmp_path / "checkpoints")
    assert newest is not None and newest.step == 2


def test_what_a_killed_job_left_is_removed(tmp_path: Path) -> None:
    save(tmp_path, 1)
    for name in (".step-2.deadbeef", ".step-0.gone"):
        (tmp_path / "checkpoints" / name).mkdir()
        (tmp_path / "checkpoints" / name / "shared.pt").write_bytes(b"half")
    open_saver(tmp_path)
    assert steps(tmp_path) == ["step-1"]


def test_killed_at_any_point_of_a_save_a_whole_one_is_left(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(HERE / "killed_saves.py"), str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {point: entry["newest"] for point, entry in found.items()} == {
        "while a file is written": 1,
        "before the digests are published": 1,
        "before the seal": 1,
        "before the name": 1,
        "behind the name": 2,
        "before an old one loses its name": 2,
        "while an old one is removed": 2,
        "nowhere": 2,
    }
    assert {point for point, entry in found.items() if entry["ended"] != "SIGKILL"} == {"nowhere"}
    assert all(entry["after the next"] == ["step-3"] for entry in found.values()), found


def _two_savers(index: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=index, world_size=2)
    run = Path(folder) / "run"
    run.mkdir(exist_ok=True)
    found: dict[str, Any] = {}

    def begin(saver: Saver, step: int) -> None:
        shared = {"weight": torch.zeros(3)} if index == 0 else None
        saver.begin(step, {"engine": {}, "rank": index}, shared, None)

    # Rank 1's disk is slow: as long as it has not written, there is no checkpoint.
    disk, write = threading.Event(), saving._write_tensors

    def slow(path: Path, content: dict[str, Any]) -> None:
        assert disk.wait(60)
        write(path, content)

    if index == 1:
        saving._write_tensors = slow
    saver = open_saver(run)
    begin(saver, 1)
    assert saver._flight is not None
    if index == 0:
        saver._flight.thread.join()
    flags = torch.tensor([float(saver.busy), float(saver.failed)])
    dist.all_reduce(flags)
    saver.settle(busy=bool(flags[0]), failed=bool(flags[1]))
    found["before"] = (flags.tolist(), newest_checkpoint(run / "checkpoints")[0])
    disk.set()
    saver.finish()
    newest, _ = newest_checkpoint(run / "checkpoints")
    assert newest is not None
    found["after"] = (newest.step, newest.ranks, newest.own(index)["rank"], sorted(newest.shared()))

    def full(path: Path, content: dict[str, Any]) -> None:
        raise OSError(28, "No space left on device")

    saving._write_tensors = full if index == 1 else write
    begin(saver, 2)
    try:
        saver.finish()
    except MstlError as error:
        found["error"] = str(error)
    torch.save(found, f"{folder}/rank-{index}.pt")
    dist.destroy_process_group()


def test_two_ranks_seal_when_both_have_written_and_fail_together(tmp_path: Path) -> None:
    spawn(_two_savers, args=(str(tmp_path),), nprocs=2)
    for index in range(2):
        found = torch.load(tmp_path / f"rank-{index}.pt")
        assert found["before"] == ([1.0, 0.0], None)
        assert found["after"] == (1, 2, index, ["weight"])
        assert (
            "rank 1 could not write it (No space left on device); the newest older one is of step 1" in found["error"]
        )
    assert steps(tmp_path / "run") == ["step-1"]
