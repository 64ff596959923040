"""Exported networks: equal outputs for any number of images, everything a user needs beside them, or no file."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors
import torch
from click.testing import CliRunner
from tiny_runs import CT_CLASSES, SIDE, make_run, make_shards

from mstl.cli.main import group
from mstl.models.classifier import Classifier
from mstl.runs import load_classifier, open_run
from mstl.use.export import FORMATS, LIMIT, export_run
from mstl.use.formats import Made, as_torchscript, rebuilt
from mstl.use.network import Network
from mstl.weights import load_weights
from shards.errors import MstlError
from shards.files import sha256_file
from shards.schema import load_manifest

OPERATING = {
    "schema": 1, "rule": "youden", "threshold": 0.37, "origin": "val", "why": None, "temperature": 1.7,
    "temperature_why": None, "split": "val", "n": 10, "sensitivity": 0.8, "specificity": 0.6, "positive": "COVID",
    "classes": list(CT_CLASSES), "shards_digest": "", "date": "",
}  # fmt: skip


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "shards"
    make_shards(folder)
    return folder


@pytest.fixture(scope="module")
def run(shards: Path) -> Path:
    """Attention at every stage, with an operating point."""
    path = make_run(shards.with_name("run"), shards, load_manifest(shards))
    (path / "evaluation").mkdir()
    chosen = {**OPERATING, "weights_sha256": sha256_file(path / "weights.safetensors")}
    (path / "evaluation/operating.json").write_text(json.dumps(chosen))
    return path


def _logits(run: Path, x: torch.Tensor) -> np.ndarray:
    with torch.inference_mode():
        return load_classifier(open_run(run)).double()(x.double()).numpy()


def _check_facts(facts: dict[str, str], run: Path) -> None:
    """What stands in every file, checked against run.json."""
    read = {
        name: json.loads(facts[name]) for name in ("classes", "operating", "preprocessing", "temperature", "checked")
    }
    assert facts["model"] == "resnet14-attn5" and facts["positive"] == "COVID"
    assert facts["weights_sha256"] == sha256_file(run / "weights.safetensors")
    assert read["classes"] == list(CT_CLASSES) and read["temperature"] == 1.7
    assert read["operating"]["threshold"] == 0.37 and read["operating"]["chosen"]["rule"] == "youden"
    inputs = open_run(run).body["inputs"]["evaluation"]
    steps = read["preprocessing"]
    assert (steps["resize"], steps["crop"], steps["channels"]) == (inputs["resize"], SIDE, inputs["channels"])
    assert (steps["mean"], steps["std"]) == (inputs["mean"], inputs["std"])
    assert read["checked"]["real_images"] == 10 and 0 <= read["checked"]["real"] < LIMIT
    assert "not a medical device" in facts["notice"]


@pytest.mark.slow  # torch's exporter takes most of it
def test_onnx_says_what_the_network_says(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "net.onnx"
    result = CliRunner().invoke(group, ["export", str(run), "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert "at most on 12 images of noise" in result.output and "at most on 10 real images" in result.output
    model = onnx.load(out)
    _check_facts({entry.key: entry.value for entry in model.metadata_props}, run)
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    for images in (1, 2, 5):
        x = torch.randn(images, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(images))
        (logits,) = session.run(None, {"image": x.numpy()})
        assert logits.shape == (images, 2)
        np.testing.assert_allclose(logits, _logits(run, x), atol=1e-4)


def test_torchscript_has_its_facts_beside_it(run: Path, tmp_path: Path) -> None:
    done = export_run(run, form="torchscript", out=tmp_path / "net.pt")
    assert done.files == (tmp_path / "net.pt", tmp_path / "net.pt.json")
    facts = json.loads((tmp_path / "net.pt.json").read_text())
    _check_facts({name: v if isinstance(v, str) else json.dumps(v) for name, v in facts.items()}, run)
    with pytest.warns(FutureWarning, match="deprecated"):
        network = torch.jit.load(tmp_path / "net.pt")
    for images in (1, 5):
        x = torch.randn(images, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(images))
        with torch.inference_mode():
            np.testing.assert_allclose(network(x).numpy(), _logits(run, x), atol=1e-4)


def test_safetensors_hold_the_weights_and_all_that_builds_the_network(run: Path, shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "net.safetensors"
    export_run(run, form="safetensors", out=out)
    with safetensors.safe_open(out, "pt") as opened:
        facts = opened.metadata()
    _check_facts(facts, run)
    own, exported = load_weights(run / "weights.safetensors"), load_weights(out)
    assert own.keys() == exported.keys()
    for name, tensor in own.items():
        assert torch.equal(tensor, exported[name]), name
    pooled = make_run(
        tmp_path / "pooled", shards, load_manifest(shards),
        overrides=("model.attention_pool=2", "model.attention_scale=root"),
    )  # fmt: skip
    export_run(pooled, form="safetensors", out=out)
    with safetensors.safe_open(out, "pt") as opened:
        read = {name: opened.metadata()[name] for name in ("model", "attention", "classes")}
    values = {
        "model": read["model"],
        "attention": json.loads(read["attention"]),
        "classes": json.loads(read["classes"]),
    }
    x = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        np.testing.assert_allclose(rebuilt(load_weights(out), values)(x).numpy(), _logits(pooled, x), atol=1e-4)


def test_a_file_that_says_something_else_is_never_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(network: Network, example: torch.Tensor) -> Made:
        with torch.no_grad():
            network.classifier.fc.bias += 10 * LIMIT
        made = as_torchscript(network, example)
        with torch.no_grad():
            network.classifier.fc.bias -= 10 * LIMIT
        return made

    (tmp_path / "net.pt").write_text("of yesterday")
    monkeypatch.setitem(FORMATS, "torchscript", other)
    with pytest.raises(MstlError, match=r"its logits differ by 0\.001 .* 0\.0001 is the limit; nothing was written"):
        export_run(run, form="torchscript", out=tmp_path / "net.pt")
    assert [file.name for file in tmp_path.iterdir()] == ["net.pt"]
    assert (tmp_path / "net.pt").read_text() == "of yesterday"


def test_a_network_that_ignores_all_but_the_first_image_is_noticed(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = Classifier.forward

    def fixed(self: Classifier, x: torch.Tensor) -> torch.Tensor:
        return forward(self, x[:2]) if torch.jit.is_tracing() else forward(self, x)

    monkeypatch.setattr(Classifier, "forward", fixed)
    with pytest.raises(MstlError, match="nothing was written"):
        export_run(run, form="torchscript", out=tmp_path / "net.pt")
    assert not any(tmp_path.iterdir())


def test_without_the_shards_noise_alone_is_checked_and_that_is_said(shards: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", tmp_path / "gone", load_manifest(shards))
    result = CliRunner().invoke(
        group, ["export", str(run), "--format", "safetensors", "--out", str(tmp_path / "net.safetensors")]
    )
    assert result.exit_code == 0, result.output
    assert "Not checked on real images" in result.output and "gone" in result.output
    with safetensors.safe_open(tmp_path / "net.safetensors", "pt") as opened:
        checked = json.loads(opened.metadata()["checked"])
        operating = json.loads(opened.metadata()["operating"])
    assert checked["real"] is None and checked["real_images"] == 0 and checked["noise_images"] == 12
    assert operating["threshold"] == 0.5 and operating["chosen"] is None


def test_onnx_without_its_libraries_says_what_to_install(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec

    def lacking(name: str, package: str | None = None) -> ModuleType | None:
        return None if name == "onnxruntime" else find(name, package)  # type: ignore[return-value]

    monkeypatch.setattr(importlib.util, "find_spec", lacking)
    with pytest.raises(MstlError, match=r"it needs onnxruntime, .* pip install 'mstl\[export\]'"):
        export_run(run, form="onnx", out=tmp_path / "net.onnx")
