"""What one network takes over of another's weights: every name accounted for, foreign names found, misfits refused."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from mstl.carry import carry_over, describe_carry
from mstl.models.classifier import Classifier
from mstl.models.registry import build_backbone
from shards.errors import MstlError

State = dict[str, Tensor]


def plain_source() -> State:
    torch.manual_seed(1)
    return build_backbone("resnet14").state_dict()


def snapshot(module: nn.Module) -> State:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


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
        ({**plain_source(), "gate.weight": torch.zeros(1)}, "no place for 'gate.weight'"),
        ({**plain_source(), "fcn": torch.zeros(1)}, "no place for 'fcn'"),
        (build_backbone("resnet14-attn1").state_dict(), r"no place for 'attention.res3.0.*and 7 more"),
        (build_backbone("resnet26").state_dict(), "no place for 'layer1.1.bn1.bias' and .*, as in resnet26"),
        (other, r"'layer1.0.conv1.weight': it is 64x64x3x3 in the source and 64x64x1x1 in the network"),
        ({}, "no residual network"),
    ):
        with pytest.raises(MstlError, match=words):
            carry_over(source, target)
    assert all(torch.equal(tensor, before[name]) for name, tensor in target.state_dict().items())


def test_weights_saved_before_batch_norm_counted_its_batches_fit() -> None:
    source, target = build_backbone("resnet14"), build_backbone("resnet14")
    old = {name: value for name, value in source.state_dict().items() if not name.endswith("num_batches_tracked")}
    report = carry_over(old, target)
    assert report.new == tuple(sorted(source.state_dict().keys() - old.keys()))
    assert torch.equal(target.conv1.weight, source.conv1.weight)


def torchvision_state(seed: int = 3) -> State:
    """resnet14 as torchvision builds it, every weight distinct."""
    torch.manual_seed(seed)
    network = torchvision.models.ResNet(Bottleneck, [1, 1, 1, 1], num_classes=5)
    return {
        name: torch.rand(value.shape) + 0.1 if value.is_floating_point() else torch.tensor(7)
        for name, value in network.state_dict().items()
    }


def under(prefix: str, state: State) -> State:
    return {prefix + name: value for name, value in state.items()}


def without_head(state: State) -> State:
    return {name: value for name, value in state.items() if not name.startswith("fc.")}


def numbered(state: State) -> State:
    """As the same network reads when its children stand in an nn.Sequential."""
    torch.manual_seed(0)
    network = torchvision.models.ResNet(Bottleneck, [1, 1, 1, 1], num_classes=5)
    network.load_state_dict(state)
    return nn.Sequential(*list(network.children())[:-1]).state_dict()


OTHER = torchvision_state(seed=4)  # a momentum copy: the same names, other values
HEAD = {"0.weight": torch.ones(4, 4), "2.weight": torch.ones(2, 4)}

# Layout → how a file of it is made from a network's state, and what the account must say.
LAYOUTS: dict[str, tuple[Callable[[State], State], str, dict[str, int]]] = {
    "torchvision and timm": (
        lambda state: state,
        "",
        {"fc.*: a head, and only the backbone crosses stages": 2},
    ),
    "DistributedDataParallel": (
        lambda state: under("module.", state),
        "module.",
        {"module.fc.*: a head, and only the backbone crosses stages": 2},
    ),
    "MoCo v1 and v2": (
        lambda state: (
            under("state_dict.module.encoder_q.", without_head(state) | under("fc.", HEAD))
            | under("state_dict.module.encoder_k.", without_head(OTHER) | under("fc.", HEAD))
            | {"state_dict.module.queue": torch.ones(4, 8), "state_dict.module.queue_ptr": torch.zeros(1).long()}
        ),
        "state_dict.module.encoder_q.",
        {
            "state_dict.module.encoder_q.fc.*: a head, and only the backbone crosses stages": 2,
            "state_dict.module.encoder_k.*: a running average of the network": len(without_head(OTHER)) + 2,
            "state_dict.module.queue: the queue of keys": 1,
            "state_dict.module.queue_ptr: the queue of keys": 1,
        },
    ),
    "MoCo v3": (
        lambda state: (
            under("state_dict.module.momentum_encoder.", OTHER)
            | under("state_dict.module.base_encoder.", without_head(state) | under("fc.", HEAD))
            | under("state_dict.module.predictor.", HEAD)
        ),
        "state_dict.module.base_encoder.",
        {
            "state_dict.module.base_encoder.fc.*: a head, and only the backbone crosses stages": 2,
            "state_dict.module.momentum_encoder.*: a running average of the network": len(OTHER),
            "state_dict.module.predictor.*: a head, and only the backbone crosses stages": 2,
        },
    ),
    "Lightning": (
        lambda state: under("state_dict.model.", state) | {"state_dict.criterion.weight": torch.ones(2)},
        "state_dict.model.",
        {
            "state_dict.model.fc.*: a head, and only the backbone crosses stages": 2,
            "state_dict.criterion.*: it stands beside the network": 1,
        },
    ),
    "solo-learn": (
        lambda state: (
            under("state_dict.backbone.", without_head(state))
            | under("state_dict.momentum_backbone.", without_head(OTHER))
            | under("state_dict.classifier.", HEAD)
            | under("state_dict.projector.", HEAD)
        ),
        "state_dict.backbone.",
        {
            "state_dict.momentum_backbone.*: a running average of the network": len(without_head(OTHER)),
            "state_dict.classifier.*: a head, and only the backbone crosses stages": 2,
            "state_dict.projector.*: a head, and only the backbone crosses stages": 2,
        },
    ),
    "SimCLR with the head in the network's place": (
        lambda state: under("state_dict.backbone.", without_head(state) | under("fc.", HEAD)),
        "state_dict.backbone.",
        {"state_dict.backbone.fc.*: a head, and only the backbone crosses stages": 2},
    ),
    "SwAV": (
        lambda state: (
            under("module.", without_head(state) | under("projection_head.", HEAD))
            | {"module.prototypes.weight": torch.ones(3, 2)}
        ),
        "module.",
        {
            "module.projection_head.*: a head, and only the backbone crosses stages": 2,
            "module.prototypes.*: a head, and only the backbone crosses stages": 1,
        },
    ),
    "VISSL": (
        lambda state: (
            under("classy_state_dict.base_model.model.trunk._feature_blocks.", without_head(state))
            | under("classy_state_dict.base_model.model.heads.0.", HEAD)
        ),
        "classy_state_dict.base_model.model.trunk._feature_blocks.",
        {"classy_state_dict.base_model.model.heads.*: a head, and only the backbone crosses stages": 2},
    ),
    "layers by number, as Lightly's and RadImageNet's": (
        lambda state: under("backbone.", numbered(state)),
        "backbone.",
        {},
    ),
    "layers by number at the top": (lambda state: numbered(state), "", {}),
    "timm with an average": (
        lambda state: under("state_dict.", state) | under("state_dict_ema.", OTHER),
        "state_dict.",
        {
            "state_dict.fc.*: a head, and only the backbone crosses stages": 2,
            "state_dict_ema.*: a running average of the network": len(OTHER),
        },
    ),
    "only the average": (
        lambda state: under("teacher.", without_head(state)),
        "teacher.",
        {},
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_network_is_found_under_anybodys_names(layout: str) -> None:
    make, prefix, reasons = LAYOUTS[layout]
    state = torchvision_state()
    source = make(state)
    target = build_backbone("resnet14-attn1")
    before = snapshot(target)
    report = carry_over(source, target)
    after = target.state_dict()
    trunk = [name for name in after if not name.startswith("attention.")]
    assert list(report.carried) == sorted(trunk)
    assert all(torch.equal(after[name], state[name]) for name in trunk)
    assert list(report.new) == sorted(after.keys() - set(trunk))
    assert all(torch.equal(after[name], before[name]) for name in report.new)
    assert report.reasons == reasons
    assert len(report.dropped) == sum(reasons.values())
    assert len(report.carried) + len(report.dropped) == len(source)  # every name, once
    assert set(report.dropped) <= source.keys()
    assert report.notes == ((f"found under '{prefix}'",) if prefix else ())


def test_half_precision_and_one_channel_are_taken_and_told() -> None:
    state = torchvision_state()
    grey = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    grey["conv1.weight"] = grey["conv1.weight"][:, :1]
    target = build_backbone("resnet14")
    report = carry_over(grey, target)
    assert report.notes == ("conv1.weight for one channel spread over 3", "converted from float16 to float32")
    assert target.conv1.weight.dtype == torch.float32
    assert torch.equal(target.layer4[0].conv3.weight, state["layer4.0.conv3.weight"].half().float())
    image = torch.rand(2, 1, 32, 32)
    alone = nn.functional.conv2d(image, grey["conv1.weight"].float(), stride=2, padding=3)
    assert torch.allclose(target.conv1(image.expand(-1, 3, -1, -1)), alone, atol=1e-4)
    said = describe_carry(report.to_dict())
    assert said == f"{len(report.carried)} weights carried, 0 new, 2 dropped, " + ", ".join(report.notes)


def vision_transformer() -> State:
    return {
        "cls_token": torch.ones(1),
        "patch_embed.proj.weight": torch.ones(4),
        "blocks.0.attn.qkv.weight": torch.ones(4),
    }


def deep_stem() -> State:
    state = torchvision_state()
    state["conv1.0.weight"] = state.pop("conv1.weight")
    return state


def test_other_networks_are_refused_with_what_they_look_like() -> None:
    state = torchvision_state()
    basic = torchvision.models.ResNet(BasicBlock, [1, 1, 1, 1]).state_dict()
    wide = torchvision.models.ResNet(Bottleneck, [1, 1, 1, 1], width_per_group=128).state_dict()
    squeezed = {**state, "layer1.0.se.fc1.weight": torch.ones(2)}
    deeper = build_backbone("resnet26-attn0").state_dict()
    target = build_backbone("resnet14")
    before = snapshot(target)
    for source, words in (
        (under("model.", vision_transformer()), "no residual network is in the file: it looks like a vision transf"),
        ({"net.0.weight": torch.ones(1)}, r"no residual network is in the file \(its first name is 'net.0.weight'\)"),
        (deep_stem(), "lacks 'conv1.weight', as in networks with a deep stem"),
        (basic, "lacks .*, as in resnet18 and resnet34"),
        (wide, "'layer1.0.bn1.bias': it is 128 in the source and 64 in the network"),
        (squeezed, "no place for 'layer1.0.se.fc1.weight'$"),
        (under("module.", deeper), "no place for 'module.layer1.1.bn1.bias' and .* more, as in resnet26"),
        (under("left.", state) | under("right.", state), "residual networks under 'left.', 'right.'"),
        ({**state, "bn1.weight": torch.full((64,), torch.nan)}, "'bn1.weight': it holds values that are not finite"),
        ({**state, "bn1.weight": torch.ones(64).to(torch.int8)}, "'bn1.weight': it is of type int8"),
        ({**state, "conv1.weight": torch.ones(64, 4, 7, 7)}, "'conv1.weight': it is 64x4x7x7 in the source and 64x3"),
    ):
        with pytest.raises(MstlError) as caught:
            carry_over(source, target)
        assert re.search(words, f"{caught.value.what}: {caught.value.why}"), str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in target.state_dict().items())
