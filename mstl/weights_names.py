"""Under which names a residual network lies in somebody else's file: torchvision, timm, MoCo, Lightning and their kin.

All of them keep torchvision's names for the layers and put a path before them (`module.encoder_q.`, `model.`,
`backbone.`), or number the layers as nn.Sequential does. So the path is looked for, not looked up.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from mstl.models.names import DEPTHS
from shards.errors import MstlError

# Layers of a residual network in the order of torchvision's children, as Lightly and RadImageNet number them.
NUMBERED = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
BLOCK, NUMBERED_BLOCK = "layer1.0.conv1.weight", "4.0.conv1.weight"  # what every residual network has
# Running averages of the network that stands beside them in the same file.
COPIES = frozenset({
    "encoder_k", "key_encoder", "momentum_encoder", "momentum_backbone", "momentum_net", "backbone_momentum",
    "target_encoder", "target_network", "teacher", "ema", "model_ema", "ema_model", "state_dict_ema",
})  # fmt: skip
HEADS = frozenset({
    "fc", "head", "heads", "classifier", "classifiers", "last_linear", "projector", "momentum_projector", "projection",
    "projection_head", "projection_mlp", "predictor", "predictor_mlp", "prototypes", "contrastive_head",
})  # fmt: skip
# First words of other networks' names, as far as a better message is worth it.
OTHERS = {
    "patch_embed": "a vision transformer",
    "cls_token": "a vision transformer",
    "encoder_layer": "a vision transformer",
    "denseblock1": "a DenseNet",
    "_fc": "an EfficientNet",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """Where the backbone lies. names: our name → the file's; beside: the file's other names → why they are left."""

    prefix: str
    names: dict[str, str]
    beside: dict[str, str]


def find_backbone(names: Collection[str]) -> Found:
    """Find the one residual network among a file's names, torchvision's names for its layers.

    A momentum or average copy is passed over where the network itself is there. Raises MstlError when there is no
    residual network, or more than one that is not such a copy.
    """
    places = {name.removesuffix(BLOCK): False for name in names if name.endswith(BLOCK)}
    numbered = {name.removesuffix(NUMBERED_BLOCK): True for name in names if name.endswith(NUMBERED_BLOCK)}
    places |= {place: True for place in numbered if place == "" or place.endswith(".")}
    originals = [place for place in places if not COPIES & set(place.split("."))] or sorted(places)
    if not originals:
        raise MstlError(
            "weights of another kind of network",
            why=f"no residual network is in the file{_kind(names)}",
            remedy="Give the weights of a ResNet with bottleneck blocks",
        )
    if len(originals) > 1:
        raise MstlError(
            "weights of several networks",
            why=f"the file holds residual networks under {', '.join(repr(place) for place in originals[:4])}",
            remedy="Save the one that is meant in a file of its own",
        )
    prefix = originals[0]
    inside, beside = {}, {}
    for name in names:
        if name.startswith(prefix):
            ours = name.removeprefix(prefix)
            if places[prefix]:
                first, _, rest = ours.partition(".")
                ours = f"{NUMBERED.get(first, first)}.{rest}"
            if ours.partition(".")[0] not in HEADS:
                inside[ours] = name
                continue
        beside[name] = _why_left(name, prefix)
    return Found(prefix=prefix, names=inside, beside=beside)


def guess_network(names: Collection[str]) -> str:
    """What a residual network's names say of its kind: ', as in resnet101' and the like."""
    if "conv1.0.weight" in names:
        return ", as in networks with a deep stem (timm's resnet50d)"
    if "layer1.0.conv3.weight" not in names:
        return ", as in resnet18 and resnet34, whose blocks are of another kind"
    blocks = tuple(
        len({name.split(".")[1] for name in names if name.startswith(f"layer{layer}.")}) for layer in range(1, 5)
    )
    depth = next((name for name, value in DEPTHS.items() if value == blocks), None)
    return f", as in {depth}" if depth else f", as in a network of {'-'.join(map(str, blocks))} blocks"


def _why_left(name: str, prefix: str) -> str:
    """The group a name belongs to, and why that is left out: 'module.encoder_k.*: a running average …'."""
    parts, path = name.split("."), prefix.split(".")
    common = 0
    while common < len(parts) - 1 and common < len(path) and parts[common] == path[common]:
        common += 1
    word = parts[common]
    group = ".".join(parts[: common + 1]) + (".*" if common + 1 < len(parts) else "")
    if COPIES & set(parts):
        return f"{group}: a running average of the network"
    if word.startswith("queue"):
        return f"{group}: the queue of keys"
    if word in HEADS:
        return f"{group}: a head, and only the backbone crosses stages"
    return f"{group}: it stands beside the network"


def _kind(names: Collection[str]) -> str:
    words = {word for name in names for word in name.split(".")}
    kind = next((kind for word, kind in OTHERS.items() if word in words), None)
    if kind:
        return f": it looks like {kind}"
    example = min(names, default=None)
    return f" (its first name is '{example}')" if example else ""


def group_reasons(beside: Mapping[str, str]) -> dict[str, int]:
    """Reason → how many names it holds for."""
    reasons: dict[str, int] = {}
    for why in beside.values():
        reasons[why] = reasons.get(why, 0) + 1
    return dict(sorted(reasons.items()))
