"""Weights on disk, and the account of what one stage carries over to the next."""

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from mstl.models.classifier import Classifier
from mstl.models.registry import build_backbone
from mstl.weights import carry_over, load_weights, save_weights
from shards.errors import MstlError


def plain_source() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return build_backbone("resnet14").state_dict()


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def test_saved_weights_come_back_whatever_their_memory_format(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    tensor = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    tied = nn.Parameter(torch.randn(3))
    save_weights(path, {"a": tensor, "b": tied, "c": tied, "n": torch.tensor(7)})
    loaded = load_weights(path)
    assert loaded.keys() == {"a", "b", "c", "n"}
    assert torch.equal(loaded["a"], tensor)
    assert torch.equal(loaded["c"], tied)
    assert loaded["n"].item() == 7
    assert load_file(path).keys() == loaded.keys()
    assert [p.name for p in tmp_path.iterdir()] == ["weights.safetensors"]


def test_a_failed_save_leaves_the_good_file(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_weights(path, {"a": torch.ones(2)})
    with pytest.raises((TypeError, AttributeError)):
        save_weights(path, {"a": "no tensor"})
    assert torch.equal(load_weights(path)["a"], torch.ones(2))


def test_torch_files_are_read_without_running_code(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "good.pth")
    assert torch.equal(load_weights(tmp_path / "good.pth")["a"], torch.ones(2))

    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str, ...]]:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"a": Bomb()}, tmp_path / "bomb.pth", pickle_module=pickle)
    with pytest.raises(MstlError, match="could run code"):
        load_weights(tmp_path / "bomb.pth")
    assert not (tmp_path / "ran").exists()


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(500)}, tmp_path / "cut.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "cut.pth").read_bytes()[:600])
    save_weights(tmp_path / "cut.safetensors", {"a": torch.ones(500)})
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "cut.safetensors").read_bytes()[:600])
    (tmp_path / "empty.pth").touch()
    (tmp_path / "text.bin").write_text("x")
    torch.save({"state_dict": {"a": torch.ones(1)}}, tmp_path / "nested.pth")
    for name, why in {
        "cut.pth": "cannot be read",
        "cut.safetensors": "cannot be read",
        "empty.pth": "cannot be read",
        "text.bin": "'.bin' names no known kind",
        "nested.pth": "plain dict",
        "missing.safetensors": "no such file",
    }.items():
        with pytest.raises(MstlError, match=why) as caught:
            load_weights(tmp_path / name)
        assert name in caught.value.what


def test_classifier_weights_carry_into_an_attention_network() -> None:
    torch.manual_seed(1)
    trained = Classifier(build_backbone("resnet14"), classes=7)
    with torch.no_grad():
        for tensor in trained.backbone.state_dict().values():  # norms start alike in every network: move them
            if tensor.dim() < 2:
                tensor += torch.rand(tensor.shape) if tensor.is_floating_point() else 1
    source = {**trained.backbone.state_dict(), "fc.weight": trained.fc.weight, "fc.bias": trained.fc.bias}
    target = build_backbone("resnet14-attn5")
    before = snapshot(target)
    report = carry_over(source, target)
    assert report.dropped == ("fc.bias", "fc.weight")
    assert report.carried == tuple(sorted(trained.backbone.state_dict()))
    assert report.new == tuple(sorted(name for name in before if name.startswith("attention.")))
    assert len(report.new) == 5 * 8
    after = target.state_dict()
    assert all(torch.equal(after[name], source[name]) for name in report.carried)
    assert all(torch.equal(after[name], before[name]) for name in report.new)
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(target.eval()(x), trained.backbone.eval()(x))


def test_attention_weights_carry_too() -> None:
    source = build_backbone("resnet14-attn1")
    nn.init.ones_(source.attention["res3"][0].norm.weight)
    target = build_backbone("resnet14-attn1")
    report = carry_over(source.state_dict(), target)
    assert report.new == report.dropped == ()
    assert target.attention["res3"][0].norm.weight.all()


def test_what_does_not_fit_is_refused_and_nothing_moves() -> None:
    target = build_backbone("resnet14")
    before = snapshot(target)
    lacking = {name: tensor for name, tensor in plain_source().items() if name != "layer2.0.bn1.weight"}
    other = {**plain_source(), "layer1.0.conv1.weight": torch.zeros(64, 64, 3, 3)}
    for source, words in (
        (lacking, "the source lacks 'layer2.0.bn1.weight'"),
        ({**plain_source(), "projection.weight": torch.zeros(1)}, "no place for 'projection.weight'"),
        ({**plain_source(), "fcn": torch.zeros(1)}, "no place for 'fcn'"),
        (build_backbone("resnet14-attn1").state_dict(), r"no place for 'attention.res3.0.*and 7 more"),
        (build_backbone("resnet26").state_dict(), "no place for 'layer1.1.bn1.bias' and"),
        (other, r"'layer1.0.conv1.weight': it is 64x64x3x3 in the source and 64x64x1x1 in the network"),
        ({}, "the source lacks"),
    ):
        with pytest.raises(MstlError, match=words):
            carry_over(source, target)
    assert all(torch.equal(tensor, before[name]) for name, tensor in target.state_dict().items())


def test_a_text_file_named_like_weights_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_text("hello world, this is no pickle")
    with pytest.raises(MstlError, match=r"weights\.pth"):
        load_weights(path)


def test_weights_saved_before_batch_norm_counted_its_batches_fit() -> None:
    source, target = build_backbone("resnet14"), build_backbone("resnet14")
    old = {name: value for name, value in source.state_dict().items() if not name.endswith("num_batches_tracked")}
    report = carry_over(old, target)
    assert report.new == tuple(sorted(source.state_dict().keys() - old.keys()))
    assert torch.equal(target.conv1.weight, source.conv1.weight)
