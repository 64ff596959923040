"""The fused kernels: against float64 under Triton's interpreter, and compiled for the GPUs they are meant for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent


def script(name: str, *arguments: str) -> list[dict[str, Any]]:
    """What a script of this folder printed, a dict a line; it must end well."""
    done = subprocess.run(
        [sys.executable, str(HERE / name), *arguments], cwd=HERE.parents[1], capture_output=True, text=True,
        env=environment(), check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{HERE}:{HERE.parents[1]}", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def quick() -> dict[str, dict[str, Any]]:
    return {line["case"]: line for line in script("fused_cases.py", "quick")}


def test_keeps_its_bounds(quick: dict[str, dict[str, Any]]) -> None:
    measured = [case for case in quick.values() if "errors" in case]
    assert len(measured) == 12
    for case in measured:
        assert not case["too_far"], case


def test_packed_is_the_same_and_its_gradient_one_piece(quick: dict[str, dict[str, Any]]) -> None:
    assert quick["packed"]["equal"]
    assert quick["packed"]["layout"]


def test_keeps_nothing_for_gradients_nobody_wants(quick: dict[str, dict[str, Any]]) -> None:
    assert quick["inference"]["equal"]
    assert quick["inference"]["kept"] == 0


def test_the_layer_is_the_eager_one_in_any_memory_format_pooled_or_not(quick: dict[str, dict[str, Any]]) -> None:
    results = {name: far for name, far in quick["layer"].items() if name != "case"}
    assert len(results) == 4
    for name, far in results.items():
        assert max(far) < 1e-4, (name, far)


def test_is_an_operator_as_torch_wants_it_and_compiles_into_one_graph(quick: dict[str, dict[str, Any]]) -> None:
    assert quick["operators"]["equal"]
    assert quick["operators"]["strides"]


def test_a_tile_that_does_not_fit_the_device_is_followed_by_a_smaller_once(quick: dict[str, dict[str, Any]]) -> None:
    assert quick["chosen"]["refused"] == [64, 32]  # the second call asks for neither
    assert not quick["chosen"]["too_far"]


def test_what_is_not_a_number_stays_so(quick: dict[str, dict[str, Any]]) -> None:
    assert quick["nonfinite"]["rows"] == [3]


def test_logits_far_below_zero_are_as_good_as_any(quick: dict[str, dict[str, Any]]) -> None:
    assert not quick["negative"]["too_far"], quick["negative"]


@pytest.mark.slow
def test_keeps_its_bounds_at_the_sizes_of_the_networks() -> None:
    cases = script("fused_cases.py", "long")
    assert len(cases) == 4
    for case in cases:
        assert not case["too_far"], case


@pytest.mark.slow
def test_compiles_for_hopper_and_ampere_within_their_shared_memory() -> None:
    """No GPU is needed: Triton brings the compiler. The first tile must fit a Hopper, some tile an Ampere."""
    limits = {90: 232_448, 80: 166_912}
    compiled = script("fused_compiled.py")
    fitting = [kernel for kernel in compiled if kernel["shared_bytes"] <= limits[kernel["capability"]]]
    assert len(fitting) == 48  # the script stops at the first that fits
    for kernel in compiled:
        if kernel["capability"] == 90:
            assert kernel["place"] == 0, kernel
            assert kernel["spilled_bytes"] <= 256, kernel
