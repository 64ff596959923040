"""Where a step goes: a torch profiler trace of our engine, every moment of it counted to one part of the work.

Parts are named by ranges around modules and functions; what backward does belongs to the part whose forward it undoes
(autograd numbers its nodes). On a CPU the parts are the time of the thread that trains, its own waiting included, and
sum to the step. On a GPU they are the time of kernels, and what no kernel fills is "idle".
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.profiler import ProfilerActivity, record_function

from benchmarks.train_sides import Side
from mstl.models.resnet import ResNet
from mstl.ssl import moco

PREFIX = "mstl: "
WARM_UP, STEPS = 2, 3
STEP, WAIT, OPTIMIZER, GRADIENTS = "step", "data wait", "optimizer", "gradients"
CONV, NORM, REST, HOST = "convolutions", "norms", "activations, additions, casts", "between operations"
HEAD, KEYS, EMA, QUEUE, CONTRAST, IDLE = "head and loss", "key encoder", "EMA", "queue", "contrastive loss", "idle"
_BACKBONE = "backbone"
_BACKWARD = "autograd::engine::evaluate_function: "


def profile(side: Side, feed: str, on: torch.device, trace: Path | None) -> dict[str, Any]:
    """Parts of a step → ms of one, their sum and shares; every rank calls it, the one with a trace watches.

    The trace is what chrome://tracing and Perfetto read. Profiling slows a step down: shares are what counts.
    """
    with closing(side.feeds[feed]()) as batches, _labelled(side) as label:

        def step() -> None:
            with label(STEP):
                with label(WAIT):
                    batch = next(batches)
                side.step(batch)
                if on.type == "cuda":
                    torch.cuda.synchronize(on)

        for _ in range(WARM_UP):
            step()
        dist.barrier()
        if trace is None:
            for _ in range(STEPS):
                step()
            return {}
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on.type == "cuda" else [])]
        with torch.profiler.profile(activities=activities) as profiler:
            for _ in range(STEPS):
                step()
    profiler.export_chrome_trace(str(trace))
    return {"trace": trace.name, **summarise(profiler.events(), gpu=on.type == "cuda")}


def summarise(events: Any, *, gpu: bool) -> dict[str, Any]:
    """Parts → ms of a step, of profiler events with ranges around steps and parts."""
    own = [event for event in events if event.device_type == DeviceType.CPU and not event.is_async]
    forward = {}
    for event in own:  # in the order of their starts: the last of a number is the one that made the node
        if event.sequence_nr >= 0 and _backward(event) is None:
            forward[event.sequence_nr] = event
    parts: dict[str, float] = defaultdict(float)
    steps = [event for event in own if event.name == PREFIX + STEP]
    for event in own:
        part = _part(event, forward)
        if part is not None:
            parts[part] += event.self_device_time_total if gpu else event.self_cpu_time_total
    total = sum(event.cpu_time_total for event in steps)
    if gpu:
        # Kernels of several streams may overlap: then there is none, and the parts exceed the step.
        parts[IDLE] = max(0.0, total - sum(parts.values()))
    found = {name: time / 1e3 / len(steps) for name, time in sorted(parts.items(), key=lambda item: -item[1]) if time}
    whole = sum(found.values())
    return {
        "steps": len(steps),
        "step_ms": total / 1e3 / len(steps),
        "parts_ms": found,
        "shares": {name: time / whole for name, time in found.items()},
    }


def _part(event: Any, forward: Mapping[int, Any]) -> str | None:
    """The part that an event's own time belongs to; None outside of steps."""
    if not _within_a_step(event):
        return None
    backward = _backward(event)
    if backward is None:
        return _forward_part(event)
    if "AccumulateGrad" in backward.name:
        return GRADIENTS
    origin = forward.get(backward.sequence_nr)
    return HOST if origin is None else _forward_part(origin)


def _forward_part(event: Any) -> str:
    """By the nearest range; within a backbone by the operation called there."""
    called, above = event, event
    while above is not None:
        if above.name.startswith("Optimizer."):
            return OPTIMIZER
        if above.name.startswith(PREFIX):
            label: str = above.name.removeprefix(PREFIX)
            if label == _BACKBONE:
                return HOST if called is above else _kind(called.name)
            return HOST if label == STEP else label
        called, above = above, above.cpu_parent
    return HOST


def _kind(operation: str) -> str:
    if "conv" in operation:
        return CONV
    return NORM if "norm" in operation else REST


def _backward(event: Any) -> Any:
    """The autograd node that an event is part of."""
    while event is not None and not event.name.startswith(_BACKWARD):
        event = event.cpu_parent
    return event


def _within_a_step(event: Any) -> bool:
    while event is not None:
        if event.name == PREFIX + STEP:
            return True
        # A GPU's backward runs in a thread of its own, outside of the step's range.
        if event.name.startswith(_BACKWARD):
            return True
        event = event.cpu_parent
    return False


@contextmanager
def _labelled(side: Side) -> Iterator[Callable[[str], Any]]:
    """Ranges around the parts of a side's module and engine, as long as the context lasts."""
    assert side.engine is not None
    module = side.engine.module
    with ExitStack() as stack:
        _watch(stack, module, HEAD)
        for name, child in module.named_modules():
            if isinstance(child, ResNet) and name.startswith("key_"):
                continue  # all of it is one part
            if isinstance(child, ResNet):
                _watch(stack, child, _BACKBONE)
                for stage, blocks in child.attention.items():
                    _watch(stack, blocks, f"attention {stage}")
        _wrap(stack, side.engine, "_step", GRADIENTS)
        if isinstance(module, moco.MomentumContrast):
            _wrap(stack, module, "_update_key_encoder", EMA)
            _wrap(stack, module, "_encode_keys", KEYS)
            _wrap(stack, module.queue, "push", QUEUE)
            _wrap(stack, module.queue, "negatives_mask", QUEUE)
            _wrap(stack, moco, "contrastive_logits", CONTRAST)
            _wrap(stack, moco, "positive_first_loss", CONTRAST)
        yield lambda label: record_function(PREFIX + label)


def _watch(stack: ExitStack, module: nn.Module, label: str) -> None:
    """A range around every forward of a module."""
    opened: list[Any] = []

    def enter(*_: Any) -> None:
        opened.append(record_function(PREFIX + label))
        opened[-1].__enter__()

    def leave(*_: Any) -> None:
        opened.pop().__exit__(None, None, None)

    stack.callback(module.register_forward_pre_hook(enter).remove)
    stack.callback(module.register_forward_hook(leave).remove)


def _wrap(stack: ExitStack, owner: Any, name: str, label: str) -> None:
    """A range around every call of a function that an object or a module of Python has under this name."""
    original = getattr(owner, name)
    instance = name in vars(owner)

    def ranged(*arguments: Any, **named: Any) -> Any:
        with record_function(PREFIX + label):
            return original(*arguments, **named)

    setattr(owner, name, ranged)
    stack.callback(setattr, owner, name, original) if instance else stack.callback(delattr, owner, name)
