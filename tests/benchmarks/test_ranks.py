"""Ranks of benchmarks: what each returns comes back, what goes wrong in one is told once and in one line."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist

from benchmarks.ranks import on_ranks
from benchmarks.roofline import enough_memory
from shards.errors import MstlError

# Tasks run in processes of their own, which import them from here.


def total(device: torch.device, number: int) -> dict[str, Any]:
    together = torch.tensor(number + dist.get_rank(), device=device)
    dist.all_reduce(together)
    return {"rank": dist.get_rank(), "total": int(together)}


def second_refuses(_: torch.device) -> None:
    if dist.get_rank() == 1:
        raise MstlError("--set a=b", why="it fits nobody", remedy="Name another")
    dist.barrier()  # in vain: the first rank loses the second


def first_is_killed(_: torch.device) -> None:
    if dist.get_rank() == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier()


def broken(_: torch.device) -> None:
    raise LookupError("a bug")


def greedy(_: torch.device) -> None:
    torch.empty(2**62, dtype=torch.uint8)


@pytest.mark.slow
def test_every_rank_answers() -> None:
    assert on_ranks(2, total, 10) == [{"rank": 0, "total": 21}, {"rank": 1, "total": 21}]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "task", "kind", "text"),
    [
        (2, second_refuses, MstlError, "--set a=b: it fits nobody. Name another"),
        (2, first_is_killed, MstlError, "rank"),
        (1, greedy, MstlError, "smaller --batch"),
        (1, broken, RuntimeError, 'raise LookupError("a bug")'),
    ],
)
def test_what_goes_wrong_first_is_told(ranks: int, task: Callable[..., None], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind) as caught:
        on_ranks(ranks, task)
    assert text in str(caught.value)
    assert isinstance(caught.value, MstlError) == (kind is MstlError)


def test_too_little_memory_is_told_in_one_line_and_a_bug_is_not_hidden() -> None:
    with pytest.raises(MstlError, match=r"memory.*smaller --batch"), enough_memory():
        torch.empty(2**62, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="shape"), enough_memory():
        torch.ones(2) @ torch.ones(3, 3)
