"""The weights that a job starts from."""

from __future__ import annotations

from pathlib import Path

from mstl.job.request import Parent, Request
from mstl.places import run_folder
from mstl.recipes import OURS
from mstl.runs import RunRecord, finished_runs, open_run
from mstl.stage_specs import StageSpec
from shards.errors import MstlError
from shards.files import sha256_file


def find_parent(request: Request, spec: StageSpec, model: str, previous: RunRecord | None) -> Parent | None:
    """First weights as asked for, else of the newest finished run of the stage before; None for random ones.

    A baseline (`--ssl moco` …) is never taken unasked. Raises MstlError when there are none, naming the ways out.
    """
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
    root = run_folder(request.out, spec.name, request.ssl).parent
    found = finished_runs(root, str(spec.parent), model)
    candidates = [run for run in found if run.body.get("ssl") in (None, OURS)]
    if not candidates:
        raise MstlError(
            f"stage {spec.name}",
            why=f"it starts from a finished {spec.parent} run of {model}, and {root} holds "
            + ("only baselines" if found else "none"),
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
