"""Whether a network needs what a heatmap points at: deletion and insertion curves (Petsiuk et al., RISE, 2018)."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur  # type: ignore[import-untyped]

from mstl.evaluation.explain_maps import enlarged

STEPS = 20  # of a curve; each is an image for the network
BLUR_SIGMA = 5 / 224  # of the image's side: RISE's 5 pixels of 224
Curve = NDArray[np.float64]


def pixel_ranks(heat: Tensor, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Each pixel's place, 0 the most important, in a map [h, w] enlarged to `size`: [H, W] int64.

    Equals (where a CAM is 0, for one) stand in random order: in reading order they would be a pattern of their own.
    """
    values = enlarged(heat[None].cpu(), size)[0].flatten()
    shuffled = torch.randperm(len(values), generator=generator)
    order = shuffled[torch.argsort(values[shuffled], descending=True, stable=True)]
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(len(order))
    return ranks.reshape(size)


def deletion_curve(classifier: nn.Module, x: Tensor, ranks: Tensor, class_index: int) -> Curve:
    """[STEPS + 1] probabilities of a class while the image's most important pixels are deleted, none to all.

    x [3, H, W] normalised; a deleted pixel is 0, the mean of ImageNet. Falls fast where the map tells what matters.
    """
    return _curve(classifier, before=x, after=torch.zeros_like(x), ranks=ranks, class_index=class_index)


def insertion_curve(classifier: nn.Module, x: Tensor, ranks: Tensor, class_index: int) -> Curve:
    """[STEPS + 1] probabilities of a class while the most important pixels are put into the blurred image, none to all.

    x [3, H, W] normalised. Rises fast where the map tells what matters.
    """
    sigma = BLUR_SIGMA * min(x.shape[1:])
    blurred = gaussian_blur(x[None], kernel_size=[2 * round(3 * sigma) + 1] * 2, sigma=[sigma, sigma])[0]
    return _curve(classifier, before=blurred, after=x, ranks=ranks, class_index=class_index)


def area_under(curve: Curve) -> float:
    """The area under a curve over the share of pixels 0..1: the trapezoids of its points, equally far apart."""
    return float(np.trapezoid(curve, dx=1 / (len(curve) - 1)))


def _curve(classifier: nn.Module, *, before: Tensor, after: Tensor, ranks: Tensor, class_index: int) -> Curve:
    """The probability of a class while pixels change from `before` to `after`, the most important first."""
    assert not classifier.training, "curves need the classifier in evaluation mode"
    changed = torch.linspace(0, ranks.numel(), STEPS + 1, dtype=torch.float64).round().to(ranks)
    is_changed = (ranks < changed[:, None, None]).to(before.device)[:, None]
    images = torch.where(is_changed, after, before).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        probabilities = classifier(images).double().softmax(1)[:, class_index]
    curve: Curve = probabilities.cpu().numpy()
    return curve
