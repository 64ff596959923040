"""Building a job's module and loaders on one rank."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from mstl.carry import carry_over
from mstl.job import Job, Parent
from mstl.models.registry import build_backbone
from mstl.models.resnet import ResNet
from mstl.runs import open_run
from mstl.stages import Stage, build_stage
from mstl.weights import load_weights
from pipelines.loader import Loader
from shards.errors import MstlError
from shards.files import sha256_file


def build_module(job: Job) -> tuple[Stage, dict[str, Any] | None]:
    """The stage with its first weights, and the account of the weights carried over from its parent.

    The account is that of `CarryReport.to_dict` and goes into run.json; None without a parent.
    Draws from torch's global generator: seed it first, alike on all ranks.
    """
    backbone = build_backbone(job.model)
    account = None
    if job.continues and job.previous is not None:
        account = job.previous.body["carry"]  # the checkpoint holds the weights
    elif job.parent is not None:
        account = _carry(job, job.parent, backbone)
    return build_stage(job.spec, backbone, job.recipe, job.manifest.classes, job.seed), account


def _carry(job: Job, parent: Parent, backbone: ResNet) -> dict[str, Any]:
    weights = load_weights(parent.weights)
    # A parent found just now was hashed just now; one that an earlier start recorded may have changed since.
    if job.previous is not None and sha256_file(parent.weights) != parent.digest:
        raise MstlError(
            f"weights {parent.weights}",
            why=f"they have changed since run {job.out} was started from them",
            remedy="Bring them back, or train into another --out",
        )
    try:
        report = carry_over(weights, backbone)
    except MstlError as error:
        owner = "" if parent.run is None else f" of {open_run(parent.run).model}"
        raise MstlError(
            f"--init-from {parent.run or parent.weights}: {error.what}",
            why=f"{error.why}: the weights{owner} do not fit {job.model}",
            remedy=error.remedy,
        ) from error
    return report.to_dict()


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
