"""Projection heads of the contrastive methods, and how an image becomes a unit vector."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from mstl.models.batchnorm import JoinedBatchNorm
from mstl.precision import no_autocast, widen

MocoHead = Literal["linear", "mlp"]


def moco_head(features: int, dim: int, kind: MocoHead) -> nn.Module:
    """[B, features] → [B, dim]. linear: one layer (MoCo v1). mlp: a hidden layer as wide as the features (MoCo v2)."""
    if kind == "linear":
        return nn.Linear(features, dim)
    return nn.Sequential(nn.Linear(features, features), nn.ReLU(inplace=True), nn.Linear(features, dim))


def simclr_head(features: int, dim: int) -> nn.Module:
    """[B, features] → [B, dim]: two layers, each followed by batch norm over all ranks (SimCLR's code).

    The last norm has no shift, as there: its bias stays zero, without gradient. All vectors could lean on one shift,
    and LARS, which does not bound the steps of biases, drives them there: every image then looks like every other.
    """
    last = JoinedBatchNorm(dim, eps=1e-5, momentum=0.1)
    last.bias.requires_grad_(False)
    return nn.Sequential(
        nn.Linear(features, features, bias=False),
        JoinedBatchNorm(features, eps=1e-5, momentum=0.1),
        nn.ReLU(inplace=True),
        nn.Linear(features, dim, bias=False),
        last,
    )


def embed(backbone: nn.Module, projection: nn.Module, images: Tensor) -> Tensor:
    """Images → unit vectors [B, dim], the head in float32 or wider even under autocast."""
    features = backbone(images)
    with no_autocast(features):
        return F.normalize(projection(widen(features)), dim=1)
