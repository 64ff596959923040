"""Whether a number of ranks can share a job's batches."""

from __future__ import annotations

from contextlib import suppress

from mstl.job.request import Job
from shards.errors import MstlError
from shards.plan import Plan

_LEAST = 2  # images of one forward on one rank: batch normalisation has no variance of fewer


def check_world(job: Job, world: int) -> None:
    """Raise MstlError, with sizes that go, when this many ranks cannot share the job's batches.

    At every step, that of an epoch's remainder included, each rank must hold two images, and two in each of the parts
    of `engine.accumulate`.
    """
    try:
        _check(job, world)
    except MstlError as error:
        if job.previous is None:
            raise
        # The run in --out keeps its batch size and its parts: only the number of ranks may be another.
        raise MstlError(error.what, why=error.why, remedy=_other_ranks(job, world)) from error


def _check(job: Job, world: int) -> None:
    batch, parts = job.recipe.data.batch_size, job.recipe.engine.accumulate
    if batch % world:
        raise _refusal(batch, f"it cannot be shared equally by {world} ranks", _nearest(job, world))
    if batch == world:
        raise MstlError(
            f"data.batch_size {batch}",
            why="it leaves each rank one image, and batch normalisation needs two",
            remedy=f"Set it to {_LEAST * world * parts} or more with --set data.batch_size",
        )
    own = batch // world
    if own % parts or own // parts < _LEAST:
        raise MstlError(
            f"engine.accumulate {parts}",
            why=f"the {own} images of a rank cannot be worked through in so many equal parts of two or more",
            remedy=f"Set data.batch_size to a multiple of {_LEAST * world * parts}, or engine.accumulate to a "
            f"divisor of {own} below it",
        )
    if _last(_plan(job, world, batch)) < _LEAST:
        raise _refusal(
            batch,
            f"the last step of an epoch of {job.manifest.samples(job.train_split)} images would have one on each rank, "
            "and batch normalisation needs two",
            _nearest(job, world),
        )


def _other_ranks(job: Job, world: int) -> str:
    """How the run in --out can go on: by the largest number of ranks below `world` that can share its batches.

    Not with ZeRO 1 and 2, where only as many can go on as began it.
    """
    held = [] if job.previous is None else [job.previous.body["world_size"]]
    for ranks in held if job.recipe.engine.zero else range(world - 1, 0, -1):
        with suppress(MstlError):
            _check(job, ranks)
            return f"The run in {job.out} can go on with {'1 rank' if ranks == 1 else f'{ranks} ranks'}"
    return "Train into another --out"


def _plan(job: Job, world: int, batch: int) -> Plan:
    """The plan of training; raises MstlError for a split that does not fill a step."""
    return Plan(
        samples=job.manifest.samples(job.train_split),
        world=world,
        batch=batch,
        epochs=job.recipe.optim.epochs,
        seed=job.seed,
        shuffle=True,
        remainder=job.spec.remainder,
    )


def _nearest(job: Job, world: int) -> int | None:
    """The largest batch size up to the job's own, else the smallest above it, that this many ranks can share."""
    batch = job.recipe.data.batch_size
    unit = world * job.recipe.engine.accumulate
    below = range(batch // unit * unit, 0, -unit)
    above = range((batch // unit + 1) * unit, 2 * batch + 4 * unit, unit)
    return next((size for size in (*below, *above) if _fits(job, world, size)), None)


def _fits(job: Job, world: int, batch: int) -> bool:
    if batch < _LEAST * world * job.recipe.engine.accumulate:
        return False
    try:
        plan = _plan(job, world, batch)
    except MstlError:  # it does not fill a step
        return False
    return _last(plan) >= _LEAST


def _last(plan: Plan) -> int:
    """Images of each rank at the last step of an epoch."""
    return plan.valid(plan.steps_per_epoch - 1)


def _refusal(batch: int, why: str, goes: int | None) -> MstlError:
    remedy = "Use fewer ranks" if goes is None else f"Set another: --set data.batch_size={goes}"
    return MstlError(f"data.batch_size {batch}", why=why, remedy=remedy)
