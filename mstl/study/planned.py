"""A checked study: its shard sets, and every node with all that is known of it before it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mstl.job import Parent
from mstl.recipes import Settled
from mstl.study.digests import Code, digest, split_facts
from mstl.study.graph import Graph, Node
from mstl.study.spec import Study, StudyFile
from shards.remote_store import is_url, shown
from shards.schema import Manifest


@dataclass(frozen=True)
class DataSet:
    """A shard set of the study. place: as it was named, `path`: as it is recorded."""

    name: str
    place: str | Path
    folder: Path
    manifest: Manifest

    @property
    def path(self) -> str:
        return shown(self.place) if is_url(self.place) else str(Path(self.place).resolve())

    @cached_property
    def digest(self) -> str:
        return self.manifest.digest()

    @cached_property
    def splits(self) -> dict[str, dict[str, Any]]:
        return split_facts(self.manifest)


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """What the runs of a training node have in common. words: the recipe fields that the study sets, as for --set.

    used: the recipe, without what changes no result. waived: findings of leakage that apply and are waived.
    """

    settled: Settled
    words: tuple[str, ...]
    used: dict[str, Any]
    steps: int
    init: Parent | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Planned:
    """A node with all that is known of it before it runs. path: of its folder, below that of the study.

    work: its digest, and that of what it stands on, but for the code. size: what one step costs depends on it.
    """

    node: Node
    data: DataSet
    training: Training | None
    digest: str
    work: str
    path: str
    leakage: str
    waived: tuple[str, ...]
    substitution: str | None
    image_size: int
    evaluate: tuple[str, ...]

    @property
    def size(self) -> list[Any]:
        """Nodes of equal size take equally long for a step."""
        if self.training is None:
            return ["leep", self.node.network, self.image_size, self.data.digest]
        settled = self.training.settled
        batch = settled.recipe.data.batch_size
        return [settled.stage, settled.ssl, self.node.network, self.image_size, batch]

    @property
    def recipe_digest(self) -> str | None:
        return None if self.training is None else digest(self.training.used)

    @property
    def steps(self) -> int:
        """Updates of the training; 1 for a measurement."""
        return 1 if self.training is None else self.training.steps


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyPlan:
    """A checked study: nodes by id, every parent before its children. any_code: code makes no difference."""

    file: StudyFile
    out: Path
    code: Code
    any_code: bool
    graph: Graph
    nodes: Mapping[str, Planned]

    @property
    def study(self) -> Study:
        return self.file.study
