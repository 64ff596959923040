"""Backbones against torchvision's, where their attention sits, their names, and the classifier over them."""

import pytest
import torch
import torchvision
from torch import nn

from mstl.models.attention import AttentionBlock
from mstl.models.classifier import Classifier
from mstl.models.registry import backbone_names, build_backbone, full_name
from mstl.models.resnet import ResNet
from shards.errors import MstlError


def twin_of_torchvision(depth: str) -> tuple[ResNet, nn.Module]:
    torch.manual_seed(0)
    reference = getattr(torchvision.models, depth)(weights=None)
    for norm in reference.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.0)
            nn.init.normal_(norm.running_mean, std=0.1)
            nn.init.uniform_(norm.running_var, 0.5, 1.5)
    reference.fc = nn.Identity()
    ours = build_backbone(depth)
    ours.load_state_dict(reference.state_dict(), strict=True)
    return ours, reference


@pytest.mark.parametrize("depth", ["resnet50", "resnet101"])
def test_equals_torchvision(depth: str) -> None:
    ours, reference = twin_of_torchvision(depth)
    assert list(ours.state_dict()) == list(reference.state_dict())
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in reference.parameters())
    x = torch.randn(2, 3, 64, 48)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(x), reference.eval()(x), rtol=1e-5, atol=1e-6)


def test_gradients_and_statistics_equal_torchvisions() -> None:
    ours, reference = (network.double() for network in twin_of_torchvision("resnet50"))
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    for network in (ours, reference):
        network.train()(x).square().sum().backward()
    for (name, mine), theirs in zip(ours.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-7, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")
    for mine, theirs in zip(ours.buffers(), reference.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_parameter_counts() -> None:
    count = {name: sum(p.numel() for p in build_backbone(name).parameters()) for name in ("resnet14", "resnet14-attn1")}
    assert count["resnet14"] == 8_015_936
    res3 = 512 * 768 + 768 + 256 * 512 + 2 * 512  # qkv and its bias, projection, norm
    assert count["resnet14-attn1"] - count["resnet14"] == res3


def test_initial_weights_are_he_by_fan_out() -> None:
    torch.manual_seed(0)
    network = build_backbone("resnet14")
    conv = network.layer4[0].conv2
    assert conv.weight.std().item() == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.01)
    assert network.layer4[0].conv2.stride == (2, 2)
    assert network.layer4[0].conv1.stride == (1, 1)


@pytest.mark.parametrize(
    ("name", "placed"),
    [("attn0", {}), ("attn1", {"res3": 1}), ("attn5", {"res3": 2, "res4": 2, "res5": 1})],
)
def test_attention_sits_at_stage_ends_and_starts_as_identity(name: str, placed: dict[str, int]) -> None:
    torch.manual_seed(5)
    plain = build_backbone("resnet14")
    torch.manual_seed(5)
    network = build_backbone(f"resnet14-{name}")
    assert {stage: len(blocks) for stage, blocks in network.attention.items()} == placed
    assert sum(isinstance(module, AttentionBlock) for module in network.modules()) == sum(placed.values())
    extra = network.state_dict().keys() - plain.state_dict().keys()
    assert all(key.startswith(tuple(f"attention.{stage}." for stage in placed)) for key in extra)

    x = torch.randn(2, 3, 48, 48)
    assert torch.equal(network.eval()(x), plain.eval()(x))
    for stage in placed:
        before, plain_maps = network.feature_maps(x), plain.feature_maps(x)
        assert torch.equal(before[stage], plain_maps[stage])
        nn.init.ones_(network.attention[stage][-1].norm.weight)
        after = network.feature_maps(x)
        # res2 to the stage before do not move; the stage itself moves by its block alone, and what follows with it.
        last = network.attention[stage][-1]
        assert torch.equal(after[stage], last(before[stage]))
        assert not torch.equal(after["res5"], before["res5"])
        earlier = list(after)[: list(after).index(stage)]
        assert all(torch.equal(after[name], before[name]) for name in earlier)
        nn.init.zeros_(last.norm.weight)


def test_feature_maps_and_pooling() -> None:
    network = build_backbone("resnet14-attn5").eval()
    nn.init.ones_(network.attention["res5"][0].norm.weight)
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        maps = network.feature_maps(x)
        features = network(x)
    assert {name: tuple(m.shape[1:]) for name, m in maps.items()} == {
        "res2": (256, 16, 24),
        "res3": (512, 8, 12),
        "res4": (1024, 4, 6),
        "res5": (2048, 2, 3),
    }
    assert network.out_features == 2048
    torch.testing.assert_close(features, maps["res5"].mean(dim=(2, 3)))


def test_channels_last_gives_the_same_and_stays() -> None:
    torch.manual_seed(0)
    network = build_backbone("resnet14-attn5").eval()
    nn.init.ones_(network.attention["res5"][0].norm.weight)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = network(x)
        network.to(memory_format=torch.channels_last)
        maps = network.feature_maps(x.to(memory_format=torch.channels_last))
        torch.testing.assert_close(network(x.to(memory_format=torch.channels_last)), expected, rtol=1e-4, atol=1e-5)
    assert all(m.is_contiguous(memory_format=torch.channels_last) for m in maps.values())


def test_every_parameter_gets_a_gradient_once_attention_is_open() -> None:
    torch.manual_seed(0)
    network = build_backbone("resnet14-attn5")
    for block in network.modules():
        if isinstance(block, AttentionBlock):
            nn.init.ones_(block.norm.weight)
    network(torch.randn(4, 3, 48, 48)).square().sum().backward()
    assert [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_names() -> None:
    assert len(backbone_names()) == len(set(backbone_names())) == 16
    assert [len(layer) for layer in (build_backbone("resnet26").layer1, build_backbone("resnet26").layer4)] == [2, 2]
    assert [full_name(name) for name in ("resnet50", "resnet14-attn1")] == ["resnet50-attn0", "resnet14-attn1"]
    for wrong in ("resnet34", "resnet50-", "resnet50-attn2", "attn5", ""):
        with pytest.raises(MstlError, match="resnet101-attn5") as caught:
            build_backbone(wrong)
        assert f"'{wrong}'" in caught.value.what


def test_classifier_drops_features_before_the_linear_layer() -> None:
    torch.manual_seed(0)
    classifier = Classifier(build_backbone("resnet14"), classes=3, dropout=0.5)
    x = torch.randn(2, 3, 32, 32)
    classifier.eval()
    assert torch.equal(classifier(x), classifier.fc(classifier.backbone(x)))
    assert classifier(x).shape == (2, 3)
    classifier.backbone.eval()
    classifier.dropout.train()
    assert not torch.equal(classifier(x), classifier(x))
    assert Classifier(build_backbone("resnet14"), classes=3).dropout.p == 0.0
