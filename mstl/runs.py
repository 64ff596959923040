"""The run folder: its record (run.json), its metrics log, and finding the runs there are."""

from __future__ import annotations

import json
import math
import os
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mstl.run_body import RunBody, check_part
from pipelines.recipe import Inputs
from shards.errors import MstlError
from shards.files import write_atomic
from shards.remote_store import location

if TYPE_CHECKING:
    from mstl.models.classifier import Classifier

RUN_SCHEMA = 1
WEIGHTS_NAME = "weights.safetensors"
METRICS_NAME = "metrics.jsonl"


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    """What run.json says of a run; `body` is all of it."""

    path: Path
    stage: str
    model: str
    recipe: dict[str, dict[str, Any]]
    classes: list[str]
    shards: str | Path
    shards_digest: str
    image_size: int
    status: str
    body: dict[str, Any]

    @property
    def evaluation_inputs(self) -> Inputs:
        """How the run's images are prepared when it is validated, evaluated or explained."""
        return Inputs.from_dict(self.body["inputs"]["evaluation"])

    @property
    def weights(self) -> Path:
        return self.path / WEIGHTS_NAME

    @property
    def title(self) -> str:
        """The stage, with the self-supervised method where it is not the paper's own (`sstl_m-moco`)."""
        method = self.body.get("ssl")
        return self.stage if method in (None, "ours") else f"{self.stage}-{method}"


def open_run(path: Path) -> RunRecord:
    """Read a run folder's record; raises MstlError when there is none, it is of another version, or damaged."""
    file = path / "run.json"
    if not file.is_file():
        raise MstlError(f"run {path}", why="it has no run.json", remedy="Name a folder that mstl train made")
    try:
        body = json.loads(file.read_text())
        if body["schema"] != RUN_SCHEMA:
            raise MstlError(
                str(file),
                why=f"it has schema {body['schema']!r}, this program reads {RUN_SCHEMA}",
                remedy="Use the version of MSTL that made the run",
            )
        check_part(RunBody, body, str(file), f"Bring it back, or remove {path}")
        return RunRecord(
            path=path,
            stage=body["stage"],
            model=body["model"],
            recipe=body["recipe"],
            classes=list(body["shards"]["classes"]),
            shards=location(body["shards"]["path"]),
            shards_digest=body["shards"]["digest"],
            image_size=int(body["recipe"]["data"]["image_size"]),
            status=body["status"],
            body=body,
        )
    except (ValueError, KeyError, TypeError) as error:
        raise MstlError(
            str(file), why=f"it cannot be read ({error!r})", remedy=f"Bring it back, or remove {path}"
        ) from error


def load_classifier(run: RunRecord) -> Classifier:
    """The trained network of a supervised run, on the CPU in evaluation mode; raises MstlError when it has none."""
    # Imported here, so that listing runs does not take the seconds of importing torch.
    from mstl.carry import carry_over
    from mstl.models.classifier import Classifier
    from mstl.models.registry import attention_options, build_backbone
    from mstl.recipes import Model
    from mstl.weights import load_weights

    weights = load_weights(run.weights)
    head = {name.removeprefix("fc."): value for name, value in weights.items() if name.startswith("fc.")}
    if not head:
        raise MstlError(
            f"run {run.path}",
            why=f"stage {run.stage} has no classifier",
            remedy="Name a run of stl_n, stl_m or finetune",
        )
    # Eager, whatever it was trained by: nothing is timed for an evaluation, and it runs anywhere.
    model = Model.model_validate({**run.recipe.get("model", {}), "attention_backend": "eager"})
    backbone = build_backbone(run.model, attention_options(model))
    carry_over(weights, backbone)
    classifier = Classifier(backbone, len(run.classes))
    classifier.fc.load_state_dict(head)
    return classifier.eval()


def write_record(path: Path, body: Mapping[str, Any]) -> None:
    """Write run.json atomically."""
    path.mkdir(parents=True, exist_ok=True)
    write_atomic(path / "run.json", (json.dumps(body, indent=1) + "\n").encode())


def finished_runs(root: Path, stage: str, model: str) -> list[RunRecord]:
    """The finished runs of a stage and network directly under a folder, oldest first."""
    found = []
    for file in sorted(root.glob("*/run.json")):
        try:
            record = open_run(file.parent)
        except MstlError:
            continue  # somebody else's folder or a broken run is no candidate
        if (record.stage, record.model, record.status) == (stage, model, "finished"):
            found.append(record)
    return sorted(found, key=lambda record: str(record.body["finished"]))


class MetricsLog:
    """metrics.jsonl, appended line by line; after a resume it holds each step once."""

    def __init__(self, run: Path, *, resume_step: int) -> None:
        """Keep the lines up to `resume_step` (0: none) and continue behind them.

        Raises MstlError naming a damaged line among those to keep.
        """
        self._path = run / METRICS_NAME
        kept: list[dict[str, Any]] = []
        done = 0
        for number, line in enumerate(_lines(self._path), start=1):
            try:
                entry = _entry(self._path, number, line)
            except MstlError:
                if done < resume_step:
                    raise
                break  # behind the last step to keep, a power cut may have left anything
            done = entry["step"]
            if done > resume_step:
                break
            kept.append(entry)
        write_atomic(self._path, "".join(f"{json.dumps(entry)}\n" for entry in kept).encode())
        self._file = self._path.open("a", buffering=1)

    def write(self, entry: Mapping[str, Any]) -> None:
        """Append a line; it is with the system, safe from this process's end, when this returns.

        Raises MstlError when the file was removed or replaced under way: lines would go nowhere.
        """
        try:
            there = os.path.samestat(self._path.stat(), os.fstat(self._file.fileno()))
        except FileNotFoundError:
            there = False
        if not there:
            raise MstlError(
                f"{self._path}",
                why="it was removed or replaced while training wrote to it",
                remedy="Leave a run's folder alone while it trains; start it again",
            )
        self._file.write(json.dumps(entry) + "\n")

    def close(self) -> None:
        self._file.close()


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """All lines of a run's metrics.jsonl; empty when it has none. Raises MstlError naming a line that is damaged."""
    path = run / METRICS_NAME
    return [_entry(path, number, line) for number, line in enumerate(_lines(path), start=1)]


def score(entry: Mapping[str, Any]) -> tuple[str, float] | None:
    """What a validation is judged by: its AUC, else its accuracy, as (name, value); None where it has neither."""
    for name in ("auc", "accuracy"):
        value = entry.get(name)
        if isinstance(value, int | float) and math.isfinite(value):
            return name, float(value)
    return None


def best_validation(entries: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
    """The line of the highest score, the earliest of equals; None where none is scored."""
    best: dict[str, Any] | None = None
    highest = -math.inf
    for entry in entries:
        found = score(entry)
        if found is not None and found[1] > highest:
            best, highest = entry, found[1]
    return best


def _entry(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        entry: dict[str, Any] = json.loads(line)
        entry["step"]
    except (ValueError, KeyError, TypeError) as error:
        raise MstlError(
            f"{path}, line {number}",
            why=f"it cannot be read ({error!r})",
            remedy="Remove that line, or bring the file back",
        ) from error
    return entry


def _lines(path: Path) -> list[str]:
    """The complete lines: a kill may leave half of one at the end."""
    if not path.is_file():
        return []
    complete = path.read_text(errors="replace").rpartition("\n")[0]
    return [line for line in complete.split("\n") if line.strip()]


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def software() -> dict[str, str]:
    """Versions of what a result depends on."""
    names = ("mstl", "torch", "torchvision", "nvidia-dali-cuda130", "deepspeed", "numpy")
    versions = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def git_revision() -> str | None:
    """The commit of the code in use with `+` when it has changes, or None outside a checkout."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    here = Path(__file__).parent
    try:
        # Installed into an environment inside somebody's own repository, this file is not one of that repository's.
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
