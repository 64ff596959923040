"""Random attention problems, their float64 answers, and how far a backend's are from them."""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

BOUNDS = {torch.float32: (1e-5, 1e-4), torch.bfloat16: (2e-3, 5e-3), torch.float16: (2e-3, 5e-3)}
"""Of output and gradients: norm of the error over norm of the answer."""
PARTS = ("output", "query", "key", "value")


def new_seed() -> int:
    """A seed of its own for every run of the tests, shown where one fails."""
    seed = random.SystemRandom().randrange(2**31)
    sys.stdout.write(f"seed {seed}\n")
    return seed


KINDS = ("soft", "peaked", "large")


def problem(
    seed: int, batch: int, queries: int, keys: int, d_k: int, d_v: int, dtype: torch.dtype, kind: str
) -> tuple[list[Tensor], Tensor]:
    """Query, key and value side by side in memory as a projection leaves them, and a gradient of the output.

    Logits have a deviation of 1 (soft) or 20 (peaked), of hundreds (large) or thousands (huge): softmax is nearly
    one-hot then. A float32 logit of 1,000 is rounded by up to 3e-5 whatever computes it, which alone would use up the
    bounds; so large queries and keys are whole numbers, whose products are exact in every dtype.
    """
    generator = torch.Generator().manual_seed(seed)
    packed = torch.randn(batch, max(queries, keys), 2 * d_k + d_v, generator=generator)
    attended = packed[..., : 2 * d_k]
    if kind in ("large", "huge"):
        variance = (100 if kind == "large" else 1000) / d_k**0.5
        most = math.ceil((3 * variance + 0.25) ** 0.5 - 0.5)  # whole numbers up to this have most (most + 1) / 3
        attended.copy_(torch.randint(-most, most + 1, attended.shape, generator=generator))
    else:
        attended *= (20.0 if kind == "peaked" else 1.0) ** 0.5 / d_k**0.25
    query, key, value = torch.split(packed.to(dtype), [d_k, d_k, d_v], dim=2)
    slope = torch.randn(batch, queries, d_v, generator=generator).to(dtype)
    return [query[:, :queries], key[:, :keys], value[:, :keys]], slope


def answer(parts: Sequence[Tensor], slope: Tensor, scale: float = 1.0) -> list[Tensor]:
    """Output and gradients of query, key and value in float64, from the same rounded inputs."""
    query, key, value = (part.detach().double().requires_grad_() for part in parts)
    out = torch.softmax(scale * query @ key.mT, dim=2) @ value
    return [out.detach(), *torch.autograd.grad(out, (query, key, value), slope.double())]


def found(attend: Callable[..., Tensor], parts: Sequence[Tensor], slope: Tensor) -> list[Tensor]:
    """The same by a backend."""
    leaves = [part.detach().requires_grad_() for part in parts]
    out = attend(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, slope)]


def errors(own: Sequence[Tensor], expected: Sequence[Tensor]) -> dict[str, float]:
    """Norm of the difference over norm of the answer, of each part; inf where anything is not finite."""
    return {
        name: float((one.double() - other).norm() / other.norm()) if bool(one.isfinite().all()) else float("inf")
        for name, one, other in zip(PARTS, own, expected, strict=True)
    }


def too_far(measured: dict[str, float], dtype: torch.dtype) -> dict[str, float]:
    """Those that pass their bound."""
    forward, backward = BOUNDS[dtype]
    return {name: error for name, error in measured.items() if not error <= (forward if name == "output" else backward)}
