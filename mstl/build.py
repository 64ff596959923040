"""Building a job's module and loaders on one rank."""

from __future__ import annotations

from typing import Any

import torch

from mstl.job import Job
from mstl.models.registry import build_backbone
from mstl.stages import Stage, build_stage
from mstl.weights import carry_over, load_weights
from pipelines.loader import Loader


def build_module(job: Job) -> tuple[Stage, dict[str, Any] | None]:
    """The stage with its first weights, and the account of the weights carried over from its parent.

    The account goes into run.json: {"carried": number, "new": [names], "dropped": [names]}; None without a parent.
    Draws from torch's global generator: seed it first, alike on all ranks.
    """
    backbone = build_backbone(job.model)
    account = None
    if job.parent is not None:
        report = carry_over(load_weights(job.parent.weights), backbone)
        account = {"carried": len(report.carried), "new": list(report.new), "dropped": list(report.dropped)}
    return build_stage(job.spec, backbone, job.recipe, job.manifest.classes, job.seed), account


def build_loaders(job: Job, *, rank: int, world: int, device: torch.device) -> tuple[Loader, Loader | None]:
    """The loaders of the train and val splits; the second is None where the shard set has no val split."""
    recipe, spec = job.recipe, job.spec
    kind = "gpu" if device.type == "cuda" else "cpu"
    loader = Loader(
        spec.train_inputs(recipe),
        job.shards,
        "train",
        rank=rank,
        world=world,
        batch=recipe.data.batch_size,
        epochs=recipe.optim.epochs,
        device=kind,
        device_id=device.index or 0,
        seed=job.seed,
        shuffle=True,
        remainder=spec.remainder,
        threads=recipe.data.workers,
    )
    if not job.manifest.splits.get("val"):
        return loader, None
    val_loader = Loader(
        spec.val_inputs(recipe),
        job.shards,
        "val",
        rank=rank,
        world=world,
        batch=recipe.data.batch_size,
        epochs=recipe.optim.epochs,
        device=kind,
        device_id=device.index or 0,
        seed=job.seed,
        shuffle=False,
        remainder="pad",
        threads=recipe.data.workers,
    )
    return loader, val_loader
