"""Which backend is taken: by time, never by a wrong result, once, alike on all ranks and after a resume."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from attention_ranks import settle
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from mstl.build import build_module, fix_attention
from mstl.models import choose
from mstl.models.attend import attend, attend_packed
from mstl.models.attention import AttentionOptions
from mstl.models.choose import AttentionShape, choose_backend, fix_backends
from mstl.models.registry import attention_options, build_backbone
from mstl.recipes import build_recipe
from mstl.runs import load_classifier
from mstl.stages import STAGES
from shards.errors import MstlError

CPU = torch.device("cpu")
SHAPE = AttentionShape(batch=64, queries=100, keys=100, d_k=64, d_v=64)
LAYERS = ("res3.0", "res3.1", "res4.0", "res4.1", "res5.0")


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    choose_backend.cache_clear()
    yield
    choose_backend.cache_clear()


def clock(monkeypatch: pytest.MonkeyPatch, **seconds: float) -> list[str]:
    """Time backends by a table instead of a clock; returns what was timed."""
    asked: list[str] = []

    def take_turns(actions: dict[str, Callable[[], object]], device: torch.device) -> dict[str, list[float]]:
        asked.extend(actions)
        for action in actions.values():
            action()
        return {name: [seconds[name] * slow for slow in (1.0, 5.0, 1.1)] for name in actions}

    monkeypatch.setattr(choose, "_take_turns", take_turns)
    return asked


@pytest.mark.parametrize(("sdpa", "chosen"), [(0.5, "sdpa"), (0.89, "sdpa"), (0.91, "eager"), (1.5, "eager")])
def test_takes_the_fastest_and_eager_within_ten_percent(
    sdpa: float, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = clock(monkeypatch, eager=1.0, sdpa=sdpa)
    assert choose_backend(CPU, torch.float32, SHAPE) == chosen
    assert asked == ["eager", "sdpa"]
    assert choose_backend(CPU, torch.float32, SHAPE) == chosen
    assert asked == ["eager", "sdpa"]  # asked once
    choose_backend(CPU, torch.float32, SHAPE, training=False)
    assert asked == ["eager", "sdpa"] * 2


@pytest.mark.parametrize(
    ("sdpa", "chosen"),
    [
        ([5.0, 0.5, 0.5, 0.5, 4.0], "sdpa"),  # eager is faster in one round of five
        ([5.0, 0.5, 0.5, 1.0, 4.0], "eager"),  # in two
        ([5.0, 0.5, 0.8, 0.8], "sdpa"),
        ([5.0, 0.5, 0.5, 4.0], "eager"),  # in one of four
    ],
)
def test_a_gain_must_show_round_by_round_in_four_of_five(
    sdpa: list[float], chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds = {"eager": [10.0, 1.0, 1.0, 1.0, 1.0][: len(sdpa)], "sdpa": sdpa}
    monkeypatch.setattr(choose, "_take_turns", lambda actions, device: rounds)
    assert choose_backend(CPU, torch.float32, SHAPE) == chosen


@pytest.mark.parametrize("fault", [1e-3, float("nan"), RuntimeError("no kernel")])
@pytest.mark.parametrize("pooled", [False, True])
def test_never_takes_one_that_is_wrong_or_fails(
    fault: float | Exception, pooled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def faulty(query: Tensor, key: Tensor, value: Tensor, *, scale: float = 1.0, backend: str = "eager") -> Tensor:
        out = attend(query, key, value, scale=scale, backend=backend)
        if backend != "sdpa":
            return out
        if isinstance(fault, Exception):
            raise fault
        return out * (1 + fault)

    monkeypatch.setattr(choose, "attend_apart", faulty)
    monkeypatch.setattr("mstl.models.attend.attend", faulty)
    asked = clock(monkeypatch, eager=1.0, sdpa=0.1)
    shape = AttentionShape(batch=64, queries=196, keys=49, d_k=64, d_v=64) if pooled else SHAPE
    assert choose_backend(CPU, torch.float32, shape) == "eager"
    assert asked == ["eager"]


def test_what_is_small_or_has_no_choice_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = clock(monkeypatch, eager=1.0, sdpa=0.1)
    small = AttentionShape(batch=8, queries=64, keys=64, d_k=64, d_v=64)
    assert choose_backend(CPU, torch.float32, small) == "eager"
    assert choose_backend(CPU, torch.bfloat16, SHAPE) == "eager"
    assert asked == []


def test_measures_real_time_and_leaves_random_numbers_alone() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    assert choose_backend(CPU, torch.float32, SHAPE) in ("eager", "sdpa")
    assert torch.equal(torch.get_rng_state(), state)


def test_a_probe_on_a_cpu_is_a_part_of_the_batch() -> None:
    res3 = AttentionShape(batch=256, queries=784, keys=784, d_k=256, d_v=256)
    res5 = AttentionShape(batch=256, queries=49, keys=49, d_k=1024, d_v=1024)
    assert choose._probed_images(CPU, res3) == 1
    assert 1 < choose._probed_images(CPU, res5) < 256
    cuda = torch.device("cuda")
    assert choose._probed_images(cuda, res3) == 64
    assert choose._probed_images(cuda, replace(res3, batch=8)) == 8
    # At 768 pixels 64 images would have 22 GB of logits, at 1,024 one has 1 GiB.
    assert choose._probed_images(cuda, replace(res3, queries=9216, keys=9216)) == 3
    assert choose._probed_images(cuda, replace(res3, queries=128**2, keys=128**2)) == 1


@pytest.mark.parametrize(("faults", "said"), [([], None), ([0.1], "it is wrong: "), (
    [RuntimeError("no kernel image\nfor this device")], "it failed (RuntimeError: no kernel image)")])  # fmt: skip
def test_says_what_came_of_trying_a_backend(
    faults: list[Any], said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def faulty(packed: Tensor, d_k: int, *, scale: float, backend: str) -> Tensor:
        out = attend_packed(packed, d_k, scale=scale, backend=backend)
        for fault in faults if backend == "sdpa" else ():
            if isinstance(fault, Exception):
                raise fault
            out = out * (1 + fault)
        return out

    monkeypatch.setattr(choose, "attend_packed", faulty)
    found = choose.why_not("sdpa", CPU, torch.float32, SHAPE)
    assert found == said if said is None else str(found).startswith(said)
    assert choose.why_not("eager", CPU, torch.float32, SHAPE) is None
    assert "bfloat16" in str(choose.why_not("sdpa", CPU, torch.bfloat16, SHAPE))


def test_a_gpu_pauses_while_its_work_is_queued_so_that_its_own_time_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for torch.cuda: what is asked of it, in which order."""
    done: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            done.append("record")

        def synchronize(self) -> None:
            done.append("wait")

        def elapsed_time(self, last: Event) -> float:
            return 30.0  # ms

    for name, stand_in in {
        "Event": Event, "device": lambda _: nullcontext(), "synchronize": lambda: done.append("idle"),
        "_sleep": lambda cycles: done.append("pause") if cycles > 1e7 else None,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, stand_in)
    took = choose.gpu_seconds(lambda: done.append("work"), torch.device("cuda", 0), times=3)
    assert took == pytest.approx(0.010)
    assert done == ["idle", "pause", "record", "work", "work", "work", "record", "wait"]


def network(backend: str = "auto", name: str = "resnet14-attn5", **options: Any) -> Any:
    return build_backbone(name, AttentionOptions(backend=backend, **options))


def fixed(net: Any, recorded: dict[str, str] | None = None, dtype: torch.dtype = torch.float32) -> dict[str, str]:
    return fix_backends(net, device=CPU, dtype=dtype, image_size=224, batch=32, recorded=recorded)


def test_every_layer_is_asked_for_with_its_own_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[tuple[int, int], AttentionShape] = {}

    def answer(device: torch.device, dtype: torch.dtype, shape: AttentionShape, *, scale: float) -> str:
        asked[shape.queries, shape.keys] = shape
        assert scale == pytest.approx(shape.d_k**-0.5)
        return "sdpa" if shape.queries > 100 else "eager"

    monkeypatch.setattr(choose, "choose_backend", answer)
    net = network(root_scale=True, pool=2)
    found = fixed(net)
    assert found == dict(zip(LAYERS, ["sdpa", "sdpa", "sdpa", "sdpa", "eager"], strict=True))
    assert {name: layer.backend for name, layer in net.attention_layers()} == found
    assert list(asked) == [(784, 196), (196, 49), (49, 16)]
    assert {(shape.batch, shape.d_k, shape.d_v) for shape in asked.values()} == {
        (32, 256, 256), (32, 512, 512), (32, 1024, 1024),
    }  # fmt: skip
    sizes = [tuple(maps.shape[2:]) for maps in net.eval().feature_maps(torch.zeros(1, 3, 224, 224)).values()]
    assert [side * side for side, _ in sizes[1:]] == [784, 196, 49]


def test_a_named_backend_is_kept_and_nothing_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = clock(monkeypatch, eager=1.0, sdpa=0.1)
    assert set(fixed(network("sdpa")).values()) == {"sdpa"}
    assert set(fixed(network("eager"), recorded=dict.fromkeys(LAYERS, "sdpa")).values()) == {"eager"}
    assert asked == []


def test_a_named_backend_that_cannot_be_used_is_refused() -> None:
    with pytest.raises(MstlError, match=r"attention_backend=fused.*need a GPU"):
        fixed(network("fused"))
    with pytest.raises(MstlError, match=r"attention_backend=sdpa.*bfloat16"):
        fixed(network("sdpa"), dtype=torch.bfloat16)


def test_a_recorded_choice_is_kept_unless_it_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = clock(monkeypatch, eager=1.0, sdpa=0.1)
    recorded = {**dict.fromkeys(LAYERS, "eager"), "res4.1": "sdpa"}
    assert fixed(network(), recorded) == recorded
    assert asked == []
    elsewhere = {**recorded, "res3.0": "fused", "res5.0": "unheard-of"}  # of a GPU, of a newer program
    assert fixed(network(), elsewhere) == {**recorded, "res3.0": "sdpa", "res5.0": "sdpa"}


def test_a_network_without_attention_has_nothing_to_settle() -> None:
    assert fixed(network(name="resnet14")) == {}


def test_the_first_rank_decides_for_all(tmp_path: Path) -> None:
    spawn(settle, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{index}.pt") for index in range(2))
    assert first == second
    assert first["found"] == first["applied"] == {"res3.0": "sdpa"}
    assert "need a GPU" in first["refused"]


def job(stage: str, *overrides: str, previous: dict[str, Any] | None = None) -> Any:
    recipe = build_recipe(stage, overrides=["data.batch_size=6", *overrides])
    return SimpleNamespace(
        model="resnet14-attn1", recipe=recipe, parent=None, continues=False, spec=STAGES[stage], seed=0,
        manifest=SimpleNamespace(classes=("a", "b")),
        previous=None if previous is None else SimpleNamespace(body=previous),
    )  # fmt: skip


def layers_of(module: nn.Module) -> list[str]:
    return [layer.backend for layer in module.modules() if isinstance(layer, choose.SelfAttention2d)]


def test_a_job_settles_query_and_key_encoder_alike_and_continues_as_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "choose_backend", lambda *_, **__: "sdpa")
    first = job("sstl_m")
    stage, _ = build_module(first)
    assert layers_of(stage.module) == ["auto", "auto"]
    found = fix_attention(first, stage.module, CPU)
    assert found == {"res3.0": "sdpa"}
    assert layers_of(stage.module) == ["sdpa", "sdpa"]

    monkeypatch.setattr(choose, "choose_backend", lambda *_, **__: "eager")  # another clock, another answer
    again = job("sstl_m", previous={"attention": found})
    stage, _ = build_module(again)
    assert fix_attention(again, stage.module, CPU) == found
    assert layers_of(stage.module) == ["sdpa", "sdpa"]

    monkeypatch.setattr(choose, "choose_backend", lambda *_, **__: "sdpa")
    older = job("sstl_m", previous={})  # by a program that knew eager alone
    assert fix_attention(older, build_module(older)[0].module, CPU) == {"res3.0": "eager"}


def test_the_batch_of_one_rank_and_part_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[AttentionShape] = []
    monkeypatch.setattr(choose, "choose_backend", lambda _, __, shape, **___: asked.append(shape) or "eager")
    accumulated = job("finetune", "engine.accumulate=2", "data.image_size=64")
    fix_attention(accumulated, build_module(accumulated)[0].module, CPU)
    assert [(shape.batch, shape.queries) for shape in asked] == [(3, 64)]


def test_a_recipe_says_how_attention_departs_from_the_paper(tmp_path: Path) -> None:
    plain = attention_options(build_recipe("finetune").model)
    assert plain == AttentionOptions(backend="auto", root_scale=False, pool=1)
    overrides = ["model.attention_backend=sdpa", "model.attention_scale=root", "model.attention_pool=2"]
    own = attention_options(build_recipe("finetune", overrides=overrides).model)
    assert own == AttentionOptions(backend="sdpa", root_scale=True, pool=2)
    with pytest.raises(MstlError, match="attention_backend"):
        build_recipe("finetune", overrides=["model.attention_backend=flash"])


def test_a_run_is_evaluated_as_it_was_trained_but_eagerly(tmp_path: Path) -> None:
    from mstl.weights import save_weights

    weights = tmp_path / "weights.safetensors"
    network = build_backbone("resnet14-attn1")
    save_weights(weights, {**network.state_dict(), **nn.Linear(2048, 2).state_dict(prefix="fc.")})
    recipe = build_recipe(
        "finetune", overrides=["model.attention_backend=sdpa", "model.attention_scale=root", "model.attention_pool=2"]
    ).model_dump(mode="json")

    def record(model: dict[str, Any]) -> Any:
        return SimpleNamespace(
            weights=weights, path=tmp_path, stage="finetune", model="resnet14-attn1", classes=["a", "b"],
            recipe={**recipe, "model": model},
        )  # fmt: skip

    (layer,) = [layer for _, layer in load_classifier(record(recipe["model"])).backbone.attention_layers()]
    assert (layer.backend, layer.scale, layer.pool) == ("eager", 256**-0.5, 2)
    (older,) = [layer for _, layer in load_classifier(record({"dropout": 0.0})).backbone.attention_layers()]
    assert (older.backend, older.scale, older.pool) == ("eager", 1.0, 1)
