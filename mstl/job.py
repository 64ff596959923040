"""What a training job will do, settled and checked before any device is touched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from mstl.checkpoint import newest_checkpoint
from mstl.gate import UNLOOKED, Gate, check_leakage, recorded_lineage, trace_lineage
from mstl.models.registry import full_name
from mstl.recipes import PRINTED, RESOLVED, Flavour, Recipe, build_recipe, flatten
from mstl.runs import RUN_SCHEMA, RunRecord, finished_runs, git_revision, now, open_run, software
from mstl.stages import STAGES, StageSpec
from pipelines.recipe import Inputs, fitted
from shards.cache import CacheOptions, check_remote_tars, direct_tars, local_set
from shards.errors import MstlError
from shards.files import sha256_file
from shards.plan import Plan
from shards.progress import QUIET, Progress
from shards.remote_store import is_url, shown
from shards.schema import MANIFEST_NAME, Manifest, load_manifest

Resume = Literal["auto", "must", "never"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What the user asked for; None is the default named in `mstl train --help`."""

    stage: str
    model: str = "resnet50-attn5"
    shards: str | Path | None = None
    cache: Path | None = None
    cache_limit: int | None = None
    out: Path | None = None
    init_from: str | None = None
    seed: int = 0
    resume: Resume = "auto"
    flavour: Flavour = "resolved"
    config: Path | None = None
    overrides: Sequence[str] = ()
    waive_leakage: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Parent:
    """The weights a stage starts from: a run's, or a file from elsewhere."""

    weights: Path
    run: Path | None
    digest: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A checked request: everything a rank needs to build its part."""

    spec: StageSpec
    model: str
    recipe: Recipe
    flavour: Flavour
    shards: Path  # the folder to read: the set, or the local copy of what is needed of one at `url`
    url: str | None
    tars: str | None  # the URL that DALI reads tars from, else None
    manifest: Manifest
    out: Path
    parent: Parent | None
    seed: int
    previous: RunRecord | None
    leakage: Gate = UNLOOKED

    @property
    def origin(self) -> str:
        """The shard set's URL or absolute path, as it may be printed and recorded."""
        return str(self.shards.resolve()) if self.url is None else shown(self.url)

    @property
    def continues(self) -> bool:
        """There is a checkpoint, so first weights are not needed."""
        return self.previous is not None and any((self.out / "checkpoints").glob("step-*"))

    @property
    def train_inputs(self) -> Inputs:
        """What the network sees in training, fitted to the shard set."""
        return self._fitted(self.spec.train_inputs(self.recipe))

    @property
    def val_inputs(self) -> Inputs:
        """What the network sees in validation, fitted to the shard set."""
        return self._fitted(self.spec.val_inputs(self.recipe))

    def _fitted(self, inputs: Inputs) -> Inputs:
        return fitted(inputs, modality=self.manifest.modality, deep=self.manifest.deep > 0)

    @property
    def finished(self) -> bool:
        """The same job has already been done."""
        return self.previous is not None and self.previous.status == "finished"


def plan_job(request: Request, progress: Progress = QUIET) -> Job:
    """Check a request and fill in its defaults; raises MstlError with the remedy for whatever is missing or wrong.

    What is needed of a shard set at a URL is fetched last, when all else is right.
    """
    spec = STAGES[request.stage]
    model = full_name(request.model)
    recipe = build_recipe(spec.name, flavour=request.flavour, config=request.config, overrides=request.overrides)
    where = request.shards or Path("data/shards") / spec.source
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
    out = request.out or Path("runs") / spec.name
    if out.exists() and not out.is_dir():
        raise MstlError(f"--out {out}", why="it is a file", remedy="Name a folder")
    previous = open_run(out) if (out / "run.json").is_file() else None
    job = Job(
        spec=spec,
        model=model,
        recipe=recipe,
        flavour=request.flavour,
        shards=shards,
        url=str(where) if is_url(where) else None,
        tars=direct_tars(where, cache),
        manifest=manifest,
        out=out,
        parent=_find_parent(request, spec, model, previous),
        seed=request.seed,
        previous=previous,
    )
    _check_out(job, request.resume)
    if job.finished:
        return job
    job = replace(job, leakage=_check_leakage(job, request.waive_leakage))
    _bring(job, cache, progress)
    return job


def _bring(job: Job, cache: CacheOptions, progress: Progress) -> None:
    """Have the splits to train on here, or where DALI reads them; nothing is to be done for a folder."""
    if job.url is None:
        return
    splits = [split for split in ("train", "val") if job.manifest.splits.get(split)]
    if job.tars is not None:
        check_remote_tars(job.tars, job.manifest, splits)
    local_set(job.url, cache=cache, splits=splits, tars=job.tars is None, progress=progress)


def check_world(job: Job, world: int) -> None:
    """Raise MstlError when this many ranks cannot share the job's batches."""
    batch = job.recipe.data.batch_size
    if batch % world:
        raise MstlError(
            f"data.batch_size {batch}",
            why=f"it cannot be shared equally by {world} ranks",
            remedy=f"Set it to a multiple of {world}: --set data.batch_size={max(1, batch // world) * world}",
        )
    if batch == world:
        raise MstlError(
            f"data.batch_size {batch}",
            why="it leaves each rank one image, and batch normalisation needs two",
            remedy=f"Set it to {2 * world} or more with --set data.batch_size",
        )
    Plan(
        samples=job.manifest.samples("train"),
        world=world,
        batch=batch,
        epochs=job.recipe.optim.epochs,
        seed=job.seed,
        shuffle=True,
        remainder=job.spec.remainder,
    )  # refuses a split that does not fill a step


def record(job: Job, *, world_size: int, device: str, carry: dict[str, Any] | None) -> dict[str, Any]:
    """The body of run.json at the start of a job."""
    started = job.previous.body["started"] if job.previous is not None else now()
    return {
        "schema": RUN_SCHEMA,
        **_identity(job),
        "flavour": job.flavour,
        "printed": {item.field: {"value": item.value, "why": item.why} for item in PRINTED[job.spec.name]},
        "resolved": flatten(RESOLVED[job.spec.name]),
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


def _identity(job: Job) -> dict[str, Any]:
    """What must be equal for a job to be the continuation of an older one."""
    parent = job.parent
    return {
        "stage": job.spec.name,
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


def _find_parent(request: Request, spec: StageSpec, model: str, previous: RunRecord | None) -> Parent | None:
    if request.init_from is None and previous is not None and previous.stage == spec.name:
        # What lies in --out is continued from where it came, whatever has been trained since.
        held = previous.body["parent"]
        if held is None:
            return None
        run = None if held["path"] == held["weights"] else Path(held["path"])
        return Parent(weights=Path(held["weights"]), run=run, digest=held["digest"])
    if request.init_from == "none" or (request.init_from is None and spec.parent is None):
        return None
    if request.init_from is not None:
        return _named_parent(Path(request.init_from))
    root = (request.out or Path("runs") / spec.name).parent
    candidates = finished_runs(root, str(spec.parent), model)
    if not candidates:
        raise MstlError(
            f"stage {spec.name}",
            why=f"it starts from a finished {spec.parent} run of {model}, and {root} holds none",
            remedy=f"Run mstl train --stage {spec.parent} first, name a run or a weights file with --init-from, "
            "or start from random weights with --init-from none",
        )
    return _run_parent(candidates[-1])


def _named_parent(path: Path) -> Parent:
    if path.is_dir():
        return _run_parent(open_run(path))
    if not path.is_file():
        raise MstlError(
            f"--init-from {path}", why="there is no such run or file", remedy="Name a run folder or a weights file"
        )
    return Parent(weights=path, run=None, digest=sha256_file(path))


def _run_parent(run: RunRecord) -> Parent:
    if not run.weights.is_file():
        raise MstlError(
            f"run {run.path}",
            why=f"it has no weights yet (status: {run.status})",
            remedy=f"Finish it: mstl train --stage {run.stage} --out {run.path} with its own options",
        )
    return Parent(weights=run.weights, run=run.path, digest=sha256_file(run.weights))


def _check_out(job: Job, resume: Resume) -> None:
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
    new, old = _identity(job), job.previous.body
    # Where the shard set or the parent lies does not matter, what it holds does.
    pairs = [(name, new[name], old.get(name)) for name in ("stage", "model", "seed")]
    pairs += [("shards", new["shards"]["digest"], old["shards"]["digest"])]
    if (new["parent"] or {}).get("digest") != (old["parent"] or {}).get("digest"):
        names = [f"{body['parent']['path']} ({body['parent']['digest'][:8]})" if body["parent"] else "none"
                 for body in (new, old)]  # fmt: skip
        pairs += [("parent", names[0], names[1])]
    before = {f"{s}.{f}": v for s, values in old["recipe"].items() for f, v in values.items()}
    # How often to save and with how many threads to read changes no result.
    pairs += [
        (name, value, before.get(name))
        for name, value in flatten(job.recipe).items()
        if name not in ("data.workers", "data.max_bad", "checkpoint.every_steps", "checkpoint.keep")
    ]
    differing = [f"{name} is {now_!r} and was {was!r}" for name, now_, was in pairs if now_ != was]
    if differing:
        raise MstlError(
            f"--out {job.out}",
            why="it holds another run: " + "; ".join(differing[:4]),
            remedy="Name another folder with --out, or repeat the options of that run to continue it",
        )
    if resume == "must" and not job.finished and newest_checkpoint(job.out / "checkpoints")[0] is None:
        raise MstlError(
            f"--resume must: {job.out}", why="it holds no whole checkpoint", remedy="Start over with --resume auto"
        )
