"""The recipes of the stages: the paper's numbers, our resolutions of them, and a user's overrides."""

from mstl.recipes.build import (
    OURS,
    SELF_SUPERVISED,
    Settled,
    build_recipe,
    flatten,
    recipe_name,
    settle_recipe,
    settle_ssl,
)
from mstl.recipes.printed import PRINTED, Printed
from mstl.recipes.schema import (
    Checkpoint,
    ContrastiveLoss,
    Data,
    Engine,
    Flavour,
    Model,
    NTXentLoss,
    Optim,
    Precision,
    Recipe,
    Ssl,
    SupervisedLoss,
)
from mstl.recipes.values import RESOLVED

__all__ = [
    "OURS",
    "PRINTED",
    "RESOLVED",
    "SELF_SUPERVISED",
    "Checkpoint",
    "ContrastiveLoss",
    "Data",
    "Engine",
    "Flavour",
    "Model",
    "NTXentLoss",
    "Optim",
    "Precision",
    "Printed",
    "Recipe",
    "Settled",
    "Ssl",
    "SupervisedLoss",
    "build_recipe",
    "flatten",
    "recipe_name",
    "settle_recipe",
    "settle_ssl",
]
