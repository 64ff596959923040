"""The loop itself, in this process, with a plain torch engine: order of events, selection, stopping, refusing NaN."""

from __future__ import annotations

import copy
import math
import shutil
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mstl import saving
from mstl.engine import Snapshot, StepResult
from mstl.recipes import Recipe, build_recipe
from mstl.resume import restore
from mstl.runs import read_metrics
from mstl.saving import Saver
from mstl.train import train
from mstl.training import Training
from mstl.weights import load_weights
from pipelines.batch import Batch
from pipelines.loader import Loader
from pipelines.recipe import evaluation
from shards.errors import MstlError
from shards.index import read_index


class Stage:
    """A linear classifier on mean colour, with given validation scores."""

    def __init__(self, scores: list[float]) -> None:
        torch.manual_seed(0)
        self.module: nn.Module = _Mean()
        self.scores = scores
        self.validated = 0
        self.after = 0
        self.checked = 0

    def after_step(self) -> None:
        self.after += 1

    def skip_step(self) -> None:
        raise AssertionError("no step is skipped here")

    def check_ranks(self) -> None:
        self.checked += 1

    def evaluate(self, loader: Loader, device: torch.device) -> dict[str, float]:
        assert not self.module.training
        ids = torch.cat([batch.sample_ids for batch in loader])
        assert len(set(ids.tolist())) == 8
        self.validated += 1
        return {"auc": self.scores[self.validated - 1], "accuracy": 0.5}

    def weights(self) -> dict[str, Tensor]:
        return {"weight": self.module.state_dict()["fc.weight"], "validated": torch.tensor(self.validated)}


class _Mean(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)
        self.poison = False

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        loss = nn.functional.cross_entropy(self.fc(batch.views["x"].mean((2, 3))), batch.labels)
        return {"loss": loss * math.nan if self.poison else loss}


class PlainEngine:
    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.device = torch.device("cpu")
        self.optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
        self.rates: list[float] = []

    def update(self, batch: Batch, lr: float) -> StepResult:
        self.rates.append(lr)
        self.optimizer.param_groups[0]["lr"] = lr
        losses: dict[str, Tensor] = self.module(batch)
        losses["loss"].backward()
        norm = float(nn.utils.get_total_norm([p.grad for p in self.module.parameters() if p.grad is not None]))
        applied = math.isfinite(norm)
        if applied:
            self.optimizer.step()
        self.optimizer.zero_grad()
        stop = "" if applied else "the gradient is not finite"
        return StepResult(losses={n: v.detach() for n, v in losses.items()}, norm=norm, applied=applied, stop=stop)

    def snapshot(self) -> Snapshot:
        state = {"module": self.module.state_dict(), "optimizer": self.optimizer.state_dict()}
        return Snapshot(shared=copy.deepcopy(state), own={})

    def restore(self, shared: Mapping[str, Any], own: Mapping[str, Any]) -> None:
        assert not own
        self.module.load_state_dict(shared["module"])
        self.optimizer.load_state_dict(shared["optimizer"])


@dataclass
class Watch:
    """Asks for a stop at a step, as a signal would."""

    stop_at: int | None = None
    requested: bool = False
    entries: list[Mapping[str, Any]] = field(default_factory=list)
    alerts: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def start(self, step: int) -> None: ...

    def step(self, entry: Mapping[str, Any]) -> None:
        self.entries.append(entry)
        self.requested = self.stop_at is not None and entry["step"] >= self.stop_at - 1

    def validation(self, entry: Mapping[str, Any]) -> None:
        self.entries.append(entry)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def alert(self, text: str) -> None:
        self.alerts.append(text)


def recipe(*fields: str) -> Recipe:
    chosen = ("data.batch_size=8", "optim.epochs=3", "optim.milestones=[2]", "optim.lr=0.1", "checkpoint.select=best")
    return build_recipe("finetune", overrides=[*chosen, *fields])


def make(sets: Path, run: Path, scores: list[float], watch: Watch, *fields: str) -> Training:
    chosen = recipe(*fields)
    stage = Stage(scores)

    def loader(split: str) -> Loader:
        return Loader(
            evaluation(32), sets / "covid19-ct", split,
            rank=0, world=1, batch=8, epochs=3, device="cpu", seed=0, shuffle=split == "train",
            remainder="keep" if split == "train" else "pad", threads=1,
            max_bad=chosen.data.max_bad if split == "train" else 0.0,
        )  # fmt: skip

    run.mkdir(exist_ok=True)
    return Training(
        name="test",
        stage=stage,
        engine=PlainEngine(stage.module),
        recipe=chosen,
        loader=loader("train"),
        val_loader=loader("val"),
        run=run,
        watch=watch,
        stop=watch,
    )


def test_every_step_and_every_validation_is_logged_in_order(sample_sets: Path, tmp_path: Path) -> None:
    watch = Watch()
    training = make(sample_sets, tmp_path, [0.5, 0.6, 0.7], watch)
    assert train(training)
    lines = read_metrics(tmp_path)
    # 20 training images in batches of 8, the last one of 4 kept: 3 steps, then a validation.
    assert [(line["step"], "split" in line) for line in lines] == [
        (1, False), (2, False), (3, False), (3, True),
        (4, False), (5, False), (6, False), (6, True),
        (7, False), (8, False), (9, False), (9, True),
    ]  # fmt: skip
    assert lines == watch.entries
    assert isinstance(training.engine, PlainEngine)
    assert training.engine.rates == pytest.approx([0.1] * 6 + [0.01] * 3)
    assert isinstance(training.stage, Stage)
    assert training.stage.after == 9


def test_an_unreadable_image_ends_training_or_is_skipped_and_told(sample_sets: Path, tmp_path: Path) -> None:
    shutil.copytree(sample_sets / "covid19-ct", tmp_path / "covid19-ct")
    tar = tmp_path / "covid19-ct/train/000000.tar"
    image = read_index(tar.with_suffix(".idx"))[0][0]
    assert image.ext in ("jpg", "png")
    data = bytearray(tar.read_bytes())
    data[image.offset : image.offset + 8] = b"<html>!!"
    tar.write_bytes(data)
    with pytest.raises(MstlError, match=r"sample 0 in .*data\.max_bad"):
        train(make(tmp_path, tmp_path / "strict", [0.5] * 3, Watch()))
    watch = Watch()
    assert train(make(tmp_path, tmp_path / "run", [0.5] * 3, watch, "data.max_bad=0.05"))
    [alert] = watch.alerts
    assert alert.startswith("skipped sample 0 in ") and "cannot be read" in alert
    counted = [line.get("unreadable", 0) for line in read_metrics(tmp_path / "run") if "split" not in line]
    assert len(counted) == 9 and counted[-1] == 1 and sorted(counted) == counted


@pytest.mark.parametrize(("select", "chosen"), [("best", 2), ("last", 3)])
def test_the_weights_handed_on(sample_sets: Path, tmp_path: Path, select: str, chosen: int) -> None:
    training = make(sample_sets, tmp_path, [0.5, 0.9, 0.7], Watch(), f"checkpoint.select={select}")
    train(training)
    assert int(load_weights(tmp_path / "weights.safetensors")["validated"]) == chosen
    assert int(load_weights(tmp_path / "best.safetensors")["validated"]) == 2  # kept, whatever is handed on


def test_an_undefined_score_is_null_in_the_log_and_accuracy_stands_in(sample_sets: Path, tmp_path: Path) -> None:
    training = make(sample_sets, tmp_path, [0.4, 0.7, math.nan], Watch())
    train(training)
    assert [line["auc"] for line in read_metrics(tmp_path) if "split" in line] == [0.4, 0.7, None]
    assert int(load_weights(tmp_path / "weights.safetensors")["validated"]) == 2  # 0.7 beats the accuracy of 0.5


@pytest.mark.parametrize("stop_at", [2, 3, 4, 6])
def test_stopped_anywhere_and_continued_is_the_undisturbed_run(sample_sets: Path, tmp_path: Path, stop_at: int) -> None:
    scores = [0.5, 0.9, 0.7]
    train(make(sample_sets, tmp_path / "whole", scores, Watch()))
    first = make(sample_sets, tmp_path / "broken", scores, Watch(stop_at=stop_at))
    assert not train(first)
    assert not (tmp_path / "broken" / "weights.safetensors").exists()
    assert isinstance(first.stage, Stage)
    second = make(sample_sets, tmp_path / "broken", scores[first.stage.validated :], Watch())
    assert isinstance(second.stage, Stage)
    checkpoint = restore(second)
    assert checkpoint is not None
    # An epoch has three steps: what is asked behind the third is heard behind the validation, before the fourth.
    assert checkpoint.step == {4: 3}.get(stop_at, stop_at) == first.done == second.done
    assert train(second)
    whole, broken = ([{**line, "images_per_second": 0, "data_wait": 0} for line in read_metrics(tmp_path / name)]
                     for name in ("whole", "broken"))  # fmt: skip
    assert whole == broken
    left, right = (load_weights(tmp_path / name / "weights.safetensors") for name in ("whole", "broken"))
    assert torch.equal(left["weight"], right["weight"])


def test_a_gradient_that_is_not_finite_is_never_applied(sample_sets: Path, tmp_path: Path) -> None:
    training = make(sample_sets, tmp_path, [0.5, 0.6, 0.7], Watch(), "checkpoint.every_steps=1")
    module = training.engine.module
    assert isinstance(module, _Mean)

    class Poisoning(Watch):
        def step(self, entry: Mapping[str, Any]) -> None:
            module.poison = entry["step"] == 4

    training.watch = Poisoning()
    with pytest.raises(MstlError, match=r"step 5: the gradient is not finite.*was not applied"):
        train(training)
    assert all(torch.isfinite(value).all() for value in module.state_dict().values())
    checkpoint = restore(make(sample_sets, tmp_path, [], Watch()))
    assert checkpoint is not None and checkpoint.step == 4


class Clock:
    """A clock that moves on by some seconds whenever it is asked."""

    def __init__(self, seconds: float) -> None:
        self.now, self.seconds = 0.0, seconds

    def __call__(self) -> float:
        self.now += self.seconds
        return self.now


def saved_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    steps = []
    begin = Saver.begin

    def noted(self: Saver, step: int, *rest: Any) -> None:
        steps.append(step)
        begin(self, step, *rest)

    monkeypatch.setattr(Saver, "begin", noted)
    return steps


def test_checkpoints_are_saved_by_steps_and_by_the_clock(
    sample_sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = saved_steps(monkeypatch)
    train(make(sample_sets, tmp_path / "steps", [0.5] * 3, Watch(), "checkpoint.every_steps=4"))
    assert steps == [4, 8, 9]
    steps.clear()
    # Half a minute a step, a save behind two of them; the clock is looked at when a save is done, too.
    monkeypatch.setattr("mstl.train.time.monotonic", Clock(30.0))
    train(make(sample_sets, tmp_path / "clock", [0.5] * 3, Watch(), "checkpoint.every_minutes=1"))
    assert steps == [2, 4, 6, 8, 9]
    steps.clear()
    never = make(sample_sets, tmp_path / "never", [0.5] * 3, Watch(), 'checkpoint.every_minutes="none"')
    train(never)
    assert steps == [9]
    assert isinstance(never.stage, Stage)
    assert never.stage.checked == 1


def test_training_goes_on_while_a_checkpoint_is_written(
    sample_sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, write = threading.Event(), saving._write_tensors

    def slow(path: Path, content: dict[str, Any]) -> None:
        assert disk.wait(60)
        write(path, content)

    class Waiting(Watch):
        """Lets the disk write when training is two steps further."""

        def step(self, entry: Mapping[str, Any]) -> None:
            super().step(entry)
            if entry["step"] == 7:
                assert not list(tmp_path.glob("checkpoints/step-*"))
                disk.set()

    monkeypatch.setattr(saving, "_write_tensors", slow)
    assert train(make(sample_sets, tmp_path, [0.5] * 3, Waiting(), "checkpoint.every_steps=5"))
    assert sorted(path.name for path in tmp_path.glob("checkpoints/*")) == ["step-5", "step-9"]
    # What was written is the state of step 5, though training had changed it by then.
    monkeypatch.undo()
    whole = make(sample_sets, tmp_path / "other", [0.5] * 3, Watch(stop_at=5))
    assert not train(whole)
    weight = [torch.load(run / "checkpoints/step-5/shared.pt")["module"]["fc.weight"]
              for run in (tmp_path, tmp_path / "other")]  # fmt: skip
    assert torch.equal(*weight)


def test_a_checkpoint_that_cannot_be_written_ends_training_soon(
    sample_sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = saving._write_tensors
    told = threading.Event()

    def full(path: Path, content: dict[str, Any]) -> None:
        if path.parent.name.startswith(".step-4"):
            told.set()
            raise OSError(28, "No space left on device")
        write(path, content)

    class Waiting(Watch):
        def step(self, entry: Mapping[str, Any]) -> None:
            super().step(entry)
            if entry["step"] == 5:
                assert told.wait(60)

    monkeypatch.setattr(saving, "_write_tensors", full)
    watch = Waiting()
    with pytest.raises(MstlError, match=r"step 4 .*No space left on device.*the newest older one is of step 2"):
        train(make(sample_sets, tmp_path, [0.5] * 3, watch, "checkpoint.every_steps=2"))
    assert watch.entries[-1]["step"] <= 6  # the next save would be that of step 6
    checkpoint = restore(make(sample_sets, tmp_path, [], Watch()))
    assert checkpoint is not None and checkpoint.step == 2


def test_an_epoch_that_is_over_for_other_ranks_is_validated_first(sample_sets: Path, tmp_path: Path) -> None:
    first = make(sample_sets, tmp_path, [0.5] * 3, Watch(stop_at=2))
    assert not train(first)
    second = make(sample_sets, tmp_path, [0.6, 0.7, 0.8], Watch())
    restore(second)
    # As if these ranks had left the epoch's last step out: its images do not fill one.
    second.loader.close()
    second.loader.epoch, second.loader.step = 1, 0
    assert train(second)
    lines = [(line["step"], line["epoch"], line.get("auc")) for line in read_metrics(tmp_path)]
    assert lines[2:4] == [(2, 0, 0.6), (3, 1, None)]
    assert [line for line in lines if line[2]] == [(2, 0, 0.6), (5, 1, 0.7), (8, 2, 0.8)]


def test_a_best_of_steps_that_are_done_again_is_forgotten(sample_sets: Path, tmp_path: Path) -> None:
    """A kill behind an epoch's validation and before the next checkpoint takes the validation back."""

    class Leave(BaseException):
        pass

    class Leaving(Watch):
        def step(self, entry: Mapping[str, Any]) -> None:
            if entry["step"] == 7:
                while not (first.run / "checkpoints" / "step-4").exists():  # the disk may be slow
                    assert first.rescue is not None
                    first.rescue()
                raise Leave

    first = make(sample_sets, tmp_path, [0.5, 0.9, 0.7], Leaving(), "checkpoint.every_steps=4")
    with pytest.raises(Leave):
        train(first)
    second = make(sample_sets, tmp_path, [0.6, 0.55], Watch(), "checkpoint.every_steps=4")
    checkpoint = restore(second)
    assert checkpoint is not None and checkpoint.step == 4
    assert second.best == 0.5
    assert second.best_weights is not None and int(second.best_weights["validated"]) == 1
    assert train(second)
    assert second.best == 0.6


def test_damaged_checkpoints_are_named_in_one_line_and_passed_over(sample_sets: Path, tmp_path: Path) -> None:
    fields = ("checkpoint.every_steps=1", "checkpoint.keep=3")
    assert train(make(sample_sets, tmp_path, [0.5] * 3, Watch(), *fields))
    root = tmp_path / "checkpoints"
    for step in (8, 9):
        (root / f"step-{step}" / "rank-0.pt").write_bytes(b"half")
    watch = Watch()
    checkpoint = restore(make(sample_sets, tmp_path, [], watch, *fields))
    assert checkpoint is not None and checkpoint.step == 7
    assert watch.notes == [f"passed over, since files are missing or changed: step-9, step-8 in {root}"]


def test_a_log_that_has_gone_is_told_and_training_goes_on(sample_sets: Path, tmp_path: Path) -> None:
    assert not train(make(sample_sets, tmp_path, [0.5] * 3, Watch(stop_at=2)))
    (tmp_path / "metrics.jsonl").unlink()
    watch = Watch()
    second = make(sample_sets, tmp_path, [0.5] * 3, watch)
    assert restore(second) is not None
    assert watch.notes == [f"metrics.jsonl has gone from {tmp_path}: it will not hold what is before"]
    assert train(second)
    assert [entry["step"] for entry in read_metrics(tmp_path) if "split" not in entry] == [3, 4, 5, 6, 7, 8, 9]
