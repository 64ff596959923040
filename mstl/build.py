"""Building a job's module and loaders on one rank."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from mstl.distributed import world_size
from mstl.job import Job
from mstl.models.choose import EAGER, fix_backends
from mstl.models.registry import attention_options, build_backbone
from mstl.models.resnet import ResNet
from mstl.parent_weights import take_over
from mstl.precision import autocast_dtype
from mstl.recipes import Recipe
from mstl.stages import Stage, build_stage
from pipelines.loader import Loader


def build_module(job: Job) -> tuple[Stage, dict[str, Any] | None]:
    """The stage with its first weights, and the account of the weights carried over from its parent.

    The account is that of `CarryReport.to_dict` and goes into run.json; None without a parent.
    Draws from torch's global generator: seed it first, alike on all ranks.
    """
    backbone = build_backbone(job.model, attention_options(job.recipe.model))
    account = None
    if job.continues and job.previous is not None:
        account = job.previous.body["carry"]  # the checkpoint holds the weights
    elif job.parent is not None:
        account = take_over(job, job.parent, backbone)
    return build_stage(job.spec, backbone, job.recipe, job.manifest.classes, job.seed), account


def fix_attention(job: Job, module: nn.Module, device: torch.device) -> dict[str, str]:
    """Settle what computes each attention layer of a stage's module on this device; returns {layer: backend}.

    All ranks call it. The answer belongs into run.json under `attention`, from where a continued job takes it: timed
    anew it might fall otherwise, and the run would no longer be bit for bit the same.
    Raises MstlError on all ranks where the recipe names a backend that cannot be used here.
    """
    recorded = None
    if job.previous is not None:  # programs that recorded none knew no other backend than eager
        recorded = job.previous.body.get("attention") or _eager(module)
    return settle_attention(module, job.recipe, device, recorded)


def settle_attention(
    module: nn.Module, recipe: Recipe, device: torch.device, recorded: Mapping[str, str] | None = None
) -> dict[str, str]:
    """`fix_backends` of a stage's networks, all alike, at what one rank computes at a time by this recipe."""
    first, *others = [network for network in module.modules() if isinstance(network, ResNet)]
    fixed = fix_backends(
        first,
        device=device,
        dtype=autocast_dtype(recipe.precision, device) or torch.float32,
        image_size=recipe.data.image_size,
        batch=max(1, recipe.data.batch_size // world_size() // recipe.engine.accumulate),
        recorded=recorded,
    )
    for network in others:
        for name, layer in network.attention_layers():
            layer.backend = fixed[name]
    return fixed


def _eager(module: nn.Module) -> dict[str, str]:
    networks = (network for network in module.modules() if isinstance(network, ResNet))
    return {name: EAGER for network in networks for name, _ in network.attention_layers()}


def build_loaders(job: Job, *, rank: int, world: int, device: torch.device) -> tuple[Loader, Loader | None]:
    """The loaders of the train and val splits; the second is None where the shard set has no val split."""
    recipe, spec = job.recipe, job.spec
    make = partial(
        Loader,
        shards=job.shards,
        tars=job.tars,
        rank=rank,
        world=world,
        batch=recipe.data.batch_size,
        epochs=recipe.optim.epochs,
        device="gpu" if device.type == "cuda" else "cpu",
        device_id=device.index or 0,
        seed=job.seed,
        threads=recipe.data.workers,
    )
    loader = make(job.train_inputs, split=job.train_split, shuffle=True, remainder=spec.remainder,
                  max_bad=recipe.data.max_bad)  # fmt: skip
    if not job.manifest.splits.get("val"):
        return loader, None
    return loader, make(job.val_inputs, split="val", shuffle=False, remainder="pad")
