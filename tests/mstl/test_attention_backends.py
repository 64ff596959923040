"""Backends against float64: output and gradients, soft and nearly one-hot; and which are offered."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from attention_cases import BOUNDS, KINDS, answer, errors, found, new_seed, problem, too_far

from mstl.models.attend import BACKENDS, attend, available

CPU = torch.device("cpu")
# batch, queries, keys, d_k, d_v: the three layers at 224 pixels (the first with fewer positions), and odd ones
SHAPES = {
    "res3": (1, 400, 400, 256, 256),
    "res4": (2, 196, 196, 512, 512),
    "res5": (8, 49, 49, 1024, 1024),
    "odd": (6, 67, 67, 40, 40),
    "unequal widths": (6, 65, 65, 24, 72),
    "pooled": (5, 100, 25, 64, 64),
    "one key": (64, 9, 1, 8, 200),
}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_keeps_its_bounds(backend: str, shape: str, dtype: torch.dtype, kind: str) -> None:
    batch, queries, keys, d_k, d_v = SHAPES[shape]
    if available(backend, CPU, dtype, d_k, d_v) is not None:
        pytest.skip("not offered")
    parts, slope = problem(new_seed(), batch, queries, keys, d_k, d_v, dtype, kind)
    logits = (parts[0].double() @ parts[1].double().mT).abs().amax()
    assert logits > {"soft": 1, "peaked": 20, "large": 200}[kind]
    own = found(partial(attend, backend=backend), parts, slope)
    expected = answer(parts, slope)
    measured = errors(own, expected)
    if keys == 1:  # all attention is on the one key: nothing to learn of queries and keys
        assert float(own[1].abs().amax()) == float(own[2].abs().amax()) == 0
        del measured["query"], measured["key"]
    assert not too_far(measured, dtype), measured


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_scales_logits(backend: str) -> None:
    parts, slope = problem(new_seed(), 2, 30, 30, 16, 16, torch.float32, "peaked")
    measured = errors(found(partial(attend, backend=backend, scale=0.25), parts, slope), answer(parts, slope, 0.25))
    assert not too_far(measured, torch.float32), measured
    plain = attend(*parts, backend=backend)
    assert not torch.allclose(plain, attend(*parts, backend=backend, scale=0.25), rtol=0.1)


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_is_as_exact_under_autocast(backend: str) -> None:
    parts, slope = problem(new_seed(), 2, 40, 40, 16, 16, torch.float32, "peaked")

    def inside(*tensors: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return attend(*tensors, backend=backend)

    measured = errors(found(inside, parts, slope), answer(parts, slope))
    assert not too_far(measured, torch.float32), measured


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_logits_beyond_float16_neither_overflow_nor_lose_the_output(backend: str, dtype: torch.dtype) -> None:
    parts, slope = problem(new_seed(), 2, 80, 80, 64, 48, dtype, "huge")
    parts[0] = (parts[0] * 32).to(dtype)
    logits = (parts[0].double() @ parts[1].double().mT).abs().amax()
    assert logits > torch.finfo(torch.float16).max
    own, expected = found(partial(attend, backend=backend), parts, slope), answer(parts, slope)
    assert all(bool(part.isfinite().all()) for part in own)
    measured = errors(own, expected)
    assert measured["output"] <= BOUNDS[dtype][0]
    assert measured["value"] <= BOUNDS[dtype][1]


def test_torchs_kernels_miss_the_bounds_in_bfloat16_which_keeps_them_from_being_offered() -> None:
    """Where this fails, torch has become more exact: offer it."""
    assert available("sdpa", CPU, torch.bfloat16, 256, 256) is not None
    missed = set()
    for kind in ("soft", "large"):
        parts, slope = problem(7, 1, 400, 400, 256, 256, torch.bfloat16, kind)
        measured = errors(found(partial(attend, backend="sdpa"), parts, slope), answer(parts, slope))
        missed |= set(too_far(measured, torch.bfloat16))
    assert missed >= {"output", "query", "key"}


def test_what_is_offered_where() -> None:
    for dtype in (*DTYPES, torch.float64):
        assert available("eager", CPU, dtype, 8, 8) is None
    for dtype in (torch.float32, torch.float16, torch.float64):
        assert available("sdpa", CPU, dtype, 8, 8) is None
    assert "bfloat16" in str(available("sdpa", CPU, torch.bfloat16, 8, 8))
    assert available("fused", CPU, torch.float32, 8, 8) == "the kernels need a GPU"
    assert "float64" in str(available("fused", CPU, torch.float64, 8, 8))
    with pytest.raises(ValueError, match="flash"):
        available("flash", CPU, torch.float32, 8, 8)
    assert BACKENDS == ("eager", "sdpa", "fused")


def test_eager_is_the_equation_as_torch_has_it() -> None:
    query, key, value = (torch.randn(2, 9, 4, dtype=torch.float64) for _ in range(3))
    expected = F.scaled_dot_product_attention(query, key, value, scale=1.0)
    torch.testing.assert_close(attend(query, key, value), expected, rtol=0, atol=1e-12)
