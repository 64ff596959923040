"""The model against two real ranks of this machine: gloo, no overlap, a small network.

One process computes a batch and four times of it, which predicts twice of it: a fixed time and a time an image. Two
processes compute side by side without talking, reduce and exchange messages of several sizes, and then train together:
what they take together is predicted from the first two and measured as the third.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

SIZES = (2**18, 2**20, 2**22, 2**24, 2**26)  # bytes of the messages that the line is fitted to
MODEL = "resnet14"


@dataclass(frozen=True, slots=True)
class Small:
    """What is trained: `batch` images a rank of `size` pixels; `rounds` of every measurement, in turn."""

    batch: int = 8
    size: int = 64
    rounds: int = 15
    sizes: tuple[int, ...] = SIZES


def fit(sizes: Sequence[int], seconds: Sequence[float]) -> tuple[float, float]:
    """Latency in seconds and bytes a second of the line through these points, every point weighing by its own size."""
    slope, intercept = np.polyfit(sizes, seconds, 1, w=[1 / value for value in seconds])
    return max(0.0, float(intercept)), 1 / float(slope)


def check(small: Small, folder: Path) -> dict[str, Any]:
    """Measure on two processes and compare; times are medians over the rounds."""
    context = get_context("spawn")
    ranks = [context.Process(target=_rank, args=(rank, small, folder)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    assert all(process.exitcode == 0 for process in ranks), "a rank has failed; its own message says why"
    found = json.loads((folder / "measured.json").read_text())
    medians = {name: statistics.median(values) for name, values in found["seconds"].items()}
    out: dict[str, Any] = {"model": MODEL, "batch": small.batch, "size": small.size, "rounds": small.rounds,
                           "gradient_bytes": found["gradient_bytes"], "median_seconds": medians}  # fmt: skip
    predicted = {}
    for kind in ("reduce", "exchange"):
        latency, speed = fit(small.sizes, [medians[f"{kind} {size}"] for size in small.sizes])
        out[kind] = {"latency_seconds": latency, "bytes_per_second": speed}
        size = found["bytes"][kind]
        predicted[kind] = latency + size / speed
        out[kind] |= {"bytes": size, "predicted_seconds": predicted[kind], "measured_seconds": medians[f"{kind} it"]}
    images = small.batch
    out["ranks"] = {
        "1": {"predicted_seconds": medians["alone"] + (medians["alone, 4 times"] - medians["alone"]) / 3,
              "measured_seconds": medians["alone, twice"],
              "images_per_second": 2 * images / medians["alone, twice"]},
        "2": {"predicted_seconds": medians["beside"] + predicted["reduce"], "measured_seconds": medians["together"],
              "images_per_second": 2 * images / medians["together"]},
        "2, exchanging": {"predicted_seconds": medians["beside"] + predicted["reduce"] + predicted["exchange"],
                          "measured_seconds": medians["together, exchanging"],
                          "images_per_second": 2 * images / medians["together, exchanging"]},
    }  # fmt: skip
    for part in (out["reduce"], out["exchange"], *out["ranks"].values()):
        part["predicted_over_measured"] = part["predicted_seconds"] / part["measured_seconds"]
    return out


def _rank(rank: int, small: Small, folder: Path) -> None:
    import torch
    import torch.distributed as dist

    from mstl.distributed import exchange
    from mstl.models.classifier import Classifier
    from mstl.models.registry import build_backbone

    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(str(folder / "store"), 2), rank=rank, world_size=2)
    torch.manual_seed(0)
    network = Classifier(build_backbone(MODEL), 1000)
    parameters = list(network.parameters())
    flat = torch.zeros(sum(parameter.numel() for parameter in parameters))
    place = 0
    for parameter in parameters:  # gradients lie in one buffer, so that nothing is copied to reduce them
        parameter.grad = flat[place : place + parameter.numel()].view_as(parameter)
        place += parameter.numel()
    optimizer = torch.optim.SGD(parameters, lr=0.01, momentum=0.9, foreach=True)
    most = torch.randn(4 * small.batch, 3, small.size, small.size)
    classes = torch.randint(0, 1000, (4 * small.batch,))
    images = most[: small.batch]
    order = torch.arange(2 * small.batch).view(2, -1).mT.flatten()  # each rank takes half of its images from the other

    def compute(talk: Callable[[], object] = lambda: None, times: int = 1) -> None:
        flat.zero_()
        count = times * small.batch
        torch.nn.functional.cross_entropy(network(most[:count]), classes[:count]).backward()
        talk()
        optimizer.step()

    def reduce(tensor: torch.Tensor = flat) -> None:
        dist.all_reduce(tensor)

    def together_exchanging() -> None:
        exchange(images, order)
        compute(reduce)

    work: dict[str, Callable[[], object]] = {
        "alone": lambda: compute() if rank == 0 else None,
        "alone, twice": lambda: compute(times=2) if rank == 0 else None,
        "alone, 4 times": lambda: compute(times=4) if rank == 0 else None,
        "beside": compute,
        "together": lambda: compute(reduce),
        "together, exchanging": together_exchanging,
        "reduce it": reduce,
        "exchange it": lambda: exchange(images, order),
    }
    for size in small.sizes:
        message, room = torch.zeros(size // 4), torch.zeros(size // 4)
        work[f"reduce {size}"] = lambda message=message: reduce(message)
        work[f"exchange {size}"] = partial(dist.all_to_all_single, room, message)
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(small.rounds + 1):  # the first warms up
        for name, action in work.items():
            dist.barrier()
            began = time.perf_counter()
            action()
            taken = torch.tensor(time.perf_counter() - began, dtype=torch.float64)
            dist.all_reduce(taken, op=dist.ReduceOp.MAX)  # a step lasts until the slower rank has done it
            if turn:
                seconds[name].append(float(taken))
    if rank == 0:
        body = {"seconds": seconds, "gradient_bytes": flat.numel() * 4, "bytes": {"reduce": flat.numel() * 4,
                "exchange": images.numel() * 4}}  # fmt: skip
        (folder / "measured.json").write_text(json.dumps(body))
    dist.destroy_process_group()
