"""Which backend computes each attention layer: timed once at the start, on rank 0, and then the same for all.

Backends add in different orders, so which one is taken shows in the last digits of what is learned. A run therefore
settles it before its first step and keeps it in its record; nothing is ever timed while a network runs.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial

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
MARGIN = 0.9  # of eager's time: what gains less may be noise, and is not worth that two runs of a seed differ
BOUNDS = {torch.float32: (1e-5, 1e-4)}  # relative error of output and gradients against float64
HALF_BOUNDS = (2e-3, 5e-3)
_WORTH_FLOPS = 1e8  # of one forward: what is done within some milliseconds is computed eagerly, untimed
_ROUNDS = 5
_LEAST_ROUNDS = 3
_SECONDS = 1.0  # for one shape; a network has three
_CPU_FLOPS = 4e8  # of one forward: time on a CPU grows with the images, so a few of them tell
_GPU_IMAGES = 64  # enough to fill a GPU
_MOST_LOGITS = 2**28  # of the images timed: 1 GiB in float32, which eager holds several times
_GPU_REPEATS = 10  # of one timing: kernels of some microseconds
_PAUSE_CYCLES = 40_000_000  # of a GPU's clock: some 20 ms


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
    """The fastest backend that is right here, "eager" unless another gains 10 %; timed once per process and question.

    training: forward and backward are timed, else forward alone. A backend that fails, or is further from eager than
    the bounds on both allow, is not taken. The global random generators stay as they are.
    """
    names = [name for name in BACKENDS if available(name, device, dtype, shape.d_k, shape.d_v) is None]
    if names == [EAGER] or shape.batch * shape.flops < _WORTH_FLOPS:
        return EAGER
    with torch.set_grad_enabled(training):
        run = _runner(device, dtype, shape, scale, training)
        expected = run(EAGER)
        names = [name for name in names if name == EAGER or _fault(partial(run, name), expected) is None]
        del expected
        taken = _take_turns({name: partial(run, name) for name in names}, device)
    gains = {name: _sure_gain(taken[name], taken[EAGER]) for name in names}
    best = min(names, key=gains.__getitem__)
    return best if gains[best] < MARGIN else EAGER


def why_not(backend: str, device: torch.device, dtype: torch.dtype, shape: AttentionShape) -> str | None:
    """None where training may use a backend, else the reason why not: `available`'s, or what came of trying it."""
    reason = available(backend, device, dtype, shape.d_k, shape.d_v)
    if reason is not None or backend == EAGER:
        return reason
    with torch.enable_grad():
        run = _runner(device, dtype, shape, 1.0, True)
        return _fault(partial(run, backend), run(EAGER))


def gpu_seconds(action: Callable[[], object], device: torch.device, *, times: int) -> float:
    """Mean time that an action, done `times` times in a row, keeps a GPU.

    The GPU pauses first, so that all of it (up to about a thousand kernels) waits in its queue: what is timed is the
    GPU's own work, not how fast Python asks for it. In a training step, too, that runs ahead.
    """
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    with torch.cuda.device(device):
        torch.cuda.synchronize()
        torch.cuda._sleep(_PAUSE_CYCLES)  # type: ignore[no-untyped-call]
        first.record()
        for _ in range(times):
            action()
        last.record()
        last.synchronize()
    return float(first.elapsed_time(last)) / 1e3 / times


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


def _sure_gain(own: Sequence[float], eager: Sequence[float]) -> float:
    """Time over eager's that all rounds but one of five show at least; of fewer rounds, all.

    Round by round, since what slows the machine for a while slows both.
    """
    ratios = sorted(mine / other for mine, other in zip(own, eager, strict=True))
    return ratios[-1 - len(ratios) // 5]


def _probed_images(device: torch.device, shape: AttentionShape) -> int:
    least = _GPU_IMAGES if device.type != "cpu" else round(_CPU_FLOPS / shape.flops)
    return max(1, min(shape.batch, least, _MOST_LOGITS // (shape.queries * shape.keys)))


def _runner(
    device: torch.device, dtype: torch.dtype, shape: AttentionShape, scale: float, training: bool
) -> Callable[[str], tuple[Tensor, ...]]:
    """Backend → output and, if training, the gradients of its inputs; on some images of the shape's batch."""
    parts, slope = _inputs(device, dtype, replace(shape, batch=_probed_images(device, shape)), training)

    def run(name: str) -> tuple[Tensor, ...]:
        if isinstance(parts, Tensor):
            out = attend_packed(parts, shape.d_k, scale=scale, backend=name)
        else:
            out = attend_apart(*parts, scale=scale, backend=name)
        wanted = [parts] if isinstance(parts, Tensor) else parts
        return (out.detach(), *torch.autograd.grad(out, wanted, slope)) if training else (out,)

    return run


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


def _fault(run: Callable[[], tuple[Tensor, ...]], expected: Sequence[Tensor]) -> str | None:
    """None where a backend runs here, as near to eager as two that both keep the bounds must be; else what it did."""
    failures: tuple[type[Exception], ...] = (RuntimeError, *_triton_errors())
    try:
        found = run()
    except failures as error:
        return f"it failed ({type(error).__name__}: {str(error).partition(chr(10))[0]})"
    forward, backward = BOUNDS.get(found[0].dtype, HALF_BOUNDS)
    bounds = (forward, *[backward] * (len(found) - 1))
    for own, other, bound in zip(found, expected, bounds, strict=True):
        off, whole = float((own.double() - other.double()).norm()), float(other.double().norm())
        if not off <= 2 * bound * whole:
            return f"it is wrong: {off:.1g} off eager's answer of norm {whole:.1g}; {2 * bound:.0g} of it is allowed"
    return None


def _triton_errors() -> tuple[type[Exception], ...]:
    """What Triton raises for kernels that a device cannot run."""
    try:
        return (importlib.import_module("triton.errors").TritonError,)
    except ImportError:
        return ()


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
    if device.type == "cuda":
        return gpu_seconds(action, device, times=_GPU_REPEATS)
    began = time.process_time()  # of all threads: the machine may be busy with others
    action()
    return max(time.process_time() - began, 1e-9)
