"""What study.json and leep.json must hold to be reported; also how their contents are handed on."""

from __future__ import annotations

from typing import Literal

from mstl.run_body import Part


class SplitPart(Part):
    samples: int
    digest: str


class DataPart(Part):
    name: str
    path: str
    digest: str
    source: str
    splits: dict[str, SplitPart]


class ErrorPart(Part):
    what: str
    why: str
    remedy: str
    log: str


class NodePart(Part):
    """A node as study.json has it."""

    id: str
    name: str
    kind: Literal["train", "leep"]
    network: str
    seed: int
    stage: str | None
    ssl: str | None
    column: str | None
    parents: list[str]
    digest: str
    state: str
    path: str
    log: str
    error: ErrorPart | None
    seconds: float | None
    steps: int | None
    recipe_digest: str | None
    data: DataPart
    evaluate: list[str]
    explain: int
    leakage: str
    substitution: str | None


class CodePart(Part):
    version: str
    revision: str | None
    dirty: bool
    sha256: str


class StudyPart(Part):
    """study.json."""

    name: str
    title: str
    file_sha256: str
    code: CodePart
    created: str
    updated: str
    columns: list[str]
    nodes: list[NodePart]


class LeepTargetPart(Part):
    digest: str
    split: str
    n: int
    floor_nats: float


class LeepSourcePart(Part):
    kind: str
    chain: list[str]
    nats: float
    bits: float
    notes: list[str]


class LeepPart(Part):
    """leep.json of a study's node: one source with a score."""

    target: LeepTargetPart
    sources: list[LeepSourcePart]
    device: str
    software: dict[str, str]
