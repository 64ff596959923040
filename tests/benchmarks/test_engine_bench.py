"""The benchmark of the engine: its sides do the same training, its JSON is what it measured. No timing."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks import engine
from benchmarks.engine_startup import PARTS

WORDS = ("--model", "resnet14", "--batch", "4", "--size", "32", "--blocks", "3", "--steps", "1")


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("engine") / "engine.json"
    done = CliRunner(catch_exceptions=False).invoke(engine.command, [*WORDS, "--out", str(out)])
    assert done.exit_code == 0 and f"Wrote {out}" in done.output
    body: dict[str, Any] = json.loads(out.read_text())
    return body


def test_all_sides_do_the_same_training(measured: dict[str, Any]) -> None:
    losses = {side: found["last_loss"] for side, found in measured["cases"]["resnet14"]["sides"].items()}
    assert list(losses) == ["mstl", "ddp", "deepspeed"]
    assert losses == pytest.approx(dict.fromkeys(losses, losses["ddp"]), rel=1e-3)


def test_medians_and_ratios_are_those_of_the_times(measured: dict[str, Any]) -> None:
    case = measured["cases"]["resnet14"]
    for found in case["sides"].values():
        for name in ("wall_ms", "cpu_ms"):
            assert len(found[name]) == 3 and min(found[name]) > 0
            assert found["median"][name] == statistics.median(found[name])
    for side, ratios in case["ratios"].items():
        for name, ratio in ratios.items():
            expected = case["sides"]["mstl"]["median"][name] / case["sides"][side]["median"][name]
            assert ratio == pytest.approx(expected)
    assert list(case["ratios"]) == ["ddp", "deepspeed"]


def test_it_says_on_what_it_was_measured(measured: dict[str, Any]) -> None:
    assert measured["settings"] == {
        "ranks": 2, "batch": 4, "size": 32, "precision": "off", "blocks": 3, "steps": 1
    }  # fmt: skip
    assert {"mstl", "torch", "deepspeed", "python"} <= measured["versions"].keys()
    assert measured["hardware"]["cores"] and measured["cases"]["resnet14"]["device"]
    keys = set((Path(engine.__file__).parent / "README.md").read_text().split("`"))
    case = measured["cases"]["resnet14"]
    assert not {*measured, *measured["settings"], *case, *case["sides"], *case["sides"]["ddp"]} - keys


@pytest.mark.long
def test_the_way_to_the_first_step_is_told_in_full() -> None:
    from benchmarks import engine_startup

    found = engine_startup.measure(2, repeats=1)
    assert list(found["parts"]) == [title for title, _ in PARTS]
    assert found["seconds"] == pytest.approx(sum(found["parts"].values()), abs=0.1) == found["all_seconds"][0]
