"""The benchmark of attention: its floors are those of the shapes, its JSON is what it measured. No timing."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from benchmarks import attention, attention_cases, attention_show, roofline
from benchmarks.attention_work import Shape, core_backward, core_forward, layer_backward, layer_forward
from benchmarks.roofline import Ceilings, Work, floor_seconds, peak_bytes, total

WORDS = ("--image-size", "32", "--batch", "2", "--rounds", "3", "--device", "cpu", "--position", "res3", "--position",
         "res5", "--dtype", "float32", "--dtype", "bf16")  # fmt: skip


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path, str]:
    out = tmp_path_factory.mktemp("attention") / "attention.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(roofline, "COPY_BYTES", {"cpu": 2**20})
        patch.setattr(roofline, "PRODUCT_SIDE", {"cpu": 64})
        patch.setattr(attention_cases, "_LEAST_SECONDS", {"cpu": 0.001})
        done = CliRunner(catch_exceptions=False).invoke(attention.command, [*WORDS, "--out", str(out)])
    assert done.exit_code == 0 and "Wrote" in done.output
    return json.loads(out.read_text()), out, done.output


def test_every_backend_has_figures_or_a_reason(measured: tuple[dict[str, Any], Path, str]) -> None:
    body, _, text = measured
    assert [(case["dtype"], case["position"]) for case in body["cases"]] == [
        ("float32", "res3"), ("float32", "res5"), ("bf16", "res3"), ("bf16", "res5")
    ]  # fmt: skip
    for case in body["cases"]:
        assert case["chosen"] in attention.BACKENDS
        for what in ("core", "layer"):
            assert list(case[what]) == list(attention.BACKENDS)
            for backend, figures in case[what].items():
                if "unavailable" in figures:
                    assert backend == "fused" and figures["unavailable"] in " ".join(text.split())
                    continue
                assert ("not_offered" in figures) == (backend == "sdpa" and case["dtype"] == "bf16")
                for found in (figures["forward"], figures["training"]):
                    assert len(found["ms"]) == 3 and found["median_ms"] == statistics.median(found["ms"])
                    assert found["over_floor"] == pytest.approx(found["median_ms"] / found["floor_ms"])
            assert case[what]["eager"]["training"]["over_eager"] == 1
    assert body["cases"][2]["core"]["sdpa"]["not_offered"] in " ".join(text.split())


def test_rates_and_floors_follow_from_shapes_and_ceilings(measured: tuple[dict[str, Any], Path, str]) -> None:
    body, _, _ = measured
    ceilings = Ceilings(**body["ceilings"]["float32"])
    case = body["cases"][0]
    shape = Shape(**case["shape"])
    assert (shape.images, shape.positions, shape.channels, shape.key_width) == (2, 16, 512, 256)
    found, work = case["core"]["eager"], core_forward(shape)
    assert found["forward"]["floor_ms"] == pytest.approx(1e3 * floor_seconds(work, ceilings))
    assert found["forward"]["flops_per_second"] == pytest.approx(
        1e3 * total(work).flops / found["forward"]["median_ms"]
    )
    both = (*layer_forward(shape), *layer_backward(shape))
    found = case["layer"]["sdpa"]["training"]
    assert found["floor_ms"] == pytest.approx(1e3 * floor_seconds(both, ceilings))
    assert found["bytes_per_second"] == pytest.approx(1e3 * total(both).bytes / found["median_ms"])


def test_eager_needs_memory_for_the_probabilities(measured: tuple[dict[str, Any], Path, str]) -> None:
    body, _, _ = measured
    shape = body["cases"][0]["shape"]
    least = 4 * shape["images"] * shape["positions"] * (shape["positions"] + shape["value_width"])
    assert body["cases"][0]["core"]["eager"]["forward"]["peak_bytes"] >= least


def test_it_says_on_what_it_was_measured_and_draws_it(measured: tuple[dict[str, Any], Path, str]) -> None:
    body, out, _ = measured
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert {"mstl", "torch", "python"} <= body["versions"].keys()
    assert body["hardware"]["cores"] and "CPU" in body["device"]
    known = set((Path(attention.__file__).parent / "README.md").read_text().split("`"))
    torchs = body["cases"][2]["core"]["sdpa"]
    figures = torchs["training"]
    assert not {*body, *body["settings"], *body["cases"][0], *torchs, *figures, *body["ceilings"]["float32"]} - known


def test_the_floor_of_the_printed_positions() -> None:
    # Megabytes and MFLOPs an image of the whole of training and of forward, in bf16 at 224 px, worked out by hand.
    expected = {"res3": (784, 512, 4.8, 629), "res4": (196, 1024, 2.4, 79), "res5": (49, 2048, 1.2, 10)}
    for positions, channels, megabytes, mflops in expected.values():
        shape = Shape(images=1, positions=positions, channels=channels, key_width=channels // 2,
                      value_width=channels // 2, value_bytes=2)  # fmt: skip
        core = (*core_forward(shape), *core_backward(shape))
        assert total(core).bytes / 1e6 == pytest.approx(megabytes, abs=0.05)
        assert total(core_forward(shape)).flops / 1e6 == pytest.approx(mflops, abs=0.5)
        assert total(core).flops == 3 * total(core_forward(shape)).flops
        projections = total(layer_forward(shape)).flops - total(core_forward(shape)).flops
        assert projections / 1e6 == pytest.approx(822, abs=0.5)
        assert total(layer_backward(shape)).flops == 2 * total(layer_forward(shape)).flops
        # Values a position, in channels: projection 2.5, core 2, projection 1.5, norm and addition 3; on the way back
        # 4.5, 4, 2 and 3. Weights are read in both, their gradients written.
        layer = total((*layer_forward(shape), *layer_backward(shape)))
        assert layer.bytes == 2 * (22.5 * channels * positions + 3 * 2 * channels**2)


def test_a_floor_is_what_binds_each_step() -> None:
    ceilings = Ceilings(bytes_per_second=10, flops_per_second=100)
    assert floor_seconds([Work(100, 1), Work(1, 30)], ceilings) == 1 + 3


def test_peak_bytes_counts_what_is_alive_together() -> None:
    size = 2**20

    def one_by_one() -> None:
        for _ in range(3):
            torch.empty(size, dtype=torch.uint8)

    def together() -> None:
        kept = [torch.empty(size, dtype=torch.uint8) for _ in range(3)]
        kept.clear()

    device = torch.device("cpu")
    assert size <= peak_bytes(one_by_one, device) < 1.5 * size
    assert 3 * size <= peak_bytes(together, device) < 3.5 * size


def test_targets_are_told_beside_what_was_measured() -> None:
    def part(ratio: float) -> dict[str, Any]:
        return {"sdpa": {"forward": {"over_eager": 9.0}, "training": {"over_eager": ratio}}}

    cases = [{"position": name, "dtype": "float32", "chosen": "sdpa", "core": part(0.8), "layer": part(ratio)}
             for name, ratio in (("res3", 1.03), ("res4", 1.04))]  # fmt: skip
    found = attention_show.targets({"device_type": "cpu", "settings": {"image_size": 224, "batch": 2}, "cases": cases})
    assert [target["reached"] for target in found] == [True, True, True, False]
    assert found[0]["measured"] == "0.800" and "res3" in found[0]["what"]


def gpu_targets(chosen: str, device: str = "NVIDIA H200", **ms: float) -> list[dict[str, Any]]:
    """Targets of a res3 layer in bf16 with these times of each backend, core and layer alike, and a floor of 0.5 ms."""
    part = {name: {"training": {"median_ms": each, "over_floor": each / 0.5}} for name, each in ms.items()}
    case = {"position": "res3", "dtype": "bf16", "chosen": chosen, "core": part, "layer": part}
    return attention_show.targets({"device_type": "cuda", "device": device, "cases": [case],
                                   "settings": {"image_size": 224, "batch": 256}})  # fmt: skip


def test_targets_of_a_gpu_are_held_against_what_auto_chooses() -> None:
    found = gpu_targets("fused", eager=3.0, sdpa=1.2, fused=0.9)
    measured = {target["what"]: (target["measured"], target["reached"]) for target in found}
    assert measured == {
        "res3 core, fused, one H200": ("0.90 ms", True),
        "res3 core: fused against eager": ("3.33 x", True),
        "res3 core: fused against sdpa": ("1.33 x", True),
        "res3 whole layer, fused / floor": ("1.80", True),
        "res3 whole layer: fused against eager": ("3.33 x", True),
    }
    # Where nothing was faster than eager, all is missed; nothing is left out.
    missed = gpu_targets("eager", eager=3.0, sdpa=3.5, fused=3.5)
    assert len(missed) == 5 and not any(target["reached"] for target in missed)


def test_another_gpu_is_not_held_against_targets_of_an_h200() -> None:
    assert gpu_targets("fused", "NVIDIA L4", eager=3.0, fused=0.9) == []


def test_a_backend_that_is_wrong_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_cases, "why_not", lambda name, *_: "it is wrong" if name == "sdpa" else None)
    monkeypatch.setattr(attention_cases, "_LEAST_SECONDS", {"cpu": 0.001})
    case = attention_cases.Case(position="res5", image_size=32, images=2, dtype="float32")
    ceilings = Ceilings(bytes_per_second=1e9, flops_per_second=1e9)
    found = attention_cases.measure(case, ("eager", "sdpa"), torch.device("cpu"), ceilings, 1)
    assert found["core"]["sdpa"] == {"unavailable": "it is wrong"} and "training" in found["core"]["eager"]


def test_a_gpu_that_is_not_there_is_an_error_of_one_line() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = CliRunner().invoke(attention.command, ["--device", "cuda"])
    assert "no GPU" in str(done.exception)
