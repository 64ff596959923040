"""A small network, its batches, and the same training by hand in plain torch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from launch.engine import start_processes
from launch.here import join_here
from launch.processes import set_environment
from mstl.recipes import Recipe, build_recipe
from pipelines.batch import Batch

CPU = torch.device("cpu")
SET = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "CUDA_VISIBLE_DEVICES")  # by set_environment


class Small(nn.Module):
    """Convolution, norm and classifier: all kinds of parameters a stage has, a frozen one, and one without use."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.fc = nn.Linear(8, 2)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.unused = nn.Linear(3, 2)
        self.seen: list[torch.dtype] = []
        self.sizes: list[int] = []

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        features = self.body(batch.views["x"])
        self.seen.append(features.dtype)
        self.sizes.append(len(batch))
        logits = self.fc(features.mean((2, 3))).float()
        loss = F.cross_entropy(logits, batch.labels)
        return {"loss": loss, "first": logits.detach()[:, 0].mean()}


def small(seed: int = 0) -> Small:
    torch.manual_seed(seed)
    return Small()


def recipe(*fields: str, images: int = 6) -> Recipe:
    return build_recipe("stl_n", overrides=[f"data.batch_size={images}", "optim.lr=0.1", *fields])


def batch(seed: int, images: int = 6) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    views = torch.randn(images, 3, 9, 9, generator=generator).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 2, (images,), generator=generator)
    return Batch(views={"x": views}, labels=labels, sample_ids=torch.arange(images))


def part_of(whole: Batch, start: int, end: int) -> Batch:
    return Batch(
        views={name: view[start:end] for name, view in whole.views.items()},
        labels=whole.labels[start:end],
        sample_ids=whole.sample_ids[start:end],
    )


def plain_training(module: Small, steps: Sequence[Sequence[Batch]], rates: Sequence[float], clip: float) -> list[float]:
    """By hand: torch's SGD on the mean loss of some batches a step, clipped by the global norm; returns the norms.

    Every parameter that is trained decays, also one without a gradient, as in the engine.
    """
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1.0, momentum=0.9, weight_decay=1e-4)
    norms = []
    for batches, rate in zip(steps, rates, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        for parameter in trained:
            parameter.grad = torch.zeros_like(parameter)
        torch.stack([module(part)["loss"] for part in batches]).mean().backward()
        norms.append(float(nn.utils.clip_grad_norm_(trained, clip if clip else float("inf"))))
        optimizer.step()
    return norms


@contextmanager
def one_rank() -> Iterator[None]:
    """This process as the only rank."""
    with pytest.MonkeyPatch.context() as patch:
        for name in SET:
            patch.setenv(name, "")  # noted, so that leaving takes away what is set
            patch.delenv(name)
        patch.setenv("DS_ACCELERATOR", "cpu")
        patch.setenv("OMP_NUM_THREADS", "1")
        set_environment()
        start_processes()
        yield
        dist.destroy_process_group()


def run_ranks(worker: Callable[[int], Any], folder: Path, ranks: int = 2, **variables: str) -> list[Any]:
    """What `worker(rank)` returns on ranks that have started as under a launcher."""
    spawn(_rank, args=(worker, str(folder), ranks, variables), nprocs=ranks)
    return [torch.load(folder / f"found-{index}.pt", weights_only=False) for index in range(ranks)]


def _rank(index: int, worker: Callable[[int], Any], folder: str, ranks: int, variables: dict[str, str]) -> None:
    os.environ.update(DS_ACCELERATOR="cpu", OMP_NUM_THREADS="1", **variables)
    torch.set_num_threads(1)
    join_here(index, ranks, Path(folder))
    torch.save(worker(index), Path(folder) / f"found-{index}.pt")
    dist.destroy_process_group()
