"""One attention layer at work: core alone and whole layer, forward and with backward, by each backend in turn."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch

from benchmarks.attention_work import Shape, core_backward, core_forward, layer_backward, layer_forward
from benchmarks.roofline import DTYPES, Ceilings, floor_seconds, peak_bytes, seconds, total
from mstl.models.attend import attend_packed, available
from mstl.models.attention import AttentionBlock, AttentionOptions
from mstl.models.choose import AttentionShape, choose_backend, why_not
from mstl.models.cost import map_sides
from mstl.models.resnet import STAGE_CHANNELS, STAGES

What = Literal["core", "layer"]
Pass = Literal["forward", "training"]
WHATS: tuple[What, ...] = ("core", "layer")
PASSES: tuple[Pass, ...] = ("forward", "training")
EAGER, TORCH = "eager", "sdpa"
_LOGIT_DEVIATION = 2.0  # what the values are does not change the time; they only have to be harmless
_LEAST_SECONDS = {"cpu": 0.05, "cuda": 0.02}
_MOST_TIMES = {"cpu": 200, "cuda": 10}  # a GPU's queue must hold all kernels of a turn
_CHANNELS = dict(zip(STAGES, STAGE_CHANNELS[1:], strict=True))


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A layer position ("res3" …) at an image size, with so many images, in a dtype of `DTYPES`."""

    position: str
    image_size: int
    images: int
    dtype: str

    @property
    def shape(self) -> Shape:
        channels = _CHANNELS[self.position]
        return Shape(
            images=self.images, positions=map_sides(self.image_size)[self.position] ** 2, channels=channels,
            key_width=channels // 2, value_width=channels // 2, value_bytes=DTYPES[self.dtype].itemsize,
        )  # fmt: skip


def measure(
    case: Case, backends: Sequence[str], device: torch.device, ceilings: Ceilings, rounds: int
) -> dict[str, dict[str, Any]]:
    """What → backend → its figures, or {"unavailable": reason}; backends take turns, `rounds` times.

    A backend that is wrong here is not timed, but torch's own, the peer, where it is only less exact ("not_offered").
    """
    dtype, shape = DTYPES[case.dtype], case.shape
    reasons = {name: why_not(name, device, dtype, _at_work(shape)) for name in backends}
    inexact = available(TORCH, device, dtype, shape.key_width, shape.value_width)
    timed = [name for name in backends if reasons[name] is None or (name == TORCH and inexact is not None)]
    found: dict[str, dict[str, Any]] = {}
    for what in WHATS:
        by_pass = {}
        for each in PASSES:
            actions = {name: _action(what, each, case, name, device) for name in timed}
            by_pass[each] = _take_turns(actions, device, rounds)
            for name, action in actions.items():
                by_pass[each][name]["peak_bytes"] = peak_bytes(action, device)
        found[what] = {
            name: {
                **{each: _figures(by_pass[each], name, _floor(what, each, shape, ceilings)) for each in PASSES},
                **({} if reason is None else {"not_offered": reason}),
            }
            if name in timed
            else {"unavailable": reason}
            for name, reason in reasons.items()
        }
    return found


def _take_turns(
    actions: Mapping[str, Callable[[], object]], device: torch.device, rounds: int
) -> dict[str, dict[str, Any]]:
    """Seconds of every action in each round; a turn repeats it until it is long enough for the clock."""
    times = {}
    for name, action in actions.items():
        action()  # finds memory, compiles kernels
        once = max(seconds(action, device, times=1), 1e-7)
        times[name] = max(1, min(_MOST_TIMES[device.type], round(_LEAST_SECONDS[device.type] / once)))
    taken: dict[str, dict[str, Any]] = {name: {"seconds": []} for name in actions}
    for number in range(rounds):
        names = list(actions)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            taken[name]["seconds"].append(seconds(actions[name], device, times=times[name]))
    return taken


def _figures(taken: Mapping[str, Mapping[str, Any]], name: str, floor: Mapping[str, float]) -> dict[str, Any]:
    own = taken[name]["seconds"]
    median = statistics.median(own)
    # Round by round: what slows the machine for a while slows both.
    over_eager = (
        [mine / other for mine, other in zip(own, taken[EAGER]["seconds"], strict=True)] if EAGER in taken else []
    )
    return {
        "ms": [1e3 * value for value in own],
        "median_ms": 1e3 * median,
        "flops_per_second": floor["flops"] / median,
        "bytes_per_second": floor["bytes"] / median,
        "peak_bytes": taken[name]["peak_bytes"],
        "floor_ms": 1e3 * floor["seconds"],
        "over_floor": median / floor["seconds"],
        "over_eager": statistics.median(over_eager) if over_eager else None,
    }


def _floor(what: What, each: Pass, shape: Shape, ceilings: Ceilings) -> dict[str, float]:
    forward, backward = {"core": (core_forward, core_backward), "layer": (layer_forward, layer_backward)}[what]
    steps = (*forward(shape), *(backward(shape) if each == "training" else ()))
    together = total(steps)
    return {"flops": together.flops, "bytes": together.bytes, "seconds": floor_seconds(steps, ceilings)}


def _action(what: What, each: Pass, case: Case, backend: str, device: torch.device) -> Callable[[], object]:
    make = _core if what == "core" else _layer
    return make(each, case, backend, device)


def _core(each: Pass, case: Case, backend: str, device: torch.device) -> Callable[[], object]:
    """What the layer does between its projections, from queries, keys and values side by side in memory."""
    shape, dtype = case.shape, DTYPES[case.dtype]
    packed = torch.randn(shape.images, shape.positions, 2 * shape.key_width + shape.value_width, device=device)
    packed[..., : 2 * shape.key_width] *= _LOGIT_DEVIATION**0.5 / shape.key_width**0.25
    packed = packed.to(dtype).requires_grad_()
    run = partial(attend_packed, packed, shape.key_width, backend=backend)
    if each == "forward":
        return torch.no_grad()(run)
    gradient = torch.randn(shape.images, shape.positions, shape.value_width, device=device).to(dtype)
    return lambda: torch.autograd.grad(run(), packed, gradient)


def _layer(each: Pass, case: Case, backend: str, device: torch.device) -> Callable[[], object]:
    """`AttentionBlock` in training: projections, core, norm, addition; channels_last, weights in float32, autocast."""
    shape, dtype = case.shape, DTYPES[case.dtype]
    side = map_sides(case.image_size)[case.position]
    block = AttentionBlock(shape.channels, AttentionOptions(backend=backend))
    block.to(device).to(memory_format=torch.channels_last).train()
    image = torch.randn(shape.images, shape.channels, side, side, device=device).to(dtype)
    image = image.contiguous(memory_format=torch.channels_last).requires_grad_()
    gradient = torch.randn_like(image)
    inputs = [image, *block.parameters()]

    def run() -> torch.Tensor:
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            out: torch.Tensor = block(image)
        return out

    if each == "forward":
        return torch.no_grad()(run)
    return lambda: torch.autograd.grad(run(), inputs, gradient, allow_unused=True)


def chosen(case: Case, device: torch.device) -> str:
    """The backend that training takes for this layer here, where the recipe leaves it to the machine."""
    return choose_backend(device, DTYPES[case.dtype], _at_work(case.shape))


def _at_work(shape: Shape) -> AttentionShape:
    return AttentionShape(
        batch=shape.images, queries=shape.positions, keys=shape.positions, d_k=shape.key_width, d_v=shape.value_width
    )
