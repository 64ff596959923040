"""Checkpoints: sealed or not there, pruned, verified before they are loaded."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mstl.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint, step_of
from pipelines.batch import Batch
from shards.errors import MstlError


class OneFileEngine:
    """Stands for DeepSpeed's engine: its state is one tensor in one file."""

    def __init__(self, value: float) -> None:
        self.module: nn.Module = nn.Identity()
        self.device = torch.device("cpu")
        self.value = torch.tensor(value)
        self.fail = False

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        raise NotImplementedError

    def backward(self, loss: Tensor) -> float:
        raise NotImplementedError

    def step(self, lr: float) -> None:
        raise NotImplementedError

    def save(self, folder: Path) -> None:
        torch.save(self.value, folder / "state.pt")
        if self.fail:
            raise OSError("No space left on device")

    def load(self, folder: Path) -> None:
        self.value = torch.load(folder / "state.pt")


def state(step: int) -> dict[str, Any]:
    return {"loader": {"epoch": step, "dali": "text"}, "rng": torch.get_rng_state(), "best": float("-inf")}


def test_the_newest_is_found_and_restored_and_old_ones_go(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        save_checkpoint(tmp_path, step, OneFileEngine(step), state(step), keep=2)
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["step-10", "step-15"]
    newest, damaged = newest_checkpoint(tmp_path)
    assert newest is not None
    assert damaged == []
    assert step_of(newest) == 15
    engine = OneFileEngine(0)
    restored = load_checkpoint(newest, engine)
    assert float(engine.value) == 15
    assert restored["loader"] == {"epoch": 15, "dali": "text"}
    assert restored["best"] == float("-inf")


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing", "unsealed"])
def test_a_damaged_one_is_passed_over(tmp_path: Path, damage: str) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, step, OneFileEngine(step), state(step), keep=2)
    victim = tmp_path / "step-2" / ("complete.json" if damage == "unsealed" else "state.pt")
    content = bytearray(victim.read_bytes())
    if damage in ("missing", "unsealed"):
        victim.unlink()
    elif damage == "truncated":
        victim.write_bytes(content[:-1])
    else:
        content[len(content) // 2] ^= 1
        victim.write_bytes(content)
    assert newest_checkpoint(tmp_path) == (tmp_path / "step-1", [tmp_path / "step-2"])


def test_pruning_never_takes_the_one_just_written_for_a_damaged_newer_one(tmp_path: Path) -> None:
    for step in (10, 20):
        save_checkpoint(tmp_path, step, OneFileEngine(step), state(step), keep=2)
    (tmp_path / "step-20" / "state.pt").unlink()
    save_checkpoint(tmp_path, 15, OneFileEngine(15), state(15), keep=1)
    assert newest_checkpoint(tmp_path) == (tmp_path / "step-15", [])


def test_when_all_are_damaged_nobody_starts_over_silently(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "checkpoints", 1, OneFileEngine(1), state(1), keep=1)
    (folder / "complete.json").write_text("[]")
    with pytest.raises(MstlError, match="none is whole"):
        newest_checkpoint(tmp_path / "checkpoints")


def test_a_failed_save_leaves_the_last_one(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, OneFileEngine(1), state(1), keep=1)
    engine = OneFileEngine(2)
    engine.fail = True
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(tmp_path, 2, engine, state(2), keep=1)
    assert newest_checkpoint(tmp_path)[0] == tmp_path / "step-1"
    save_checkpoint(tmp_path, 2, OneFileEngine(2), state(2), keep=1)  # what was left aside is in nobody's way
    assert newest_checkpoint(tmp_path)[0] == tmp_path / "step-2"


def test_none_is_found_where_there_is_none(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "absent") == (None, [])


def test_another_world_size_is_refused(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, 1, OneFileEngine(1), state(1), keep=1)
    (folder / "rank-1.pt").write_bytes((folder / "rank-0.pt").read_bytes())
    with pytest.raises(MstlError, match="written by 2 ranks and this job has 1"):
        load_checkpoint(folder, OneFileEngine(0))
