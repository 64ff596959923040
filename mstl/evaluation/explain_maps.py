"""Where a classifier looks: Grad-CAM and the attention map of its last ATTN block (paper section 6.8, figure 4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from mstl.models.attention import AttentionBlock
from mstl.models.classifier import Classifier
from shards.errors import MstlError


def grad_cam(classifier: Classifier, x: Tensor, class_index: int | Tensor) -> Tensor:
    """ReLU(Σ_k α_k F_k) with α_k the spatial mean of ∂z_c/∂F_k (Grad-CAM at the last map before pooling, figure 4).

    x [B, 3, H, W] normalised → [B, h, w] of the res5 map, not scaled; z_c is the logit of `class_index`, one for all
    images or [B] int64 of each its own. The classifier must be in evaluation mode, and its parameters' gradients stay
    as they are.
    """
    assert not classifier.training, "Grad-CAM needs the classifier in evaluation mode"
    with torch.no_grad():
        features = classifier.backbone.feature_maps(x)["res5"]
    wanted = torch.as_tensor(class_index, device=x.device).expand(len(x))
    with torch.enable_grad():
        features = features.detach().requires_grad_()
        logits = classifier.fc(classifier.dropout(features.mean((2, 3))))
        (slopes,) = torch.autograd.grad(logits.gather(1, wanted[:, None]).sum(), features)
    weights = slopes.mean((2, 3), keepdim=True)
    return (weights * features.detach()).sum(1).relu()


def attention_map(classifier: Classifier, x: Tensor) -> Tensor:
    """How much each position is attended to: the mean of the attention A over its queries (figure 4).

    x [B, 3, H, W] → [B, h, w] of the last ATTN block of res5 (of its keys, where they are pooled); each map sums to 1.
    Raises MstlError for a network without attention there.
    """
    assert not classifier.training, "an attention map needs the classifier in evaluation mode"
    if not has_attention(classifier):
        raise MstlError(
            "attention map", why="the network has no attention block after res5", remedy="Use a network named …-attn5"
        )
    blocks = classifier.backbone.attention["res5"]
    assert isinstance(blocks, nn.Sequential)
    block = blocks[-1]
    assert isinstance(block, AttentionBlock)
    inputs: list[Tensor] = []
    hook = block.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
    try:
        with torch.no_grad():
            classifier.backbone(x)
            keys_queries: Tensor = block.attention.weights(inputs[0])
    finally:
        hook.remove()
    height, width = inputs[0].shape[2:]
    return keys_queries.mean(2).reshape(len(x), *block.attention.grid(height, width))


def has_attention(classifier: Classifier) -> bool:
    """Whether `attention_map` can be drawn."""
    return "res5" in classifier.backbone.attention


def min_max(maps: Tensor) -> Tensor:
    """Each of the [B, h, w] maps scaled to 0..1; one without any contrast becomes 0."""
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - low) / (high - low).where(high > low, torch.ones_like(high))


def enlarged(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """[B, h, w] maps → [B, H, W] float32 of `size` (H, W), bilinear; non-negative where the maps are."""
    return interpolate(maps.float()[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
