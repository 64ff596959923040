"""How a study stands: what of each node is done, the node's own record, and study.json."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from mstl.places import heatmap_path
from mstl.runs import WEIGHTS_NAME, now
from mstl.study.planned import Planned, StudyPlan
from shards.errors import MstlError
from shards.files import write_atomic

State = Literal["waiting", "running", "finished", "failed", "blocked"]
STUDY_SCHEMA = 1
STUDY_NAME = "study.json"
COPY_NAME = "study.toml"
LEEP_NAME = "leep.json"
LOCK_NAME = ".study.lock"  # held while a study runs
# What a study whose study.json is gone still has.
_OWN = frozenset({LOCK_NAME, COPY_NAME, "runs", "leep", "report.html", "report-tables"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """Why a node failed, as its output has it. log: below the study's folder."""

    what: str
    why: str
    remedy: str
    log: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Status:
    """How a node stands. seconds: of all its processes so far, None where none has ended."""

    state: State = "waiting"
    seconds: float | None = None
    error: Failure | None = None


def undone(out: Path, planned: Planned) -> tuple[str, ...]:
    """What a node still needs, in order: train, judge (evaluation and heatmaps), leep. Read from its files alone."""
    folder = out / planned.path
    if planned.training is None:
        return () if (folder / LEEP_NAME).is_file() else ("leep",)
    left = () if _trained(folder) else ("train",)
    splits = [split for split in planned.evaluate if not (folder / "evaluation" / split / "metrics.json").is_file()]
    bare = planned.node.spec.explain and not heatmap_path(folder, planned.evaluate[0]).is_file()
    return (*left, "judge") if splits or bare else left


def log_of(planned: Planned) -> str:
    """The output of a node's processes, below the study's folder. Beside the run: a run's folder must begin empty."""
    return f"{planned.path}.log"


def save_record(out: Path, planned: Planned, status: Status) -> None:
    """Write a node's own record beside its folder: what later studies in this folder may take it for."""
    body = {
        "schema": STUDY_SCHEMA,
        "id": planned.node.id,
        "digest": planned.digest,
        "work": planned.work,
        "size": planned.size,
        "steps": planned.steps,
        "state": status.state,
        "seconds": status.seconds,
        "error": _error(status),
        "updated": now(),
    }
    file = out / f"{planned.path}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, (json.dumps(body, indent=1) + "\n").encode())


def read_records(out: Path, below: str = "*/*/*/s*") -> list[dict[str, Any]]:
    """The records of all nodes that ever ran in a study's folder, or of those below one pattern; broken ones not."""
    found = []
    for file in sorted(out.glob(f"{below}-*.json")):
        with suppress(OSError, ValueError, KeyError, TypeError):
            body = json.loads(file.read_text())
            if body["schema"] == STUDY_SCHEMA and isinstance(body["digest"], str):
                found.append(body)
    return found


def same_work(out: Path, place: str, work: str, digest: str) -> str | None:
    """The digest of a node finished by any code: this one's where that is one of them, else the newest."""
    records = [body for body in read_records(out, place) if body.get("work") == work]
    finished = [body for body in records if body.get("state") == "finished"]
    if not finished or any(body["digest"] == digest for body in finished):
        return None
    newest: str = max(finished, key=lambda body: str(body.get("updated")))["digest"]
    return newest


def read_status(out: Path, planned: Planned) -> Status:
    """How a node stands before this session: finished, or failed or interrupted earlier and to be tried again."""
    body: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        body = json.loads((out / f"{planned.path}.json").read_text())
    seconds = body.get("seconds")
    known = float(seconds) if isinstance(seconds, int | float) else None
    if not undone(out, planned):
        return Status(state="finished", seconds=known)
    error = None
    if body.get("state") == "failed":
        with suppress(TypeError):
            error = Failure(**body["error"])
    return Status(seconds=known, error=error)


@dataclass
class StudyState:
    """The states of all nodes, kept in OUT/study.json: the one thing a report needs to read."""

    plan: StudyPlan
    states: dict[str, Status] = field(default_factory=dict)
    created: str = field(default_factory=now)

    @classmethod
    def open(cls, plan: StudyPlan) -> StudyState:
        """The states as the files have them; raises MstlError where OUT holds something else."""
        created = _created(plan)
        states = {name: read_status(plan.out, planned) for name, planned in plan.nodes.items()}
        return cls(plan, states, created or now())

    def set(self, name: str, status: Status) -> None:
        """Change a node's state, in its own record too, and write study.json."""
        self.states[name] = status
        if status.state in ("finished", "failed") or status.seconds is not None:
            save_record(self.plan.out, self.plan.nodes[name], status)
        self.save()

    def block(self, name: str) -> list[str]:
        """A node has failed: what stands on it cannot run; returns the ids of those."""
        blocked = [child for child in self.plan.graph.descendants(name) if self.states[child].state == "waiting"]
        for child in blocked:
            self.states[child] = replace(self.states[child], state="blocked")
        self.save()
        return blocked

    def save(self) -> None:
        """Write study.json, and the study file beside it."""
        self.plan.out.mkdir(parents=True, exist_ok=True)
        copy = self.plan.out / COPY_NAME
        if not copy.is_file() or copy.read_bytes() != self.plan.file.text:
            write_atomic(copy, self.plan.file.text)
        write_atomic(self.plan.out / STUDY_NAME, (json.dumps(self.to_dict(), indent=1) + "\n").encode())

    def to_dict(self) -> dict[str, Any]:
        """What study.json holds."""
        study = self.plan.study
        return {
            "schema": STUDY_SCHEMA,
            "name": study.name,
            "title": study.title or study.name,
            "file_sha256": hashlib.sha256(self.plan.file.text).hexdigest(),
            "code": self.plan.code.to_dict(),
            "created": self.created,
            "updated": now(),
            "columns": list(dict.fromkeys(spec.column for spec in study.node if spec.column is not None)),
            "nodes": [_entry(planned, self.states[name]) for name, planned in self.plan.nodes.items()],
        }


def _created(plan: StudyPlan) -> str | None:
    """When the study in OUT began; None where OUT is empty. Raises MstlError for another one's folder."""
    out, file = plan.out, plan.out / STUDY_NAME
    if not file.is_file():
        if out.exists() and (not out.is_dir() or any(entry.name not in _OWN for entry in out.iterdir())):
            raise MstlError(f"--out {out}", why="it holds files and no study", remedy="Name a new folder")
        return None
    try:
        body: Mapping[str, Any] = json.loads(file.read_text())
        name, schema, created = body["name"], body["schema"], str(body["created"])
    except (ValueError, KeyError, TypeError) as error:
        raise MstlError(
            str(file), why=f"it cannot be read ({error!r})", remedy="Remove it: what has run is found again"
        ) from error
    if schema != STUDY_SCHEMA or name != plan.study.name:
        why = f"it holds the study {name!r}" if schema == STUDY_SCHEMA else f"its study.json has schema {schema!r}"
        raise MstlError(f"--out {out}", why=why, remedy="Name another folder")
    return created


def _trained(run: Path) -> bool:
    with suppress(OSError, ValueError, KeyError, TypeError):
        finished = json.loads((run / "run.json").read_text())["status"] == "finished"
        return finished and (run / WEIGHTS_NAME).is_file()
    return False


def _entry(planned: Planned, status: Status) -> dict[str, Any]:
    node, spec, data = planned.node, planned.node.spec, planned.data
    return {
        "id": node.id,
        "name": spec.name,
        "kind": spec.kind,
        "network": node.network,
        "seed": node.seed,
        "stage": spec.stage,
        "ssl": None if planned.training is None else planned.training.settled.ssl,
        "column": spec.column,
        "parents": list(node.parents),
        "digest": planned.digest,
        "state": status.state,
        "path": planned.path,
        "log": log_of(planned),
        "error": _error(status) if status.state == "failed" else None,
        "seconds": status.seconds,
        "steps": None if planned.training is None else planned.training.steps,
        "recipe_digest": planned.recipe_digest,
        "data": {
            "name": data.name,
            "path": data.path,
            "digest": data.digest,
            "source": data.manifest.source,
            "splits": data.splits,
        },
        "evaluate": list(planned.evaluate),
        "explain": spec.explain,
        "leakage": planned.leakage,
        "substitution": planned.substitution,
    }


def _error(status: Status) -> dict[str, str] | None:
    error = status.error
    if error is None:
        return None
    return {"what": error.what, "why": error.why, "remedy": error.remedy, "log": error.log}
