"""Going on from a checkpoint on two ranks, in every stage: bit for bit, and on another number of ranks."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from resume_cases import Part, run_parts

from mstl.checkpoint import Checkpoint, newest_checkpoint
from mstl.runs import read_metrics
from mstl.weights import load_weights
from shards.schema import load_manifest

TIMED = ("images_per_second", "data_wait")
# Behind the third step the first one's checkpoint is whole, however slow the disk: the second's waited for it.
EXACT = {
    "stl_n": Part(run="", stage="stl_n", fields=("model.dropout=0.3",), killed_at=3),
    "stl_m": Part(run="", stage="stl_m", fields=("model.dropout=0.3",), killed_at=5),
    "finetune": Part(run="", stage="finetune", fields=("model.dropout=0.3",), killed_at=4),
    "ours": Part(run="", stage="sstl_m", fields=("loss.queue_size=30",), killed_at=5),
    "moco": Part(run="", stage="sstl_m", ssl="moco", fields=("loss.queue_size=7",), killed_at=3),
    "moco_v2": Part(run="", stage="sstl_m", ssl="moco_v2", killed_at=4),
    "simclr": Part(run="", stage="sstl_m", ssl="simclr", fields=("optim.warmup_epochs=1",), killed_at=4),
    "zero_1": Part(run="", stage="finetune", fields=("engine.zero=1",), killed_at=3),
}
ELASTIC = {
    name: replace(EXACT[name], killed_at=None, fields=(*EXACT[name].fields, "checkpoint.keep=50"))
    for name in ("stl_n", "stl_m", "finetune", "ours", "simclr")
}


def newest(run: Path) -> Checkpoint:
    checkpoint, damaged = newest_checkpoint(run / "checkpoints")
    assert checkpoint is not None and not damaged
    return checkpoint


def same(left: Any, right: Any) -> bool:
    """Equal bit for bit, in nested containers."""
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[name], right[name]) for name in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


def samples(run: Path, attempt: int) -> list[list[int]]:
    """The samples of each step of an attempt, those of all ranks."""
    ranks = [
        [json.loads(line) for line in file.read_text().splitlines()]
        for file in sorted(run.glob(f"ids-{attempt}-*.jsonl"))
    ]
    return [list(chain(*step)) for step in zip(*ranks, strict=True)]


@pytest.fixture(scope="module")
def exact(sample_sets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exact")
    parts = []
    for name, part in EXACT.items():
        parts += [replace(part, run=f"{name}-whole", killed_at=None), replace(part, run=f"{name}-broken")]
        parts += [replace(part, run=f"{name}-broken", killed_at=None)]
    run_parts(parts, sample_sets, folder, ranks=2)
    return folder


@pytest.mark.long
@pytest.mark.parametrize("name", EXACT)
def test_left_at_any_step_and_continued_is_bitwise_the_undisturbed_run(exact: Path, name: str) -> None:
    whole, broken = exact / f"{name}-whole", exact / f"{name}-broken"
    lines = [
        [{k: v for k, v in line.items() if k not in TIMED} for line in read_metrics(run)] for run in (whole, broken)
    ]
    assert lines[0] == lines[1]
    assert same(load_weights(whole / "weights.safetensors"), load_weights(broken / "weights.safetensors"))
    ends = newest(whole), newest(broken)
    assert ends[0].step == ends[1].step == lines[0][-1]["step"]
    assert same(ends[0].shared(), ends[1].shared())  # weights, optimizer, queue
    assert all(same(ends[0].own(rank), ends[1].own(rank)) for rank in range(2))  # random numbers, loader, statistics
    # The samples too: what the second attempt did again, and what it went on to.
    again = samples(broken, 1)
    assert 0 < len(again) < len(samples(whole, 0))
    assert again == samples(whole, 0)[-len(again) :]
    assert samples(broken, 0) == samples(whole, 0)[: len(samples(broken, 0))]


@pytest.fixture(scope="module")
def elastic(sample_sets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each stage on two ranks, from within the first epoch on one, and from within the second on two again."""
    folder = tmp_path_factory.mktemp("elastic")

    def parts(stopped_at: int | None) -> list[Part]:
        return [replace(part, run=name, stopped_at=stopped_at) for name, part in ELASTIC.items()]

    zero = replace(EXACT["zero_1"], run="zero_1", killed_at=None)
    run_parts([*parts(1), replace(zero, stopped_at=1)], sample_sets, folder, ranks=2)
    run_parts([*parts(3), replace(zero, error="Start the job with 2 ranks; at engine.zero=0")], sample_sets, folder, 1)
    run_parts([*parts(None), zero], sample_sets, folder, ranks=2)
    return folder


@pytest.mark.long
@pytest.mark.parametrize("name", ELASTIC)
def test_on_other_ranks_the_rest_of_the_epoch_is_seen_once(sample_sets: Path, elastic: Path, name: str) -> None:
    run = elastic / name
    source = {"stl_n": "imagenet", "stl_m": "covidx"}.get(name, "covid19-ct")
    images = load_manifest(sample_sets / source).samples("train")
    each = images // 8 * 8 if name in ("stl_n", "stl_m") else images  # a batch that is not full is dropped, or kept
    first, second, third = (samples(run, attempt) for attempt in range(3))
    assert (len(first), len(second)) == (1, 2)
    steps = [*first, *second, *third]
    half = len(steps) // 2
    for epoch in (steps[:half], steps[half:]):
        seen = list(chain(*epoch))
        assert len(seen) == len(set(seen)) == each
    trained = [line for line in read_metrics(run) if "split" not in line]
    assert [line["step"] for line in trained] == list(range(1, len(steps) + 1))
    assert [line["ranks"] for line in trained] == [2, 1, 1] + [2] * len(third)
    assert [line["epoch"] for line in read_metrics(run) if "split" in line] == [0, 1]


@pytest.mark.long
@pytest.mark.parametrize("name", ELASTIC)
def test_on_other_ranks_nothing_that_was_learned_is_lost(elastic: Path, name: str) -> None:
    run = elastic / name
    written = [Checkpoint(folder=run / f"checkpoints/step-{step}", step=step, ranks=2) for step in (1, 3)]
    # One rank goes on from the mean of what two had measured, two from what one had.
    before = [written[0].own(rank)["buffers"] for rank in range(2)]
    [found] = [torch.load(file) for file in run.glob("restored-1-*.pt")]
    differing = 0
    for statistic, value in found.items():
        assert torch.allclose(value, (before[0][statistic] + before[1][statistic]) / 2), statistic
        differing += not torch.equal(before[0][statistic], before[1][statistic])
    assert differing or name == "simclr"  # whose statistics are those of all ranks anyway
    after = [torch.load(run / f"restored-2-{rank}.pt") for rank in range(2)]
    assert same(after[0], after[1])
    assert same(after[0], {n: written[1].own(0)["buffers"][n] for n in after[0]})
    assert [newest(run).own(rank)["rng"].tolist() for rank in range(2)] != [written[1].own(0)["rng"].tolist()] * 2


@pytest.mark.long
def test_a_sharded_optimizer_is_refused_on_other_ranks_and_goes_on_with_its_own(elastic: Path) -> None:
    run = elastic / "zero_1"
    assert samples(run, 1) == []
    assert [line["ranks"] for line in read_metrics(run) if "split" not in line] == [2] * 6
