"""The record of a job (run.json), and whether what lies in --out is the same job."""

from __future__ import annotations

from typing import Any

from mstl.job.request import Job, Resume
from mstl.places import checkpoint_folders
from mstl.recipes import OURS, PRINTED, RESOLVED, flatten, recipe_name
from mstl.recipes.records import RECIPE_SCHEMA, recorded_fields
from mstl.recipes.rules import FREE
from mstl.runs import RUN_SCHEMA, git_revision, now, software
from shards.errors import MstlError


def record(job: Job, *, world_size: int, device: str, carry: dict[str, Any] | None) -> dict[str, Any]:
    """The body of run.json at the start of a job."""
    started = job.previous.body["started"] if job.previous is not None else now()
    name = recipe_name(job.spec.name, job.ssl)
    return {
        "schema": RUN_SCHEMA,
        "recipe_schema": RECIPE_SCHEMA,
        **_identity(job),
        "flavour": job.flavour,
        "printed": {item.field: {"value": item.value, "why": item.why} for item in PRINTED[name]},
        "resolved": flatten(RESOLVED[name]),
        "reasons": dict(job.reasons),
        "world_size": world_size,
        "inputs": {
            "train": job.train_inputs.to_dict(),
            "evaluation": job.val_inputs.to_dict(),
        },
        "carry": carry,
        "leakage": job.leakage.record,
        "software": software(),
        "device": device,
        "git": git_revision(),
        "status": "running",
        "started": started,
        "finished": None,
        "wall_seconds": job.previous.body["wall_seconds"] if job.previous is not None else 0.0,
    }


def check_out(job: Job, resume: Resume) -> None:
    """Raise MstlError where the job may not train into its folder: another run's, somebody's, or against --resume."""
    if job.previous is None:
        if resume == "must":
            raise MstlError(f"--resume must: {job.out}", why="there is no run there", remedy="Use --resume auto")
        if job.out.is_dir() and any(job.out.iterdir()):
            raise MstlError(
                f"--out {job.out}", why="it holds files but no run", remedy="Name a new folder, or empty this one"
            )
        return
    if resume == "never":
        raise MstlError(
            f"--out {job.out}",
            why=f"it holds a run already (status: {job.previous.status})",
            remedy="Name another folder, or continue with --resume auto",
        )
    schema = job.previous.body.get("recipe_schema", 1)
    if schema > RECIPE_SCHEMA:
        raise MstlError(
            f"--out {job.out}",
            why=f"a newer MSTL trains there (recipes of schema {schema}, this program knows {RECIPE_SCHEMA})",
            remedy="Continue it with that version, or name another folder",
        )
    differing = _differences(_identity(job), job.previous.body)
    if differing:
        raise MstlError(
            f"--out {job.out}",
            why="it holds another run: " + "; ".join(differing[:4]),
            remedy="Name another folder with --out, or repeat the options of that run to continue it",
        )
    # Whether one is whole is found out where it is read: its files are large.
    if resume == "must" and not job.finished and not checkpoint_folders(job.out / "checkpoints"):
        raise MstlError(
            f"--resume must: {job.out}", why="it holds no checkpoint", remedy="Start over with --resume auto"
        )


def _identity(job: Job) -> dict[str, Any]:
    """What must be equal for a job to be the continuation of an older one."""
    parent = job.parent
    return {
        "stage": job.spec.name,
        "ssl": job.ssl,
        "model": job.model,
        "recipe": job.recipe.model_dump(mode="json"),
        "seed": job.seed,
        "parent": None
        if parent is None
        else {
            "path": str((parent.run or parent.weights).resolve()),
            "weights": str(parent.weights.resolve()),
            "digest": parent.digest,
        },
        "shards": {
            "path": job.origin,
            "digest": job.manifest.digest(),
            "source": job.manifest.source,
            "classes": list(job.manifest.classes),
        },
    }


def _differences(new: dict[str, Any], old: dict[str, Any]) -> list[str]:
    # Where the shard set or the parent lies does not matter, what it holds does.
    pairs = [(name, new[name], old.get(name)) for name in ("stage", "model", "seed")]
    pairs += [("ssl", new["ssl"] or OURS, old.get("ssl") or OURS)]  # absent from runs before there were others
    if new["shards"]["digest"] != old["shards"]["digest"]:
        sets = [f"{body['shards']['path']} ({body['shards']['digest'][:8]})" for body in (new, old)]
        pairs += [("shards", sets[0], sets[1])]
    if (new["parent"] or {}).get("digest") != (old["parent"] or {}).get("digest"):
        names = [f"{body['parent']['path']} ({body['parent']['digest'][:8]})" if body["parent"] else "none"
                 for body in (new, old)]  # fmt: skip
        pairs += [("parent", names[0], names[1])]
    before = recorded_fields(old["recipe"], old.get("recipe_schema", 1))
    pairs += [
        (name, value, before.get(name, "not recorded"))
        for name, value in recorded_fields(new["recipe"], RECIPE_SCHEMA).items()
        if name not in FREE
    ]
    return [f"{name} is {now_!r} and was {was!r}" for name, now_, was in pairs if now_ != was]
