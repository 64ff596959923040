"""Backbones by name: `resnet50-attn5` and its kin."""

from mstl.models.attention import AttentionOptions
from mstl.models.names import DEPTHS as DEPTHS
from mstl.models.names import PLACEMENTS as PLACEMENTS
from mstl.models.names import backbone_names as backbone_names
from mstl.models.names import full_name as full_name
from mstl.models.resnet import ResNet
from mstl.recipes import Model


def build_backbone(name: str, options: AttentionOptions | None = None) -> ResNet:
    """A newly initialised backbone; MstlError for a name that is not in `backbone_names()`.

    options: how its attention departs from eq. 1 and is computed; None is not at all, and eager.
    """
    depth, _, attention = full_name(name).partition("-")
    return ResNet(DEPTHS[depth], PLACEMENTS[attention], options)


def attention_options(model: Model) -> AttentionOptions:
    """What a recipe says of attention."""
    return AttentionOptions(
        backend=model.attention_backend, root_scale=model.attention_scale == "root", pool=model.attention_pool
    )
