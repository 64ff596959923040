"""What each stage's network sees in training and in validation: its recipe of `pipelines.recipe`. No torch here."""

from __future__ import annotations

from dataclasses import replace

from mstl.recipes import OURS, SELF_SUPERVISED, Data, Recipe, Ssl
from pipelines.recipe import (
    Inputs,
    Published,
    evaluation,
    fitted,
    multi_view_ct,
    supervised_ct,
    supervised_cxr,
    supervised_natural,
    two_view,
)

_PUBLISHED: dict[Ssl, Published] = {"moco": "moco_v1", "moco_v2": "moco_v2", "simclr": "simclr"}


def train_inputs(stage: str, ssl: Ssl | None, recipe: Recipe) -> Inputs:
    """The views that a stage trains on, for a shard set of any modality (see `for_set`)."""
    side = recipe.data.image_size
    if stage == SELF_SUPERVISED:
        if ssl is None or ssl == OURS:
            return multi_view_ct(side, region_flip=recipe.data.region_flip)
        return two_view(side, published=_PUBLISHED[ssl])
    if stage == "stl_n":
        return supervised_natural(side, random_resized_crop=recipe.data.random_resized_crop)
    return {"stl_m": supervised_cxr, "finetune": supervised_ct}[stage](side)


def val_inputs(stage: str, ssl: Ssl | None, recipe: Recipe) -> Inputs:
    """The views that a stage is validated on: those of its loss without labels, else one plain view."""
    side = recipe.data.image_size
    if stage == SELF_SUPERVISED:
        return train_inputs(stage, ssl, recipe)
    if stage == "stl_m":
        # Training sees the whole radiograph, uncropped, and so must validation.
        return evaluation(side, resize=side)
    return evaluation(side, as_printed=recipe.data.evaluation == "as_printed")


def for_set(inputs: Inputs, data: Data, *, modality: str, deep: bool) -> Inputs:
    """Inputs as this shard set's images ask for them, or as `data.channels` does."""
    if data.channels == "rgb":
        return replace(inputs, channels="rgb", bits=8)
    return fitted(inputs, modality=modality, deep=deep)
