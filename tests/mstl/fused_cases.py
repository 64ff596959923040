"""The fused kernels under Triton's interpreter, in a process of its own: prints a line of JSON for each case.

TRITON_INTERPRET must be set before the kernels are imported, and would change every Triton kernel of the process.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from functools import partial

os.environ["TRITON_INTERPRET"] = "1"

import torch
from attention_cases import answer, errors, found, new_seed, problem, too_far
from torch import Tensor

from mstl.models.attend import attend, attend_packed, available
from mstl.models.attention import SelfAttention2d

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
# batch, queries, keys, d_k, d_v, dtype, kind of the logits, scale
QUICK = {
    "whole": (2, 49, 49, 64, 64, BF16, "soft", 1.0),
    "whole, large logits": (3, 100, 100, 32, 32, BF16, "large", 1.0),
    "online": (1, 70, 270, 32, 32, BF16, "soft", 1.0),
    "online, large logits": (3, 100, 270, 16, 32, BF16, "large", 1.0),
    "slabs": (1, 30, 30, 300, 300, BF16, "soft", 1.0),
    "fp32 whole": (2, 50, 50, 96, 96, FP32, "soft", 1.0),
    "fp32 online, large logits": (3, 80, 270, 32, 32, FP32, "large", 1.0),
    "fp16": (5, 70, 70, 32, 32, FP16, "large", 1.0),
    "odd widths": (2, 67, 33, 24, 72, BF16, "soft", 0.2),
    "narrow values": (2, 20, 20, 300, 20, BF16, "soft", 1.0),
    "online, pooled, scaled": (1, 40, 260, 40, 24, FP32, "peaked", 0.3),
}
LONG = {
    "res3 at 224 pixels": (1, 784, 784, 256, 256, BF16, "soft", 1.0),
    "res4 at 224 pixels": (1, 196, 196, 512, 512, BF16, "large", 1.0),
    "res5 at 224 pixels": (8, 49, 49, 1024, 1024, BF16, "large", 1.0),
    "res5 at 448 pixels": (1, 196, 196, 1024, 1024, FP16, "soft", 1.0),
}


def case(name: str) -> dict[str, object]:
    batch, queries, keys, d_k, d_v, dtype, kind, scale = {**QUICK, **LONG}[name]
    assert available("fused", torch.device("cpu"), dtype, d_k, d_v) is None
    seed = new_seed()
    parts, slope = problem(seed, batch, queries, keys, d_k, d_v, dtype, kind)
    measured = errors(found(partial(attend, scale=scale, backend="fused"), parts, slope), answer(parts, slope, scale))
    return {"seed": seed, "errors": measured, "too_far": too_far(measured, dtype)}


def packed() -> dict[str, object]:
    """The packed form is the other bit for bit, in its gradient too, which is one piece of memory."""
    parts, slope = problem(new_seed(), 2, 40, 40, 24, 56, BF16, "soft")
    apart = found(partial(attend, backend="fused"), parts, slope)
    leaf = torch.cat(parts, dim=2).requires_grad_()
    out = attend_packed(leaf, 24, backend="fused")
    (gradient,) = torch.autograd.grad(out, leaf, slope)
    return {"equal": torch.equal(out, apart[0]) and torch.equal(gradient, torch.cat(apart[1:], dim=2)),
            "layout": gradient.is_contiguous()}  # fmt: skip


def inference() -> dict[str, object]:
    """Without gradients nothing is kept for them, and the output is the same."""
    parts, _ = problem(new_seed(), 1, 40, 40, 24, 24, BF16, "soft")
    trained = attend(*(part.detach().requires_grad_() for part in parts), backend="fused")
    from mstl.models.attend_fused import attend_apart

    kept = attend_apart(*parts, 1.0, False)
    return {"equal": torch.equal(trained.detach(), kept[0]), "kept": kept[1].numel()}


def layer() -> dict[str, object]:
    """The layer by eager and by the kernels, pooled or not, on maps in either memory format."""
    far = {}
    for pool in (1, 2):
        for memory in (torch.channels_last, torch.contiguous_format):
            torch.manual_seed(new_seed())
            module = SelfAttention2d(16, pool=pool)
            torch.nn.init.normal_(module.qkv.weight)
            x = torch.randn(2, 16, 7, 5).contiguous(memory_format=memory).requires_grad_()
            results = []
            for backend in ("eager", "fused"):
                module.backend = backend
                out = module(x)
                results.append([out, *torch.autograd.grad(out.square().sum(), [x, module.qkv.weight])])
            far[f"{pool} {memory}"] = [
                float(((a - b).norm() / a.norm()).detach()) for a, b in zip(*results, strict=True)
            ]
    return far


def operators() -> dict[str, object]:
    """torch's own checks of an operator: schema, shapes for tracers, autograd; and a graph without a break."""
    from mstl.models.attend_fused import attend_apart
    from mstl.models.attend_fused import attend_packed as operator

    parts, _ = problem(new_seed(), 1, 18, 18, 16, 24, FP32, "soft")
    leaves = [part.detach().requires_grad_() for part in parts]
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(attend_apart, (*leaves, 1.0, True), test_utils=tests)
    leaf = torch.cat(parts, dim=2).requires_grad_()
    torch.library.opcheck(operator, (leaf, 16, 1.0, True), test_utils=tests)
    module = SelfAttention2d(8, backend="fused")
    x = torch.randn(2, 8, 4, 4)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    expected, own = module(x), compiled(x)
    own.sum().backward()
    return {"equal": torch.allclose(own, expected), "strides": own.stride() == expected.stride()}


def chosen() -> dict[str, object]:
    """A device with too little shared memory for a tile takes the next; a backend that is wrong is not chosen."""
    import triton

    from mstl.models import attend_fused, attend_triton

    parts, slope = problem(new_seed(), 1, 70, 70, 64, 64, FP32, "soft")
    plain = attend_triton.forward_whole
    refused: list[int] = []

    class Small:
        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            def launch(*arguments: object, **named: object) -> None:
                if named["CHUNK"] != 16:
                    refused.append(int(str(named["CHUNK"])))
                    raise triton.OutOfResources(1, 0, "shared memory")
                plain[grid](*arguments, **named)

            return launch

    attend_triton.forward_whole = Small()
    attend_fused._fits.cache_clear()
    measured = errors(found(partial(attend, backend="fused"), parts, slope), answer(parts, slope))
    attend(*parts, backend="fused")
    attend_triton.forward_whole = plain
    return {"refused": refused, "too_far": too_far(measured, FP32)}


def nonfinite() -> dict[str, object]:
    """What is not a number stays one, as in eager: a diverged run is noticed."""
    parts, _ = problem(new_seed(), 1, 20, 20, 16, 16, FP32, "soft")
    query = parts[0].clone()
    query[0, 3, 2] = float("nan")
    out: Tensor = attend(query, *parts[1:], backend="fused")
    lost = out.isnan().all(2)[0]
    return {"rows": lost.nonzero().flatten().tolist()}


def negative() -> dict[str, object]:
    """All logits near -200, in blocks that are not full: what lies outside of the keys must not count as 0 there."""
    parts, slope = problem(new_seed(), 1, 20, 20, 16, 16, FP32, "soft")
    parts[:2] = ((part * 8).round() / 8 for part in parts[:2])  # whose products are exact
    parts[0][..., 0], parts[1][..., 0] = 16, -12.5
    measured = errors(found(partial(attend, backend="fused"), parts, slope), answer(parts, slope))
    return {"errors": measured, "too_far": too_far(measured, FP32)}


def tell(name: str, what: dict[str, object]) -> None:
    sys.stdout.write(json.dumps({"case": name, **what}) + "\n")


EXTRA = (packed, inference, layer, operators, chosen, nonfinite, negative)

if __name__ == "__main__":
    torch.set_num_threads(1)
    wanted = sys.argv[1]
    if wanted == "quick":
        for function in EXTRA:
            tell(function.__name__, function())
    for name in QUICK if wanted == "quick" else LONG:
        tell(name, case(name))
