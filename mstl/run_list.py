"""The runs below a folder and how each of them stands, read from run.json, metrics.jsonl and the folder's lock."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, cast

from mstl.runs import METRICS_NAME, best_validation, open_run, score
from shards.errors import MstlError

# stale: its record says running, and nobody holds its lock: it was killed, or runs where locks are not seen from here.
Status = Literal["finished", "running", "interrupted", "failed", "stale"]
DEEPEST = 3  # runs/a/b/c


@dataclass(frozen=True, kw_only=True, slots=True)
class RunLine:
    """A run in a list. steps: of the whole run, None before its first epoch ends where the record has no such number.

    best and last: the validation as metrics.jsonl has it; None before the first. wall_seconds: of all its sessions.
    """

    name: str
    path: str
    stage: str
    model: str
    ssl: str | None
    status: Status
    step: int
    steps: int | None
    best: dict[str, Any] | None
    last: dict[str, Any] | None
    parent: str | None
    shards: str
    started: str
    wall_seconds: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class BrokenRun:
    """A folder with a run.json that cannot be read, and why."""

    name: str
    path: str
    why: str

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {**asdict(self), "status": "broken"}


def list_runs(root: Path) -> list[RunLine | BrokenRun]:
    """The runs in a folder, or the one that it is: those that can be read by the time they started, then the others.

    Raises MstlError when there is no such folder.
    """
    if not root.is_dir():
        raise MstlError(f"folder {root}", why="it is not there", remedy="Name a folder that holds runs")
    lines: list[RunLine] = []
    broken: list[BrokenRun] = []
    for path in _run_folders(root):
        name = path.absolute().name if path == root else path.relative_to(root).as_posix()
        try:
            lines.append(_read(path, name))
        except MstlError as error:
            broken.append(BrokenRun(name=name, path=str(path), why=error.why))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            broken.append(BrokenRun(name=name, path=str(path), why=f"it cannot be read ({error!r})"))
    return [*sorted(lines, key=lambda line: (line.started, line.name)), *sorted(broken, key=lambda run: run.name)]


def lock_path(run: Path) -> Path:
    """The file whose lock a run's first rank holds while it trains."""
    run = run.absolute()
    return run.parent / f".{run.name}.lock"


def _run_folders(root: Path) -> Iterator[Path]:
    """Folders with a run.json; what lies below one is that run's own."""
    for place, folders, files in os.walk(root):
        if "run.json" in files:
            folders.clear()
            yield Path(place)
        elif len(Path(place).relative_to(root).parts) >= DEEPEST:
            folders.clear()


def _read(path: Path, name: str) -> RunLine:
    record = open_run(path)
    body = record.body
    validations, step, epoch_steps = _read_log(path / METRICS_NAME)
    steps = body.get("steps")
    if steps is None and epoch_steps is not None:  # runs of older versions
        steps = epoch_steps * int(body["recipe"]["optim"]["epochs"])
    parent = body["parent"]
    status = _status(path, record.status)
    datetime.fromisoformat(body["started"])  # else it cannot be shown
    wall = float(body["wall_seconds"] or 0.0)
    if status == "running":
        wall += max(0.0, datetime.now(UTC).timestamp() - (path / "run.json").stat().st_mtime)
    return RunLine(
        name=name,
        path=str(path),
        stage=record.stage,
        model=record.model,
        ssl=body.get("ssl"),
        status=status,
        step=step,
        steps=steps,
        best=best_validation(validations),
        last=validations[-1] if validations else None,
        parent=None if parent is None else str(parent["path"]),
        shards=str(body["shards"]["path"]),
        started=str(body["started"]),
        wall_seconds=wall,
    )


def _status(path: Path, said: str) -> Status:
    if said == "running":
        return "running" if _locked(lock_path(path)) else "stale"
    if said in ("finished", "interrupted", "failed"):
        return cast(Status, said)
    raise ValueError(f"status {said!r}")


def _locked(path: Path) -> bool:
    """Whether somebody holds a file's lock; needs no right to write, and makes no file."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        # Shared, so that two lists at once do not take each other for the run.
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def _read_log(path: Path) -> tuple[list[dict[str, Any]], int, int | None]:
    """The validations, the last step, and the steps of an epoch once one is validated.

    Only validations and the last line are taken apart: a log of a million steps is read in a second.
    """
    validations: list[dict[str, Any]] = []
    last = b""
    try:
        if path.is_file():
            with path.open("rb") as file:
                for line in file:
                    if not line.endswith(b"\n"):
                        break  # half a line, being written or cut off by a kill
                    last = line
                    if b'"split"' in line:
                        validations.append(json.loads(line))
        step = int(json.loads(last)["step"]) if last else 0
        first = validations[0] if validations else None
        each = None if first is None else int(first["step"]) // (int(first["epoch"]) + 1)
    except (ValueError, KeyError, TypeError) as error:
        raise MstlError(str(path), why=f"{path.name} cannot be read ({error})", remedy="Bring it back") from error
    return validations, step, each


def validation_text(entry: Mapping[str, Any] | None) -> str:
    """For example: auc 0.931 (epoch 12); the loss where there is no score, a dash where there is no validation."""
    if entry is None:
        return "-"
    found = score(entry) or (("loss", float(entry["loss"])) if entry.get("loss") is not None else None)
    return "-" if found is None else f"{found[0]} {found[1]:.3f} (epoch {int(entry['epoch']) + 1})"
