"""Which backend computes each attention layer: timed once at the start, on rank 0, and then the same for all.

Backends add in different orders, so which one is taken shows in the last digits of what is learned. A run therefore
settles it before its first step and keeps it in its record; nothing is ever timed while a network runs.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
import torch.distributed as dist
from torch import Tensor

from mstl.distributed import rank, world_size
from mstl.failures import EveryRankError
from mstl.models.attend import BACKENDS, attend_packed, available
from mstl.models.attend import attend as attend_apart
from mstl.models.attention import AUTO, SelfAttention2d
from mstl.models.cost import map_sides
from mstl.models.resnet import ResNet

EAGER = "eager"
MARGIN = 0.97  # of eager's time: what gains less than 3 % may be noise
BOUNDS = {torch.float32: (1e-5, 1e-4)}  # relative error of output and gradients against float64
HALF_BOUNDS = (2e-3, 5e-3)
_WORTH_FLOPS = 1e8  # of one forward: what is done within some milliseconds is computed eagerly, untimed
_ROUNDS = 5
_LEAST_ROUNDS = 3
_SECONDS = 0.3  # for one shape; a network has three
_CPU_FLOPS = 4e8  # of one forward: time on a CPU grows with the images, so a few of them tell
_GPU_IMAGES = 64  # enough to fill a GPU
_GPU_REPEATS = 10  # of one timing: kernels of some microseconds


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionShape:
    """One attention layer at work: images, queries and keys of an image, widths of a key and of a value."""

    batch: int
    queries: int
    keys: int
    d_k: int
    d_v: int

    @property
    def flops(self) -> int:
        """Of the two products of one image, forward."""
        return 2 * self.queries * self.keys * (self.d_k + self.d_v)


@cache
def choose_backend(
    device: torch.device, dtype: torch.dtype, shape: AttentionShape, *, scale: float = 1.0, training: bool = True
) -> str:
    """The fastest backend that is right here, "eager" unless another gains 3 %; timed once per process and question.

    training: forward and backward are timed, else forward alone. A backend that fails, or is further from eager than
    the bounds on both allow, is not taken. The global random generators stay as they are.
    """
    names = [name for name in BACKENDS if available(name, device, dtype, shape.d_k, shape.d_v) is None]
    if names == [EAGER] or shape.batch * shape.flops < _WORTH_FLOPS:
        return EAGER
    seen = replace(shape, batch=_probed_images(device, shape))
    parts, slope = _inputs(device, dtype, seen, training)

    def run(name: str) -> tuple[Tensor, ...]:
        if isinstance(parts, Tensor):
            out = attend_packed(parts, shape.d_k, scale=scale, backend=name)
        else:
            out = attend_apart(*parts, scale=scale, backend=name)
        wanted = [parts] if isinstance(parts, Tensor) else parts
        return (out, *torch.autograd.grad(out, wanted, slope)) if training else (out,)

    with torch.set_grad_enabled(training):
        expected = run(EAGER)
        names = [name for name in names if name == EAGER or _right(lambda name=name: run(name), expected)]  # type: ignore[misc]
        del expected
        taken = _take_turns({name: _action(run, name) for name in names}, device)
    # Round by round, since what slows the machine for a while slows both; and in all rounds but one, lest luck decide.
    gains = {
        name: sorted(own / eager for own, eager in zip(taken[name], taken[EAGER], strict=True))[-2] for name in names
    }
    best = min(names, key=gains.__getitem__)
    return best if gains[best] < MARGIN else EAGER


def fix_backends(
    network: ResNet,
    *,
    device: torch.device,
    dtype: torch.dtype,
    image_size: int,
    batch: int,
    recorded: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Give every attention layer of a network the backend it will run by; returns {layer: backend}, equal on all ranks.

    All ranks call it; the first one decides. A layer that names its backend keeps it. An "auto" layer takes the one
    `recorded` by an earlier start of the run where that can be had here, else `choose_backend`'s for training on
    `batch` images of a rank. Raises MstlError on all ranks where a named backend is not available.
    """
    layers = dict(network.attention_layers())
    for layer in layers.values():
        if layer.backend != AUTO:
            _check(layer, device, dtype)
    decided = [_decide(layers, device, dtype, image_size, batch, recorded or {}) if rank() == 0 else {}]
    if world_size() > 1:
        dist.broadcast_object_list(decided, src=0)
    for name, layer in layers.items():
        layer.backend = decided[0][name]
    return decided[0]


def _decide(
    layers: Mapping[str, SelfAttention2d],
    device: torch.device,
    dtype: torch.dtype,
    image_size: int,
    batch: int,
    recorded: Mapping[str, str],
) -> dict[str, str]:
    sides = map_sides(image_size)
    decided = {}
    for name, layer in layers.items():
        before = recorded.get(name)
        if layer.backend != AUTO:
            decided[name] = layer.backend
        elif before in BACKENDS and _reason(before, layer, device, dtype) is None:
            decided[name] = before
        else:
            side = sides[name.partition(".")[0]]
            down, across = layer.grid(side, side)
            shape = AttentionShape(
                batch=batch, queries=side * side, keys=down * across, d_k=layer.key_channels, d_v=layer.value_channels
            )
            decided[name] = choose_backend(device, dtype, shape, scale=layer.scale)
    return decided


def _reason(backend: str, layer: SelfAttention2d, device: torch.device, dtype: torch.dtype) -> str | None:
    return available(backend, device, dtype, layer.key_channels, layer.value_channels)


def _check(layer: SelfAttention2d, device: torch.device, dtype: torch.dtype) -> None:
    reason = _reason(layer.backend, layer, device, dtype)
    if reason is not None:
        raise EveryRankError(
            f"model.attention_backend={layer.backend}",
            why=f"on {device.type} in {str(dtype).removeprefix('torch.')} it cannot be used: {reason}",
            remedy="Use model.attention_backend=auto",
        )


def _probed_images(device: torch.device, shape: AttentionShape) -> int:
    if device.type != "cpu":
        return min(shape.batch, _GPU_IMAGES)
    return max(1, min(shape.batch, round(_CPU_FLOPS / shape.flops)))


def _inputs(
    device: torch.device, dtype: torch.dtype, shape: AttentionShape, training: bool
) -> tuple[Tensor | tuple[Tensor, ...], Tensor]:
    """Queries, keys and values as the layer has them, logits of deviation 1, and a gradient of the output."""
    generator = torch.Generator(device).manual_seed(0)  # one of its own: a run's random numbers stay as they are

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, device=device)

    slope = draw(shape.batch, shape.queries, shape.d_v).to(dtype)
    shrink = shape.d_k**-0.25
    query = draw(shape.batch, shape.queries, shape.d_k) * shrink
    key, value = draw(shape.batch, shape.keys, shape.d_k) * shrink, draw(shape.batch, shape.keys, shape.d_v)
    if shape.queries == shape.keys:
        return torch.cat((query, key, value), dim=2).to(dtype).requires_grad_(training), slope
    return tuple(part.to(dtype).requires_grad_(training) for part in (query, key, value)), slope


def _right(run: Callable[[], tuple[Tensor, ...]], expected: Sequence[Tensor]) -> bool:
    """Whether a backend runs here, and as near to eager as two that both keep the bounds must be."""
    failures: tuple[type[Exception], ...] = (RuntimeError, *_triton_errors())
    try:
        found = run()
    except failures:
        return False
    forward, backward = BOUNDS.get(found[0].dtype, HALF_BOUNDS)
    bounds = (forward, *[backward] * (len(found) - 1))
    return all(
        bool((own.double() - other.double()).norm() <= 2 * bound * other.double().norm())
        for own, other, bound in zip(found, expected, bounds, strict=True)
    )


def _triton_errors() -> tuple[type[Exception], ...]:
    """What Triton raises for kernels that a device cannot run."""
    try:
        return (importlib.import_module("triton.errors").TritonError,)
    except ImportError:
        return ()


def _action(run: Callable[[str], object], name: str) -> Callable[[], object]:
    return lambda: run(name)


def _take_turns(actions: Mapping[str, Callable[[], object]], device: torch.device) -> dict[str, list[float]]:
    """Seconds of each action, taken in turns; as many rounds as there is time for, at least `_LEAST_ROUNDS`."""
    taken: dict[str, list[float]] = {name: [] for name in actions}
    for number in range(_ROUNDS):
        for name, action in actions.items():
            taken[name].append(_seconds(action, device))
        if number + 1 >= _LEAST_ROUNDS and sum(map(sum, taken.values())) > _SECONDS:
            break
    return taken


def _seconds(action: Callable[[], object], device: torch.device) -> float:
    if device.type != "cuda":
        began = time.process_time()  # of all threads: the machine may be busy with others
        action()
        return max(time.process_time() - began, 1e-9)
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    first.record()
    for _ in range(_GPU_REPEATS):
        action()
    last.record()
    last.synchronize()
    return float(first.elapsed_time(last)) / 1000 / _GPU_REPEATS
