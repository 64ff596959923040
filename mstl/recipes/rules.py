"""Fields that a recipe has no use for, and values that exclude each other."""

from __future__ import annotations

from mstl.recipes.schema import ContrastiveLoss, Recipe, SupervisedLoss
from shards.errors import MstlError

_REGIONS, _DROPOUT, _EVALUATION = "data.region_flip", "model.dropout", "data.evaluation"
_IMAGES = "data.images"  # to learn from what one is tested on takes leaving its labels alone
_CROP = "data.random_resized_crop"
_BASELINE = frozenset({_REGIONS, _DROPOUT, _EVALUATION, _CROP})

# A field that would be read by nobody must not be taken from the user in silence.
IDLE: dict[str, frozenset[str]] = {
    "stl_n": frozenset({_REGIONS, _EVALUATION, _IMAGES}),
    "stl_m": frozenset({_REGIONS, _EVALUATION, _IMAGES, _CROP}),
    "sstl_m": frozenset({_DROPOUT, _EVALUATION, _CROP}),
    "sstl_m-moco": _BASELINE,
    "sstl_m-moco_v2": _BASELINE,
    "sstl_m-simclr": _BASELINE,
    "finetune": frozenset({_REGIONS, _IMAGES, _CROP}),
}

# How often to save and with how many threads to read changes no result: a continued run may change these. So it may
# how the rate was found: the rate itself may not.
FREE = frozenset(
    {
        "data.workers",
        "data.max_bad",
        "optim.scale_lr",
        "checkpoint.every_steps",
        "checkpoint.every_minutes",
        "checkpoint.keep",
    }
)


def check_together(name: str, recipe: Recipe) -> None:
    """Raise MstlError, with the remedy, for values that are right one by one and wrong together."""
    for holds, why, remedy in _rules(name, recipe):
        if not holds:
            raise MstlError(f"recipe of {name}", why=why, remedy=remedy)


def _rules(name: str, recipe: Recipe) -> list[tuple[bool, str, str]]:
    data, optim, loss, engine = recipe.data, recipe.optim, recipe.loss, recipe.engine
    supervised = isinstance(loss, SupervisedLoss)
    return [
        (
            supervised or recipe.checkpoint.select == "last",
            "checkpoint.select=best needs an accuracy, and a stage without labels has none",
            "Use checkpoint.select=last",
        ),
        (
            supervised or engine.accumulate == 1,
            f"engine.accumulate={engine.accumulate} would compare every image with fewer others: a contrastive "
            "loss is one of the whole batch",
            "Use engine.accumulate=1, and a smaller data.batch_size, more ranks or precision.autocast to save memory",
        ),
        (
            data.batch_size % engine.accumulate == 0,
            f"data.batch_size {data.batch_size} cannot be worked through in {engine.accumulate} equal parts "
            "(engine.accumulate)",
            f"Use a multiple of {engine.accumulate} as data.batch_size",
        ),
        (
            optim.algorithm == "sgd" or engine.zero == 0,
            f"engine.zero={engine.zero} keeps the weights in one flat row, and LARS scales each layer by its own norm",
            "Use engine.zero=0, or optim.algorithm=sgd",
        ),
        (
            list(optim.milestones) == sorted(set(optim.milestones)),
            f"optim.milestones {list(optim.milestones)} do not rise",
            "Name each epoch once, the earlier first",
        ),
        (
            optim.warmup_epochs < optim.epochs,
            f"a warm-up of {optim.warmup_epochs} epochs leaves nothing of {optim.epochs}",
            "Use more optim.epochs or a smaller optim.warmup_epochs",
        ),
        (
            not isinstance(loss, ContrastiveLoss) or loss.region == "off" or name == "sstl_m",
            "loss.region needs the five regions, and this method's inputs have none",
            "Leave loss.region=off, or train with --ssl ours",
        ),
    ]
