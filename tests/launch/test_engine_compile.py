"""torch.compile of the networks inside a stage: same training, same names, nothing left of it in a checkpoint."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from engine_cases import CPU, one_rank
from torch import Tensor

from launch.engine import DeepSpeedEngine
from mstl.models.registry import build_backbone
from mstl.recipes import build_recipe
from mstl.ssl.moco import MomentumContrast
from pipelines.batch import Batch


@pytest.fixture(scope="module", autouse=True)
def processes() -> Iterator[None]:
    with one_rank():
        yield


def contrast_batch(seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    views = {name: torch.randn(4, 3, 32, 32, generator=generator) for name in ("q", "k", "ru", "rm", "rl", "lu", "ll")}
    views = {name: view.contiguous(memory_format=torch.channels_last) for name, view in views.items()}
    return Batch(views=views, labels=torch.zeros(4, dtype=torch.long), sample_ids=torch.arange(4) + 4 * seed)


@pytest.mark.long
def test_a_compiled_contrast_trains_as_an_eager_one() -> None:
    torch.manual_seed(0)
    eager = MomentumContrast(build_backbone("resnet14-attn1"), queue_size=8, seed=1)
    compiled = copy.deepcopy(eager)
    engines = [
        DeepSpeedEngine(
            module,
            build_recipe("sstl_m", overrides=["data.batch_size=4", "optim.lr=1e-5", f"engine.compile={choice}"]),
            CPU,
        )
        for module, choice in ((eager, "false"), (compiled, "true"))
    ]
    before = {name: value.detach().clone() for name, value in eager.named_parameters()}
    for seed in range(2):
        results = [engine.update(contrast_batch(seed), 1e-5) for engine in engines]
        for name, value in results[0].losses.items():
            assert float(results[1].losses[name]) == pytest.approx(float(value), rel=0.01, abs=0.01), name
        for engine in engines:
            engine.module.after_step()
    # Statistics over four images of one pixel amplify rounding: compare with how far the weights have moved.
    moved = distance(before, dict(eager.named_parameters()))
    assert distance(dict(compiled.named_parameters()), dict(eager.named_parameters())) < 0.05 * moved
    assert compiled.backbone._compiled_call_impl is not None
    assert compiled.key_backbone._compiled_call_impl is not None
    assert compiled.queue._compiled_call_impl is None
    shared = [engine.snapshot().shared for engine in engines]
    assert shared[0] is not None
    assert shared[1] is not None
    assert shared[0]["module"].keys() == shared[1]["module"].keys()


def distance(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    assert left.keys() == right.keys()
    return float(sum((left[name] - right[name]).detach().square().sum() for name in left)) ** 0.5
