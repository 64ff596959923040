"""Every recipe's GPU graph: it can be made, and every node has a kernel where it stands."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from gpu_kernels import missing_kernels, operators
from nvidia.dali import fn, pipeline_def
from nvidia.dali.pipeline import Pipeline

from pipelines import lobes
from pipelines.inputs import build_pipeline
from pipelines.recipe import RECIPES


def build(name: str, shards: Path, device: str) -> Pipeline:
    tar = shards / "train/000000.tar"
    return build_pipeline(
        RECIPES[name](64), [str(tar)], [str(tar.with_suffix(".idx"))],
        batch=2, threads=1, device=device, device_id=0, seed=1,
    )  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_every_node_of_the_gpu_graph_has_a_kernel(name: str, noise_shards: Path) -> None:
    pipeline = build(name, noise_shards, "gpu")
    pipeline._device_id = None  # serialize would open the GPU; the nodes keep their places
    assert pipeline.serialize()
    wrong, nodes = missing_kernels(pipeline)
    assert wrong == []
    on_gpu = {operator for operator, device in nodes if device == "gpu"}
    assert "CropMirrorNormalize" in on_gpu
    assert any(device == "mixed" for _, device in nodes), "decoding is not mixed"
    if name == "multi_view_ct":
        assert {"Filter", "Resize", "BrightnessContrast", "ColorSpaceConversion"} <= on_gpu
        assert nodes["CropMirrorNormalize", "gpu"] == 7


@pytest.mark.parametrize("name", RECIPES)
def test_nothing_but_the_device_differs(name: str, noise_shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And that lungs are found in numpy on the CPU, which test_lobes.py holds to the nodes."""
    monkeypatch.setattr(lobes, "locate", partial(lobes.locate, by_nodes=True))
    on_cpu, on_gpu = (operators(missing_kernels(build(name, noise_shards, device))[1]) for device in ("cpu", "gpu"))
    assert on_cpu == on_gpu


def test_the_checker_finds_a_missing_kernel() -> None:
    @pipeline_def(batch_size=1, num_threads=1, device_id=0)
    def cpu_only() -> object:
        mask = fn.random.uniform(range=(0.0, 1.0), shape=[4, 4]).gpu()
        return fn.segmentation.random_object_bbox(mask, device="gpu", output_class=False)[0]

    wrong, _ = missing_kernels(cpu_only())
    assert any("RandomObjectBBox is on gpu" in line for line in wrong)
