"""What a recipe is made of: the sections, their fields, ranges and where each number comes from."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveInt

Flavour = Literal["resolved", "printed"]
Ssl = Literal["ours", "moco", "moco_v2", "simclr"]


def _none(value: Any) -> Any:
    """TOML has no null: "none" stands for it."""
    return None if value == "none" else value


class Section(BaseModel):
    """A part of a recipe: frozen, and a misspelt field is an error.

    A field's description ends with its source in brackets: a section of the paper, another paper, or "ours"; where
    one stage's number has another source, `mstl.recipes.printed.SOURCES` says so.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Data(Section):
    image_size: int = Field(224, ge=32, le=1024, description="side of the network's input in pixels (paper 6.2)")
    batch_size: int = Field(ge=1, description="images of one update, summed over all ranks (paper 6.2)")
    workers: int = Field(2, ge=1, description="DALI threads per rank (ours)")
    max_bad: float = Field(
        0.0, ge=0, le=1, description="part of the training images each rank may skip as unreadable (ours: none)"
    )
    region_flip: bool = Field(False, description="flip region crops too; it destroys the left/right cue (ours: off)")
    images: Literal["train", "all"] = Field(
        "train", description="all: learn from val and test images too, without their labels (ours: train alone)"
    )
    random_resized_crop: bool = Field(
        False, description="crops of 8 to 100 % of the image's area in place of 224 of 256 pixels (ours: off)"
    )
    channels: Literal["auto", "rgb"] = Field(
        "auto", description="auto: radiographs and CT in grey, all else in colour; rgb: all in colour (ours)"
    )
    evaluation: Literal["plain", "as_printed"] = Field(
        "plain", description="plain: centre crop alone; as_printed: with the augmentation of training (ours)"
    )


class Model(Section):
    dropout: float = Field(0.0, ge=0, lt=1, description="drop probability between pooling and classifier (paper 6.2)")
    attention_backend: Literal["auto", "eager", "sdpa", "fused"] = Field(
        "auto", description="what computes attention; auto: the fastest here that is right, timed at the start (ours)"
    )
    attention_scale: Literal["none", "root"] = Field(
        "none", description="root: attention logits are divided by the square root of the key width (paper 2.2, eq. 1)"
    )
    attention_pool: int = Field(
        1,
        ge=1,
        le=16,
        description="keys and values are maxima over squares of this side; 1: all positions (paper 2.2, eq. 1)",
    )


class Optim(Section):
    algorithm: Literal["sgd", "lars"] = Field("sgd", description="SGD with momentum, or LARS (paper 6.2)")
    epochs: int = Field(ge=1, le=1_000_000, description="passes over the data (paper 6.2)")
    lr: float = Field(gt=0, description="base learning rate (paper 6.2)")
    scale_lr: bool = Field(
        True, description="scale lr with batch_size where only the latter was changed (ours: Goyal et al. 2017)"
    )
    schedule: Literal["step", "cosine"] = Field(
        "step", description="the rate falls by gamma at each milestone, or as a cosine to 0 (paper 6.2)"
    )
    milestones: tuple[PositiveInt, ...] = Field(
        (), description="epochs after which the step schedule multiplies the rate by gamma (paper 6.2)"
    )
    gamma: float = Field(0.1, gt=0, le=1, description="factor at each milestone (paper 6.2)")
    warmup_epochs: int = Field(0, ge=0, description="epochs in which the rate rises linearly to lr (ours: none)")
    lr_per: Literal["epoch", "step"] = Field("epoch", description="how often the rate is set anew (ours)")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of the optimizer (paper 6.2)")
    weight_decay: float = Field(1e-4, ge=0, description="L2 penalty on the weights (paper 6.2)")
    clip: float = Field(0.0, ge=0, description="largest global gradient norm; 0 is no clipping (ours)")


class SupervisedLoss(Section):
    """Cross entropy has no parameters."""


class ContrastiveLoss(Section):
    """Momentum contrast (paper 5, eqs. 2 to 6); MoCo itself with the region branch off."""

    temperature: float = Field(0.07, gt=0, description="tau of eq. 2 (paper 6.2)")
    temperature_on: Literal["all", "positive"] = Field(
        "all", description="what tau divides: every similarity, or as eq. 2 is printed the positive alone (MoCo v1)"
    )
    momentum: float = Field(0.999, ge=0, lt=1, description="m of eq. 3 (paper 5.2)")
    queue_size: int = Field(256, ge=1, description="negatives held: n of eq. 2 (ours)")
    dim: int = Field(128, ge=1, description="width of the projection (MoCo v1)")
    head: Literal["linear", "mlp"] = Field("linear", description="projection: one layer, or two (MoCo v1)")
    bn_group: Annotated[int | None, BeforeValidator(_none)] = Field(
        32,
        ge=2,
        description='images that share batch-norm statistics; "none": all that a rank has (paper 6.2: 256 on 8 GPUs)',
    )
    alpha1: float = Field(0.8, ge=0, description="weight of the contrastive loss, eq. 6 (paper 6.2)")
    alpha2: float = Field(0.8, ge=0, description="weight of the region loss, eq. 6 (paper 6.2)")
    region: Literal["normalised", "literal", "off"] = Field(
        "normalised", description="mean of the region loss over the images, or eq. 6's sum over them (ours)"
    )


class NTXentLoss(Section):
    """SimCLR's loss: each view against all other views of the batch, over all ranks."""

    temperature: float = Field(0.1, gt=0, description="tau (SimCLR)")
    dim: int = Field(128, ge=1, description="width of the projection, of two layers (SimCLR)")


Loss = SupervisedLoss | ContrastiveLoss | NTXentLoss


class Precision(Section):
    autocast: Literal["auto", "off", "bf16", "fp16"] = Field(
        "auto", description="auto: bf16 on a GPU that has it, fp16 on an older one, else float32 (ours)"
    )


class Engine(Section):
    zero: Literal[0, 1, 2] = Field(0, description="ZeRO stage: what DeepSpeed shards over ranks (ours: nothing)")
    compile: bool = Field(False, description="torch.compile the networks (ours: off)")
    accumulate: int = Field(1, ge=1, description="parts a rank's batch is worked through in, to save memory (ours)")


class Checkpoint(Section):
    every_steps: int = Field(1000, ge=1, description="steps between checkpoints, at most (ours)")
    every_minutes: Annotated[float | None, BeforeValidator(_none)] = Field(
        15.0, gt=0, description='minutes between checkpoints, at most; "none": steps alone count (ours)'
    )
    keep: int = Field(2, ge=1, description="newest checkpoints kept (ours)")
    select: Literal["last", "best"] = Field(
        "last", description="weights handed on: of the last epoch, or of the best validation, AUC else accuracy (ours)"
    )


class Recipe(Section):
    """All that a stage's training depends on, apart from network, data, seed and first weights."""

    data: Data
    model: Model = Model()
    optim: Optim
    loss: Loss
    precision: Precision = Precision()
    engine: Engine = Engine()
    checkpoint: Checkpoint = Checkpoint()
