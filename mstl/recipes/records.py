"""Recipes as older programs recorded them: what was done where a field of today was not there yet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RECIPE_SCHEMA = 2
"""Of the recipe in run.json; records without a number are of 1. Raise it with a release that adds fields."""

# Field → what was done by programs that did not have it: only so a run of theirs goes on as it began.
ABSENT: dict[str, Any] = {
    "model.attention_backend": "auto",  # which is eager in a run that recorded no backends: see mstl.build
    "model.attention_scale": "none",
    "model.attention_pool": 1,
    "data.max_bad": 0.0,
    "data.images": "train",
    "data.random_resized_crop": False,
    "data.evaluation": "plain",
    "optim.algorithm": "sgd",
    "optim.scale_lr": False,
    "optim.schedule": "step",
    "optim.warmup_epochs": 0,
    "optim.lr_per": "epoch",
    "loss.temperature_on": "all",
    "loss.head": "linear",
    "loss.bn_group": None,
    "engine.zero": 0,
    "engine.compile": False,
    "engine.accumulate": 1,
    "checkpoint.every_minutes": None,
}
# Fields whose absence meant one thing in some programs and another in others: such a run is not continued.
# data.channels: at first all images were read in colour, later radiographs and CT in grey.
AMBIGUOUS = frozenset({"data.channels"})


def recorded_fields(recipe: Mapping[str, Mapping[str, Any]], schema: int) -> dict[str, Any]:
    """A recorded recipe as {"section.field": value}; what an older one lacks is what its program did."""
    held = {f"{section}.{field}": value for section, values in recipe.items() for field, value in values.items()}
    return held if schema >= RECIPE_SCHEMA else {**ABSENT, **held}
