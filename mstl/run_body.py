"""What run.json must hold: a damaged record is named when it is read, not stumbled over later."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from shards.errors import MstlError


class Part(BaseModel):
    """A part of a file as read from JSON: types are taken as they are, fields that nobody here reads are let be."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


class ParentPart(Part):
    path: str
    weights: str
    digest: str


class ShardsPart(Part):
    path: str
    digest: str
    source: str
    classes: list[str]


class CarryPart(Part):
    carried: int
    new: list[str]
    dropped: list[str]


class PrintedPart(Part):
    value: Any
    why: str


class NamedPart(Part):
    name: str


class VerdictPart(NamedPart):
    text: str
    outcome: str
    unknown: int


class LeakagePart(Part):
    state: str
    missing: list[str]
    verdicts: list[VerdictPart]
    waived: list[NamedPart]
    transductive: list[str] = []  # newer than the gate


class RunBody(Part):
    """run.json; its recipe and inputs are read by the program that trains."""

    stage: str
    ssl: str | None = None  # runs before there were baselines have none
    model: str
    flavour: str
    recipe_schema: int = 1  # mstl.recipes.records
    recipe: dict[str, dict[str, Any]]
    inputs: dict[str, dict[str, Any]]
    printed: dict[str, PrintedPart]
    resolved: dict[str, Any]
    reasons: dict[str, str] = {}  # newer than the first runs
    seed: int
    world_size: int
    parent: ParentPart | None
    shards: ShardsPart
    carry: CarryPart | None
    attention: dict[str, str] = {}  # newer than the first runs
    leakage: LeakagePart | None = None  # runs before the gate have none
    software: dict[str, str]
    device: str
    git: str | None
    status: str
    started: str
    finished: str | None
    wall_seconds: float | None


def check_part(kind: type[Part], body: object, what: str, remedy: str) -> None:
    """Raise MstlError naming the first field of `body`, read from `what`, that is missing or of another kind."""
    try:
        kind.model_validate(body)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        message = f"{place}: {first['msg']}" if place else first["msg"]
        raise MstlError(what, why=f"it cannot be read ({message})", remedy=remedy) from error
