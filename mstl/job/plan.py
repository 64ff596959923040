"""From a request to a job: defaults filled in, everything checked that can be checked without a device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mstl.gate import Gate, check_leakage, recorded_lineage, trace_lineage
from mstl.job.identity import check_out
from mstl.job.parents import find_parent
from mstl.job.request import Job, Request
from mstl.models.names import full_name
from mstl.places import run_folder, shard_folder
from mstl.recipes import settle_recipe, settle_ssl
from mstl.runs import open_run
from mstl.stage_specs import STAGES
from shards.cache import CacheOptions, check_remote_tars, direct_tars, local_set
from shards.errors import MstlError
from shards.progress import QUIET, Progress
from shards.remote_store import is_url, shown
from shards.schema import ALL, MANIFEST_NAME, SPLITS, load_manifest


def plan_job(request: Request, progress: Progress = QUIET, *, fetch: bool = True) -> Job:
    """Check a request and fill in its defaults; raises MstlError with the remedy for whatever is missing or wrong.

    What is needed of a shard set at a URL is fetched last, when all else is right, or left where it is.
    Imports no torch: `mstl train` plans before it starts any process.
    """
    spec = STAGES[request.stage]
    ssl = settle_ssl(spec.name, request.ssl)
    model = full_name(request.model)
    settled = settle_recipe(
        spec.name,
        ssl=ssl,
        flavour=request.flavour,
        config=request.config,
        overrides=request.overrides,
        compiled=request.compile,
    )
    where = request.shards or shard_folder(spec.source)
    if not is_url(where) and not (Path(where) / MANIFEST_NAME).is_file():
        raise MstlError(
            f"shard set {where}",
            why=f"it is not there, and stage {spec.name} trains on it",
            remedy=f"Make it with: mstl shard --src {spec.source} --out {where}",
        )
    cache = CacheOptions(folder=request.cache, limit_bytes=request.cache_limit)
    shards = local_set(where, cache=cache, splits=(), tars=False)
    manifest = load_manifest(shards)
    manifest.shards("train")
    out = run_folder(request.out, spec.name, ssl)
    if out.exists() and not out.is_dir():
        raise MstlError(f"--out {out}", why="it is a file", remedy="Name a folder")
    previous = open_run(out) if (out / "run.json").is_file() else None
    job = Job(
        spec=spec,
        ssl=ssl,
        model=model,
        recipe=settled.recipe,
        reasons=settled.reasons,
        flavour=request.flavour,
        shards=shards,
        url=str(where) if is_url(where) else None,
        tars=direct_tars(where, cache),
        manifest=manifest,
        out=out,
        parent=find_parent(request, spec, model, previous),
        seed=request.seed,
        previous=previous,
    )
    check_out(job, request.resume)
    if job.finished:
        return job
    job = replace(job, leakage=_check_leakage(job, request.waive_leakage))
    if fetch:
        _bring(job, cache, progress)
    return job


def _bring(job: Job, cache: CacheOptions, progress: Progress) -> None:
    """Have the splits to train on here, or where DALI reads them; nothing is to be done for a folder."""
    if job.url is None:
        return
    wanted = SPLITS if job.train_split == ALL else ("train", "val")
    splits = [split for split in wanted if job.manifest.splits.get(split)]
    if job.tars is not None:
        check_remote_tars(job.tars, job.manifest, splits)
    local_set(job.url, cache=cache, splits=splits, tars=job.tars is None, progress=progress)


def _check_leakage(job: Job, waive: Sequence[str]) -> Gate:
    lineage = recorded_lineage(job.previous)
    if lineage is None:
        lineage = [] if job.parent is None else trace_lineage(job.parent.weights, job.parent.run)
    return check_leakage(
        shards=job.shards,
        called=str(job.shards) if job.url is None else shown(job.url),
        manifest=job.manifest,
        lineage=lineage,
        waive=waive,
        previous=None if job.previous is None else job.previous.body.get("leakage"),
    )
