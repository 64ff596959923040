"""The recipes of the four stages: the paper's numbers, our resolutions of them, and a user's overrides."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from shards.errors import MstlError

Flavour = Literal["resolved", "printed"]


class Section(BaseModel):
    """A part of a recipe: frozen, and a misspelt field is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Data(Section):
    image_size: int = Field(224, ge=32, le=1024, description="side of the network's input in pixels (paper 5.2)")
    batch_size: int = Field(ge=1, description="global: summed over all ranks (paper 5.2)")
    workers: int = Field(2, ge=1, description="DALI threads per rank (ours)")
    max_bad: float = Field(
        0.0, ge=0, le=1, description="part of the training images each rank may skip as unreadable (ours: none)"
    )
    region_flip: bool = Field(False, description="flip region crops too; it destroys the left/right cue (ours: off)")


class Model(Section):
    dropout: float = Field(0.0, ge=0, lt=1, description="drop probability between pooling and classifier (paper 5.2)")


class Optim(Section):
    epochs: int = Field(ge=1, description="passes over the data (paper 5.2)")
    lr: float = Field(gt=0, description="base learning rate of SGD (paper 5.2)")
    milestones: tuple[PositiveInt, ...] = Field(
        (), description="epochs after which the rate is multiplied by gamma (paper 5.2)"
    )
    gamma: float = Field(0.1, gt=0, le=1, description="factor at each milestone (paper 5.2)")
    momentum: float = Field(0.9, ge=0, lt=1, description="SGD momentum (paper 5.2)")
    weight_decay: float = Field(1e-4, ge=0, description="L2 penalty on all weights (paper 5.2)")
    clip: float = Field(0.0, ge=0, description="largest global gradient norm; 0 is no clipping (ours)")


class SupervisedLoss(Section):
    """Cross entropy has no parameters."""


class ContrastiveLoss(Section):
    temperature: float = Field(0.07, gt=0, description="tau of eq. 2, on every term")
    momentum: float = Field(0.999, ge=0, lt=1, description="m of eq. 3")
    queue_size: int = Field(256, ge=1, description="negatives held (ours: the set has 425 images)")
    dim: int = Field(128, ge=1, description="width of the projection (MoCo v1)")
    alpha1: float = Field(0.8, ge=0, description="weight of the contrastive loss, eq. 6")
    alpha2: float = Field(0.8, ge=0, description="weight of the region loss, eq. 6")
    region: Literal["normalised", "literal", "off"] = Field(
        "normalised", description="mean of the region loss over the images, or eq. 6's sum over them"
    )


class Precision(Section):
    autocast: Literal["auto", "off", "bf16"] = Field(
        "auto", description="auto: bf16 on a GPU that has it, else fp32 (ours)"
    )


class Checkpoint(Section):
    every_steps: int = Field(1000, ge=1, description="steps between checkpoints (ours)")
    keep: int = Field(2, ge=1, description="newest checkpoints kept (ours)")
    select: Literal["last", "best"] = Field(
        "last", description="weights handed on: of the last epoch, or of the best validation (AUC, else accuracy)"
    )


class Recipe(Section):
    """All that a stage's training depends on, apart from network, data, seed and first weights."""

    data: Data
    model: Model = Model()
    optim: Optim
    loss: SupervisedLoss | ContrastiveLoss
    precision: Precision = Precision()
    checkpoint: Checkpoint = Checkpoint()


class Printed(NamedTuple):
    """A field whose printed value differs from our resolution, and why we departed from it."""

    field: str
    value: Any
    why: str


RESOLVED: dict[str, Recipe] = {
    "stl_n": Recipe(
        data=Data(batch_size=512),
        model=Model(dropout=0.2),
        optim=Optim(epochs=90, lr=0.1, milestones=(30, 60)),
        loss=SupervisedLoss(),
    ),
    "stl_m": Recipe(
        data=Data(batch_size=64),
        model=Model(dropout=0.5),
        optim=Optim(epochs=30, lr=2e-4),
        loss=SupervisedLoss(),
        checkpoint=Checkpoint(every_steps=200),
    ),
    "sstl_m": Recipe(
        data=Data(batch_size=256),
        optim=Optim(epochs=200, lr=0.03, milestones=(120, 160)),
        loss=ContrastiveLoss(),
        checkpoint=Checkpoint(every_steps=20),
    ),
    "finetune": Recipe(
        data=Data(batch_size=256),
        optim=Optim(epochs=200, lr=0.03, milestones=(120, 160)),
        loss=SupervisedLoss(),
        checkpoint=Checkpoint(every_steps=20, select="best"),
    ),
}

_LOST_ZERO = "all else is MoCo v1's published recipe (batch 256, 200 epochs, 0.03): a zero was lost in print"
PRINTED: dict[str, tuple[Printed, ...]] = {
    "stl_n": (
        Printed("model.dropout", 0.8, "read as a keep rate of 0.8: dropping 80 % does not fit 78 % top-1 accuracy"),
    ),
    "stl_m": (),
    "sstl_m": (
        Printed("optim.lr", 0.3, _LOST_ZERO),
        Printed("loss.region", "literal", "eq. 6 sums over the batch, which multiplies the region loss by its size"),
        Printed("data.region_flip", True, "a flipped region no longer tells left from right, which is its label"),
    ),
    "finetune": (Printed("optim.lr", 0.3, _LOST_ZERO),),
}


def build_recipe(
    stage: str,
    *,
    flavour: Flavour = "resolved",
    config: Path | None = None,
    overrides: Sequence[str] = (),
) -> Recipe:
    """The recipe of a stage with a TOML file and `section.field=value` overrides applied, in that order.

    Raises MstlError for an unknown field, a value out of range or an unreadable file.
    """
    tree: dict[str, Any] = RESOLVED[stage].model_dump()
    if flavour == "printed":
        for item in PRINTED[stage]:
            _assign(tree, item.field, item.value)
    if config is not None:
        for name, value in _flatten(_read_toml(config)).items():
            _assign(tree, name, value)
    for text in overrides:
        name, sign, value = text.partition("=")
        if not sign:
            raise MstlError(f"--set {text}", why="it is not of the form section.field=value", remedy=_fields(tree))
        _assign(tree, name.strip(), _parse(value.strip()))
    return _validate(stage, tree)


def flatten(recipe: Recipe) -> dict[str, Any]:
    """A recipe as {"section.field": value}, JSON-ready."""
    return _flatten(recipe.model_dump(mode="json"))


def _validate(stage: str, tree: dict[str, Any]) -> Recipe:
    # The loss section is validated as the stage's own type, so that an error names the field and not a union.
    kind = type(RESOLVED[stage].loss)
    section: tuple[str, ...] = ("loss",)
    try:
        loss = kind.model_validate(tree["loss"])
        section = ()
        recipe = Recipe.model_validate({**tree, "loss": loss})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in (*section, *first["loc"]))
        raise MstlError(
            f"recipe of {stage}", why=f"{where}: {first['msg']} (got {first.get('input')!r})", remedy=_fields(tree)
        ) from error
    if isinstance(recipe.loss, ContrastiveLoss) and recipe.checkpoint.select == "best":
        raise MstlError(
            f"recipe of {stage}",
            why="checkpoint.select=best needs an accuracy, and a stage without labels has none",
            remedy="Use checkpoint.select=last",
        )
    return recipe


def _assign(tree: dict[str, Any], name: str, value: Any) -> None:
    section, _, field = name.partition(".")
    if section not in tree or field not in tree[section]:
        raise MstlError(f"recipe field {name!r}", why="there is no such field in this stage", remedy=_fields(tree))
    tree[section][field] = value


def _parse(text: str) -> Any:
    """A value as TOML reads it; anything that is not TOML is taken as a string."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise MstlError(f"--config {path}", why=f"it cannot be read ({error})", remedy="Give a TOML file") from error


def _flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for section, values in tree.items():
        if not isinstance(values, Mapping):
            raise MstlError(
                f"recipe entry {section!r}",
                why="a value stands outside any section",
                remedy="Write it under a section, for example [optim]",
            )
        flat.update({f"{section}.{field}": value for field, value in values.items()})
    return flat


def _fields(tree: Mapping[str, Any]) -> str:
    return "Fields: " + ", ".join(_flatten(tree))
