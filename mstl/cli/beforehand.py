"""What `mstl train` finds out before it starts any process: a wrong name costs a second, not the start of a job."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mstl.cli.training_options import settle_options

if TYPE_CHECKING:
    from mstl.job import Job


def check_options(options: Mapping[str, Any]) -> None:
    """Raise MstlError for a recipe or a network that there is not; looks at no file but --config."""
    from mstl.models.names import full_name

    settle_options(options)
    full_name(options["model"])


def check_job(options: Mapping[str, Any], world: int) -> Job:
    """The job as its ranks will plan it; raises MstlError for all that they would, as far as no device is needed.

    world: how many ranks there will be. Needs torch, and its seconds, only where weights come from elsewhere.
    """
    from mstl.job import Request, check_world, plan_job
    from mstl.watching.loggers import check_loggers

    request = Request(**options)
    check_loggers(tensorboard=request.tensorboard, wandb=request.wandb)
    job = plan_job(request, fetch=False)
    if not job.finished:
        check_world(job, world)
        _check_weights(job)
    return job


def _check_weights(job: Job) -> None:
    """Raise MstlError where the first weights cannot be read or do not fit the network."""
    if job.parent is None or job.continues:
        return
    if job.parent.run is not None:
        from mstl.runs import open_run

        if _depth(open_run(job.parent.run).model) == _depth(job.model):
            return  # attention may differ
    from mstl.models.registry import build_backbone
    from mstl.parent_weights import take_over

    take_over(job, job.parent, build_backbone(job.model))


def _depth(model: str) -> str:
    return model.partition("-")[0]
