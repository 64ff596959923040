"""The fused attention as torch operators: which tiles the kernels take, their launch, their gradients.

Operators (not autograd functions) so that torch.compile takes them whole, without a break in the graph. Tiles are
taken from a table, never timed: a tile decides in which order sums are added, and ranks and resumed runs must add
alike. Where a device has too little shared memory for the first entry, the next smaller one is taken.
"""
# ruff: noqa: ARG001 - what a tracer is told of an operator does not depend on all its arguments

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import triton  # type: ignore[import-untyped]
from torch import Tensor

from mstl.models import attend_triton as kernels

WHOLE = 256  # keys that one block holds: up to here softmax is taken in one pass


@dataclass(frozen=True, kw_only=True, slots=True)
class Tile:
    """Blocks of a kernel: rows (queries), columns (keys), chunk of a head per product, slab of a head per program."""

    rows: int
    columns: int
    chunk: int
    slab: int
    warps: int
    stages: int


# Best guess first; how they fit is measured by compiling for Hopper (227 KB of shared memory, 255 registers a thread).
_HALF = (
    Tile(rows=64, columns=64, chunk=128, slab=256, warps=8, stages=2),
    Tile(rows=64, columns=64, chunk=64, slab=128, warps=8, stages=2),
    Tile(rows=64, columns=64, chunk=64, slab=64, warps=4, stages=1),
    Tile(rows=32, columns=32, chunk=32, slab=32, warps=4, stages=1),
)
_FULL = (
    Tile(rows=32, columns=32, chunk=64, slab=64, warps=4, stages=2),
    Tile(rows=32, columns=32, chunk=32, slab=32, warps=4, stages=1),
    Tile(rows=16, columns=16, chunk=16, slab=16, warps=4, stages=1),
)


def tiles(dtype: torch.dtype, queries: int, keys: int, d_k: int, d_v: int, *, whole: bool) -> tuple[Tile, ...]:
    """The tiles to try in turn, cut to what these shapes fill; `whole`: one block holds all keys."""

    def cut(tile: Tile) -> Tile:
        return Tile(
            rows=min(tile.rows, _power(queries)),
            columns=_power(keys) if whole else min(tile.columns, _power(keys)),
            chunk=min(tile.chunk, _power(max(d_k, d_v))),
            slab=min(tile.slab, 128 if whole else tile.slab, _power(max(d_k, d_v))),
            warps=tile.warps,
            stages=tile.stages,
        )

    return tuple(dict.fromkeys(cut(tile) for tile in (_FULL if dtype == torch.float32 else _HALF)))


def _power(number: int) -> int:
    """The next power of two, at least the 16 that tensor cores need."""
    return max(16, 1 << (number - 1).bit_length())


@cache
def _fits(name: str, device: torch.device, *shape: Any) -> list[int]:
    """A cell with the place of the first tile that was not refused: found once for each kernel, device and shape."""
    return [0]


def _launch(name: str, device: torch.device, choices: tuple[Tile, ...], grid: Any, arguments: tuple[Any, ...],
            constants: dict[str, Any]) -> None:  # fmt: skip
    cell = _fits(name, device, choices, *constants.items())
    while True:
        tile = choices[cell[0]]
        named = {"ROWS": tile.rows, "COLUMNS": tile.columns, "CHUNK": tile.chunk, "SLAB": tile.slab}
        if name == "output_slopes":
            del named["COLUMNS"], named["SLAB"]
        try:
            with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
                getattr(kernels, name)[grid(tile)](
                    *arguments, **constants, **named, num_warps=tile.warps, num_stages=tile.stages
                )
            return
        except triton.OutOfResources:
            if cell[0] + 1 == len(choices):
                raise
            cell[0] += 1


def _rows(tensor: Tensor) -> Tensor:
    """The tensor itself where a row's elements lie side by side, as they do in channels_last memory; else a copy."""
    return tensor if tensor.stride(2) == 1 else tensor.contiguous()


def _places(*tensors: Tensor) -> tuple[int, ...]:
    return tuple(stride for tensor in tensors for stride in tensor.stride()[:2])


def _forward(query: Tensor, key: Tensor, value: Tensor, scale: float, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Output [B, N, d_v]; its rounding error, the same (empty where nothing is rounded or kept); statistics [2, B, N].

    keep: a backward will follow.
    """
    query, key, value = _rows(query), _rows(key), _rows(value)
    (batch, queries, d_k), (keys, d_v) = query.shape, value.shape[1:]
    out = value.new_empty(batch, queries, d_v)
    residual = out.new_empty(out.shape if keep and _is_half(out) else (0, 0, 0), dtype=torch.bfloat16)
    statistics = out.new_empty(2, batch, queries, dtype=torch.float32)
    whole = keys <= WHOLE
    name = "forward_whole" if whole else "forward_online"

    def grid(tile: Tile) -> tuple[int, ...]:
        blocks = triton.cdiv(queries, tile.rows)
        return (blocks, batch) if whole else (blocks, batch, triton.cdiv(d_v, tile.slab))

    arguments = (query, key, value, out, residual, statistics[0], statistics[1], *_places(query, key, value),
                 queries, keys, scale * math.log2(math.e))  # fmt: skip
    constants = {"D_K": d_k, "D_V": d_v, "SPLIT": value.dtype == torch.bfloat16, "RESIDUAL": residual.numel() > 0}
    choices = tiles(value.dtype, queries, keys, d_k, d_v, whole=whole)
    _launch(name, value.device, choices, grid, arguments, constants)
    return out, residual, statistics


def _backward(
    slope: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, residual: Tensor, statistics: Tensor,
    scale: float, query_slope: Tensor, key_slope: Tensor, value_slope: Tensor,
) -> None:  # fmt: skip
    """Write the gradients of query, key and value, given that of the output and all that `_forward` returned."""
    slope, query, key, value = _rows(slope), _rows(query), _rows(key), _rows(value)
    (batch, queries, d_k), (keys, d_v) = query.shape, value.shape[1:]
    choices = tiles(value.dtype, queries, keys, d_k, d_v, whole=False)
    deltas = torch.empty_like(statistics[0])
    _launch("output_slopes", value.device, choices, lambda tile: (triton.cdiv(queries, tile.rows), batch),
            (slope, out, residual, deltas, *_places(slope), queries),
            {"D_V": d_v, "RESIDUAL": residual.numel() > 0})  # fmt: skip
    given = (query, key, value, slope, statistics[0], statistics[1], deltas)
    strides = _places(query, key, value, slope)
    scales = (scale, scale * math.log2(math.e))
    heads = {"D_K": d_k, "D_V": d_v}
    _launch("backward_keys", value.device, choices,
            lambda tile: (triton.cdiv(keys, tile.columns), batch, triton.cdiv(max(d_k, d_v), tile.slab)),
            (*given, key_slope, value_slope, *strides, *_places(key_slope, value_slope), queries, keys, *scales),
            heads)  # fmt: skip
    _launch("backward_queries", value.device, choices,
            lambda tile: (triton.cdiv(queries, tile.rows), batch, triton.cdiv(d_k, tile.slab)),
            (*given, query_slope, *strides, *_places(query_slope), queries, keys, *scales), heads)  # fmt: skip


def _is_half(tensor: Tensor) -> bool:
    return tensor.dtype != torch.float32


def _parts(packed: Tensor, d_k: int) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = torch.split(packed, [d_k, d_k, packed.shape[2] - 2 * d_k], dim=2)
    return query, key, value


def _shapes(query: Tensor, value: Tensor, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """What `_forward` returns, empty: for torch's tracers."""
    out = value.new_empty(*query.shape[:2], value.shape[2])
    residual = out.new_empty(out.shape if keep and _is_half(out) else (0, 0, 0), dtype=torch.bfloat16)
    return out, residual, out.new_empty(2, *query.shape[:2], dtype=torch.float32)


@torch.library.custom_op("mstl::attend", mutates_args=())
def attend_apart(query: Tensor, key: Tensor, value: Tensor, scale: float, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """`_forward` of query [B, N, d_k], key [B, M, d_k], value [B, M, d_v]."""
    return _forward(query, key, value, scale, keep)


@torch.library.custom_op("mstl::attend_backward", mutates_args=())
def attend_apart_backward(
    slope: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, residual: Tensor, statistics: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    slopes = [torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device) for tensor in (query, key, value)]
    _backward(slope, query, key, value, out, residual, statistics, scale, *slopes)
    return slopes[0], slopes[1], slopes[2]


@torch.library.custom_op("mstl::attend_packed", mutates_args=())
def attend_packed(packed: Tensor, d_k: int, scale: float, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """`_forward` of [B, N, d_k + d_k + d_v]: its gradient is written in one piece, where split's would be copied."""
    return _forward(*_parts(packed, d_k), scale, keep)


@torch.library.custom_op("mstl::attend_packed_backward", mutates_args=())
def attend_packed_backward(
    slope: Tensor, packed: Tensor, out: Tensor, residual: Tensor, statistics: Tensor, d_k: int, scale: float
) -> Tensor:
    packed_slope = torch.empty(packed.shape, dtype=packed.dtype, device=packed.device)
    _backward(slope, *_parts(packed, d_k), out, residual, statistics, scale, *_parts(packed_slope, d_k))
    return packed_slope


@attend_apart.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, scale: float, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    return _shapes(query, value, keep)


@attend_apart_backward.register_fake
def _(slope: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, residual: Tensor, statistics: Tensor,
      scale: float) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


@attend_packed.register_fake
def _(packed: Tensor, d_k: int, scale: float, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    query, _, value = _parts(packed, d_k)
    return _shapes(query, value, keep)


@attend_packed_backward.register_fake
def _(slope: Tensor, packed: Tensor, out: Tensor, residual: Tensor, statistics: Tensor, d_k: int,
      scale: float) -> Tensor:  # fmt: skip
    return packed.new_empty(packed.shape)


def _save_apart(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    query, key, value, ctx.scale, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(query, key, value, *output)


def _apart_slopes(ctx: Any, slope: Tensor, *_: None) -> tuple[Tensor | None, ...]:
    return (*attend_apart_backward(slope, *ctx.saved_tensors, ctx.scale), None, None)


def _save_packed(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    packed, ctx.d_k, ctx.scale, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(packed, *output)


def _packed_slopes(ctx: Any, slope: Tensor, *_: None) -> tuple[Tensor | None, ...]:
    return (attend_packed_backward(slope, *ctx.saved_tensors, ctx.d_k, ctx.scale), None, None, None)


attend_apart.register_autograd(_apart_slopes, setup_context=_save_apart)
attend_packed.register_autograd(_packed_slopes, setup_context=_save_packed)
