"""O = V·A of eq. 1 by any of three backends that agree within stated bounds; docs/attention.md says when which is used.

Shapes: B images, N queries, M keys. Everything is position-major, [B, N, d]: the transpose of the paper's d x hw
matrices, and how channels_last memory already holds them.
"""

from __future__ import annotations

import importlib.util
import math
import os
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from mstl.precision import no_autocast, widen

BACKENDS = ("eager", "sdpa", "fused")

_HALVES = (torch.bfloat16, torch.float16)
_TRITON_SINCE = (8, 0)  # compute capability: bfloat16 and asynchronous copies


def attention_weights(query: Tensor, key: Tensor, scale: float = 1.0) -> Tensor:
    """Softmax over the keys of every query of scale · q·k: [B, N, d_k], [B, M, d_k] → [B, N queries, M keys].

    The transpose of eq. 1's A, which has no scale. At least float32, autocast or not: unscaled logits are large.
    """
    with no_autocast(query):
        logits = widen(query) @ widen(key).mT
        return torch.softmax(logits if scale == 1 else logits * scale, dim=2)


def attend(query: Tensor, key: Tensor, value: Tensor, *, scale: float = 1.0, backend: str = "eager") -> Tensor:
    """O = V·A: query [B, N, d_k], key [B, M, d_k], value [B, M, d_v] → [B, N, d_v] in the dtype of `value`.

    scale: factor of the logits, above 0 (eq. 1: none). backend: of BACKENDS, and `available` for these tensors.
    """
    if backend == "eager":
        weights = attention_weights(query, key, scale)
        with no_autocast(value):
            return (weights @ widen(value)).to(value.dtype)
    if backend == "sdpa":
        with no_autocast(value):
            # One head: torch's flash kernels take four dimensions only.
            heads = (query.unsqueeze(1), key.unsqueeze(1), value.unsqueeze(1))
            return F.scaled_dot_product_attention(*heads, scale=scale).squeeze(1)
    assert backend == "fused", f"backend {backend!r} is not one of {BACKENDS}"
    from mstl.models.attend_fused import attend_apart

    out: Tensor = attend_apart(query, key, value, scale, _keep(query, key, value))[0]
    return out


def attend_packed(packed: Tensor, d_k: int, *, scale: float = 1.0, backend: str = "eager") -> Tensor:
    """`attend` of queries, keys and values side by side, [B, N, d_k + d_k + d_v] → [B, N, d_v]."""
    if backend != "fused":
        query, key, value = torch.split(packed, [d_k, d_k, packed.shape[2] - 2 * d_k], dim=2)
        return attend(query, key, value, scale=scale, backend=backend)
    from mstl.models.attend_fused import attend_packed as fused

    out: Tensor = fused(packed, d_k, scale, _keep(packed))[0]
    return out


def available(backend: str, device: torch.device, dtype: torch.dtype, d_k: int, d_v: int) -> str | None:
    """None where a backend may be used, else the reason why not: it cannot run, or would miss the bounds on its error.

    d_k, d_v: widths of a key and a value. Raises ValueError for an unknown backend.
    """
    if backend == "eager":
        return None
    if backend == "sdpa":
        if dtype == torch.bfloat16:
            return "torch's kernels keep weights and output in bfloat16 alone, which costs too many digits"
        return None
    if backend != "fused":
        raise ValueError(f"backend {backend!r} is not one of {BACKENDS}")
    if dtype not in (torch.float32, *_HALVES):
        return f"the kernels know no {_name(dtype)}"
    if min(d_k, d_v) < 1:
        return "there is nothing to attend to"
    if not _has_triton():
        return "Triton is not installed"
    if device.type == "cpu":
        return None if _interpreted() else "the kernels need a GPU"
    if device.type != "cuda" or torch.version.cuda is None:
        return f"the kernels were written for NVIDIA GPUs, not for {device.type}"
    if torch.cuda.get_device_capability(device) < _TRITON_SINCE:
        return "the kernels need compute capability 8.0 or newer"
    return None


def _keep(*tensors: Tensor) -> bool:
    """Whether a backward may follow."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _interpreted() -> bool:
    """Whether Triton's interpreter stands in for a GPU (slow: for tests)."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


def root_scale(d_k: int) -> float:
    """1/√d_k, by which transformers and the official non-local networks divide logits; eq. 1 does not."""
    return 1 / math.sqrt(d_k)
