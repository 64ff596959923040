"""From a recipe to its self-supervised method: a new method gets a loss section of its own and a line here."""

from mstl.models.resnet import ResNet
from mstl.recipes import ContrastiveLoss, NTXentLoss, Recipe
from mstl.ssl.method import Method
from mstl.ssl.moco import MomentumContrast
from mstl.ssl.simclr import SimCLR


def build_method(backbone: ResNet, recipe: Recipe, seed: int) -> Method:
    """The method of a recipe's loss section, around a backbone that has its first weights."""
    loss = recipe.loss
    if isinstance(loss, ContrastiveLoss):
        return MomentumContrast(
            backbone,
            dim=loss.dim,
            head=loss.head,
            queue_size=loss.queue_size,
            momentum=loss.momentum,
            temperature=loss.temperature,
            temperature_on=loss.temperature_on,
            alpha1=loss.alpha1,
            alpha2=loss.alpha2,
            region_mode=loss.region,
            bn_group=loss.bn_group,
            seed=seed,
        )
    if isinstance(loss, NTXentLoss):
        return SimCLR(backbone, dim=loss.dim, temperature=loss.temperature)
    raise TypeError(f"{type(loss).__name__} belongs to no self-supervised method")
