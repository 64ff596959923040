"""The DeepSpeed configuration: no key is misspelt unnoticed, by us or by whoever edits the JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from engine_cases import CPU, one_rank, recipe, small

from launch.compiling import compile_networks
from launch.config import DEFAULTS, Config, build_config, check_read_back
from launch.engine import DeepSpeedEngine
from mstl.models.registry import build_backbone
from shards.errors import MstlError


@pytest.fixture(scope="module", autouse=True)
def processes() -> Iterator[None]:
    with one_rank():
        yield


def edited(tmp_path: Path, **changes: Any) -> Path:
    tree = {**json.loads(DEFAULTS.read_text()), **changes}
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({name: value for name, value in tree.items() if value is not None}))
    return path


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"gradient_clippin": 0.0}, "gradient_clippin"),
        ({"steps_per_print": None}, "steps_per_print"),
        ({"zero_optimization": {"stage": 0, "overlap_com": True}}, "zero_optimization.overlap_com"),
        ({"timers": {"throughput": {"enable": False}}}, "timers.throughput"),
        ({"steps_per_print": "often"}, "steps_per_print"),
        ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps"),
        ({"bf16": {"enabled": True}}, "bf16"),
    ],
)
def test_a_wrong_key_is_named(tmp_path: Path, changes: dict[str, Any], names: str) -> None:
    with pytest.raises(MstlError, match=names) as caught:
        build_config(recipe(), 1, edited(tmp_path, **changes))
    assert "train_micro_batch_size_per_gpu" in caught.value.remedy


def test_stage_3_has_no_place_in_it() -> None:
    tree = build_config(recipe(), 1).model_dump()
    with pytest.raises(ValueError, match=r"zero_optimization\.stage"):
        Config.model_validate({**tree, "zero_optimization": {"stage": 3}})
    with pytest.raises(MstlError, match=r"engine\.zero"):
        recipe("engine.zero=3")


def test_it_holds_the_recipes_numbers() -> None:
    config = build_config(recipe("engine.zero=1", "optim.clip=0.5"), 2)
    assert (config.train_micro_batch_size_per_gpu, config.zero_optimization.stage) == (3, 1)
    assert config.gradient_clipping == 0.5
    assert build_config(recipe("optim.clip=0.5"), 1).gradient_clipping == 0.0, "at stage 0 our own reduction clips"


def test_deepspeed_must_answer_with_what_was_written() -> None:
    """Each key in turn is one that DeepSpeed did not take."""
    chosen = recipe("engine.zero=1", "optim.clip=0.5")
    engine, config = DeepSpeedEngine(small(), chosen, CPU)._engine, build_config(chosen, 1)
    check_read_back(config, engine)
    others: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 7,
        "gradient_accumulation_steps": 3,
        "gradient_clipping": 1.0,
        "zero_optimization": {"stage": 2},
        "zero_allow_untested_optimizer": False,
        "timers": {"throughput": {"enabled": True}},
        "wall_clock_breakdown": True,
        "steps_per_print": 10,
    }
    assert others.keys() == Config.model_fields.keys()
    for name, value in others.items():
        written = {**config.model_dump(), name: value}
        with pytest.raises(RuntimeError, match=f"configuration: {name} is"):
            check_read_back(SimpleNamespace(model_dump=lambda written=written: written), engine)


def test_compiling_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(MstlError, match="needs a C\\+\\+ compiler"):
        compile_networks(build_backbone("resnet14"))
    monkeypatch.setenv("CXX", "g++-of-mine")
    with pytest.raises(MstlError, match="no g\\+\\+-of-mine here"):
        compile_networks(build_backbone("resnet14"))
