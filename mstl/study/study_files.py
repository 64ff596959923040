"""What a study's folder says: study.json, and the results of the nodes that have finished."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mstl.evaluation.predictions import read_table
from mstl.run_body import check_part
from mstl.runs import RunRecord, open_run
from mstl.study.checks import check_evaluation
from mstl.study.state import LEEP_NAME, LOCK_NAME, STUDY_NAME, STUDY_SCHEMA
from mstl.study.study_parts import LeepPart, NodePart, StudyPart
from shards.errors import MstlError
from shards.files import lock_file

AGAIN = "Bring it back, or run mstl run again: what has run is found again"
# More than two classes have means over the classes in the places of the two-class metrics.
OVER_CLASSES = {"macro_f1": "f1", "macro_auc": "auc"}


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a finished node measured: values and 95 % intervals over images by metric, as fractions (LEEP: as is).

    images: tells sets of images apart. positive: index of the positive of two classes. folder: where the files are.
    """

    node: NodePart
    values: Mapping[str, float]
    spans: Mapping[str, tuple[float, float]]
    split: str
    n: int
    images: str
    positive: int | None
    folder: Path
    leep: LeepPart | None = None


@dataclass(frozen=True, kw_only=True)
class StudyFacts:
    """A study as its folder has it; all by node id. problems: of finished nodes, why a file of theirs is not shown."""

    folder: Path
    study: StudyPart
    active: bool
    nodes: Mapping[str, NodePart]
    results: Mapping[str, Result] = field(default_factory=dict)
    runs: Mapping[str, RunRecord] = field(default_factory=dict)
    problems: Mapping[str, str] = field(default_factory=dict)

    def state_of(self, node: NodePart) -> str:
        """Its state; one that was running when its study was killed is interrupted."""
        return "interrupted" if node.state == "running" and not self.active else node.state


def is_study(folder: Path) -> bool:
    """Whether a folder holds a study."""
    return (folder / STUDY_NAME).is_file()


def read_study_folder(folder: Path) -> StudyFacts:
    """What a study's folder holds; raises MstlError for a damaged study.json, and names damaged results in it."""
    file = folder / STUDY_NAME
    try:
        body = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise MstlError(str(file), why=f"it cannot be read ({error})", remedy=AGAIN) from error
    if not isinstance(body, dict) or body.get("schema") != STUDY_SCHEMA:
        found = body.get("schema") if isinstance(body, dict) else None
        raise MstlError(
            str(file),
            why=f"it has schema {found!r}, this program reads {STUDY_SCHEMA}",
            remedy="Use the version of MSTL that ran the study",
        )
    check_part(StudyPart, body, str(file), AGAIN)
    study = StudyPart.model_validate(body)
    results: dict[str, Result] = {}
    runs: dict[str, RunRecord] = {}
    problems: dict[str, str] = {}
    for node in study.nodes:
        if node.state != "finished":
            continue
        try:
            if node.kind == "leep":
                results[node.id] = _read_leep(folder, node)
                continue
            runs[node.id] = open_run(folder / node.path)
            if node.evaluate:
                results[node.id] = _read_evaluation(folder, node)
        except (MstlError, OSError) as error:
            problems[node.id] = str(error)
    return StudyFacts(
        folder=folder,
        study=study,
        active=_active(folder),
        nodes={node.id: node for node in study.nodes},
        results=results,
        runs=runs,
        problems=problems,
    )


def split_of(node: NodePart) -> str:
    """The split whose figures stand in the tables: test where it is measured, else the first."""
    return "test" if "test" in node.evaluate else node.evaluate[0]


def _active(folder: Path) -> bool:
    """Whether a runner works in the folder now."""
    with suppress(OSError):
        if (folder / LOCK_NAME).is_file():
            handle = lock_file(folder / LOCK_NAME, shared=True)
            if handle is None:
                return True
            os.close(handle)
    return False


def _read_leep(folder: Path, node: NodePart) -> Result:
    file = folder / node.path / LEEP_NAME
    body = _json(file, "Remove it and run mstl run again")
    check_part(LeepPart, body, str(file), "Remove it and run mstl run again")
    leep = LeepPart.model_validate(body)
    if len(leep.sources) != 1:
        raise MstlError(str(file), why=f"it has {len(leep.sources)} sources, not one", remedy=AGAIN)
    source, target = leep.sources[0], leep.target
    return Result(
        node=node,
        values={"bits": source.bits, "nats": source.nats},
        spans={},
        split=target.split,
        n=target.n,
        images=f"{target.digest} {target.split}",
        positive=None,
        folder=file.parent,
        leep=leep,
    )


def _read_evaluation(folder: Path, node: NodePart) -> Result:
    split = split_of(node)
    place = folder / node.path / "evaluation" / split
    file = place / "metrics.json"
    body = _json(file, "Remove it and run mstl run again")
    check_evaluation(file, body)
    intervals: Mapping[str, Any] = body.get("intervals") or {}
    values, spans = {}, {}
    for name, value in body["metrics"].items():
        shown = OVER_CLASSES.get(name, name)
        if value is None:
            continue
        values[shown] = float(value)
        span = intervals.get(name)
        if span is not None and span["low"] is not None and span["high"] is not None:
            spans[shown] = (float(span["low"]), float(span["high"]))
    positive = None if body["positive"] is None else body["classes"].index(body["positive"])
    identity = [body["shards"]["digest"], split, str(body["n"]), str(body["positive"])]
    if positive is not None:
        found = read_table(place / "predictions.csv", classes=len(body["classes"]), positive=positive)
        if len(found) != body["n"]:
            why = f"it has {len(found)} rows, and metrics.json counts {body['n']} images"
            raise MstlError(str(place / "predictions.csv"), why=why, remedy="Evaluate the run again")
        ids, labels = found.predictions.sample_ids, found.predictions.labels
        identity.append(hashlib.sha256(ids.tobytes() + labels.tobytes()).hexdigest())
    return Result(
        node=node,
        values=values,
        spans=spans,
        split=split,
        n=body["n"],
        images=" ".join(identity),
        positive=positive,
        folder=place,
    )


def _json(file: Path, remedy: str) -> Any:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise MstlError(str(file), why=f"it cannot be read ({error})", remedy=remedy) from error
