"""The arithmetic of `mstl models` against torch's own counting on real networks, and against published figures."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import ResNet50_Weights, ResNet101_Weights

from mstl.cli.models import command
from mstl.models.cost import map_sides, network_cost
from mstl.models.names import backbone_names, full_name
from mstl.models.registry import build_backbone
from shards.errors import MstlError

NAMES = sorted({full_name(name) for name in backbone_names()})
DEEP = ("resnet50-attn1", "resnet101-attn0", "resnet101-attn1")  # the slower ones; others of their depth stay


@pytest.mark.parametrize(
    ("name", "image_size"),
    [
        *(pytest.param(name, 224, marks=pytest.mark.slow if name in DEEP else ()) for name in NAMES),
        ("resnet26-attn5", 75),
    ],
)
def test_flops_and_parameters_are_those_that_torch_counts(name: str, image_size: int) -> None:
    with FakeTensorMode():  # shapes alone: nothing is computed
        network, image = build_backbone(name), torch.empty(2, 3, image_size, image_size)
        with FlopCounterMode(display=False) as forward:
            features = network(image)
        with FlopCounterMode(display=False) as backward:
            features.sum().backward()
    cost = network_cost(name, image_size)
    assert forward.get_total_flops() == 2 * cost.forward_flops
    assert forward.get_total_flops() + backward.get_total_flops() == 2 * cost.training_flops
    assert sum(parameter.numel() for parameter in network.parameters()) == cost.parameters


@pytest.mark.parametrize("name", ["resnet14-attn0", "resnet26-attn1", "resnet14-attn5"])
def test_each_part_counts_its_own(name: str) -> None:
    with FakeTensorMode():
        network, image = build_backbone(name), torch.empty(1, 3, 96, 96)
        with FlopCounterMode(display=False) as counter:
            network(image)
    modules = {"stem": ["conv1"], **{f"res{number + 1}": [f"layer{number}"] for number in range(1, 5)},
               **{f"attention {stage}": [f"attention.{stage}"] for stage in network.attention}}  # fmt: skip
    counts = {where.removeprefix("ResNet."): sum(flops.values()) for where, flops in counter.get_flop_counts().items()}
    parts = {part.name: part for part in network_cost(name, 96).parts}
    assert parts.keys() == modules.keys()
    for part, (module,) in modules.items():
        assert parts[part].forward_flops == counts[module]
        own = [network.get_submodule(module), *([network.bn1] if part == "stem" else [])]
        assert parts[part].parameters == sum(p.numel() for each in own for p in each.parameters())


@pytest.mark.parametrize("name", ["resnet14-attn0", "resnet26-attn0", "resnet14-attn1", "resnet26-attn5"])
def test_kept_bytes_are_those_that_autograd_keeps(name: str) -> None:
    # As it is trained; in other memory formats attention copies its input.
    network = build_backbone(name).to(memory_format=torch.channels_last)
    weights = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage().data_ptr()
        if tensor.ndim > 1 and place not in weights:
            kept[place] = tensor  # held, lest its memory be given to another
        return tensor

    image = torch.randn(2, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        features = network(image)
    assert features.requires_grad
    assert sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) == 2 * network_cost(name, 64).kept_bytes


@pytest.mark.parametrize(("name", "weights"), [("resnet50", ResNet50_Weights), ("resnet101", ResNet101_Weights)])
def test_published_figures(name: str, weights: type[ResNet50_Weights] | type[ResNet101_Weights]) -> None:
    meta = weights.IMAGENET1K_V2.meta
    cost, classifier = network_cost(name, 224), 2048 * 1000
    assert (cost.forward_flops / 2 + classifier) / 1e9 == pytest.approx(meta["_ops"], abs=1e-3)
    assert cost.parameters + classifier + 1000 == meta["num_params"]
    assert cost.attention_share == 0


def test_map_sides() -> None:
    assert map_sides(224) == {"res2": 56, "res3": 28, "res4": 14, "res5": 7}
    network = build_backbone("resnet14")
    for size in (32, 65, 100):
        maps = network.feature_maps(torch.zeros(2, 3, size, size))
        assert map_sides(size) == {stage: found.shape[-1] for stage, found in maps.items()}


def test_an_unknown_network_is_named() -> None:
    with pytest.raises(MstlError, match="resnet49"):
        network_cost("resnet49", 224)


def test_the_command_shows_every_network() -> None:
    done = CliRunner(catch_exceptions=False).invoke(command, ["--image-size", "96"])
    assert done.exit_code == 0
    assert all(name in done.output for name in NAMES)
    done = CliRunner(catch_exceptions=False).invoke(command, ["--image-size", "96", "--json"])
    for found in json.loads(done.output):
        cost = network_cost(found["network"], 96)
        assert found["training_flops"] == cost.training_flops
        assert found["parameters"] == sum(part["parameters"] for part in found["parts"])
        shares = [part["forward_flops"] for part in found["parts"] if part["name"].startswith("attention")]
        assert found["attention_share"] == pytest.approx(sum(shares) / cost.forward_flops)
