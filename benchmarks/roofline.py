"""What a device can do at best, measured: bytes copied and FLOPs multiplied a second; and how an action is measured."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mstl.models.choose import gpu_seconds
from shards.errors import MstlError

COPY_BYTES = {"cpu": 2**28, "cuda": 2**31}
"""Of the copied tensor: several times larger than any cache."""
PRODUCT_SIDE = {"cpu": 1536, "cuda": 8192}
TRIES = 7
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True, slots=True)
class Ceilings:
    """The most that was seen: of a large copy, bytes read and written a second; of a large matrix product, FLOPs."""

    bytes_per_second: float
    flops_per_second: float


@dataclass(frozen=True, slots=True)
class Work:
    """What a step must do at least: FLOPs, and bytes with every input read once and every output written once."""

    flops: int
    bytes: int

    def floor_seconds(self, ceilings: Ceilings) -> float:
        """The time below which it cannot be done at these ceilings."""
        return max(self.flops / ceilings.flops_per_second, self.bytes / ceilings.bytes_per_second)


def floor_seconds(steps: Sequence[Work], ceilings: Ceilings) -> float:
    """Of steps one behind the other: each has its own limit."""
    return sum(step.floor_seconds(ceilings) for step in steps)


def total(steps: Sequence[Work]) -> Work:
    """All steps together."""
    return Work(sum(step.flops for step in steps), sum(step.bytes for step in steps))


def measure_ceilings(
    device: torch.device, dtype: torch.dtype, *, copy_bytes: int | None = None, product_side: int | None = None
) -> Ceilings:
    """Copy a large tensor and multiply two large matrices of a dtype, the best of some tries each."""
    source = torch.ones((copy_bytes or COPY_BYTES[device.type]) // 4, dtype=torch.float32, device=device)
    target = torch.zeros_like(source)
    side = product_side or PRODUCT_SIDE[device.type]
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(left)
    copies = best_seconds(lambda: target.copy_(source), device)
    products = best_seconds(lambda: torch.mm(left, right, out=out), device)
    return Ceilings(bytes_per_second=2 * source.nbytes / copies, flops_per_second=2 * side**3 / products)


def best_seconds(action: Callable[[], object], device: torch.device, tries: int = TRIES) -> float:
    """The shortest of some runs, behind one to warm up."""
    action()
    return min(seconds(action, device, times=1) for _ in range(tries))


def seconds(action: Callable[[], object], device: torch.device, *, times: int) -> float:
    """Mean time of an action done `times` times in a row: a GPU's own (`gpu_seconds`), else by the wall clock."""
    if device.type == "cuda":
        return gpu_seconds(action, device, times=times)
    start = time.perf_counter()
    for _ in range(times):
        action()
    return (time.perf_counter() - start) / times


def peak_bytes(action: Callable[[], object], device: torch.device) -> int:
    """The most tensor memory in use during an action beyond what was in use before it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        action()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    # The CPU's allocator keeps no statistics; the profiler sees each allocation, those inside of kernels too.
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        action()
    with tempfile.TemporaryDirectory(prefix="mstl-bench-") as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    changes = [event for event in events if event.get("name") == "[memory]"]
    used = most = 0
    for event in sorted(changes, key=lambda event: float(event["ts"])):
        used += int(event["args"]["Bytes"])
        most = max(most, used)
    return most


def held_bytes(tensors: Sequence[Tensor]) -> int:
    """Bytes of some tensors' memory, memory that they share counted once."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


@contextmanager
def enough_memory() -> Iterator[None]:
    """Say in one line that there was too little: raises MstlError for what torch and Python raise then."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        # The CPU's allocator has no exception of its own.
        known = isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
        if not known:
            raise
        where = "GPU memory" if isinstance(error, torch.OutOfMemoryError) else "memory"
        raise MstlError(where, why="there is too little for this benchmark", remedy="Name a smaller --batch") from error
