"""What the user asked for, and the checked job that comes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mstl import inputs
from mstl.gate import UNLOOKED, Gate
from mstl.recipes import Flavour, Recipe, Ssl
from mstl.runs import RunRecord
from mstl.stage_specs import StageSpec
from pipelines.recipe import Inputs
from shards.remote_store import shown
from shards.schema import ALL, Manifest

Resume = Literal["auto", "must", "never"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What the user asked for; None is the default named in `mstl train --help`."""

    stage: str
    ssl: str | None = None
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
    compile: bool = False
    hang_timeout: float = 300.0  # seconds
    log_seconds: float = 10.0
    tensorboard: bool = False
    wandb: str | None = None
    waive_leakage: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Parent:
    """The weights a stage starts from: a run's, or a file from elsewhere."""

    weights: Path
    run: Path | None
    digest: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A checked request: everything a rank needs to build its part.

    ssl: the self-supervised method; None where the stage has labels. reasons: for every recipe field that departs from
    our resolution, why it does.
    """

    spec: StageSpec
    ssl: Ssl | None
    model: str
    recipe: Recipe
    reasons: Mapping[str, str] = field(default_factory=dict)
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
    def train_split(self) -> str:
        """What is trained on: the train split, or all images where no label is looked at."""
        return ALL if self.recipe.data.images == "all" else "train"

    @property
    def train_inputs(self) -> Inputs:
        """What the network sees in training, fitted to the shard set."""
        return self._fitted(inputs.train_inputs(self.spec.name, self.ssl, self.recipe))

    @property
    def val_inputs(self) -> Inputs:
        """What the network sees in validation, fitted to the shard set."""
        return self._fitted(inputs.val_inputs(self.spec.name, self.ssl, self.recipe))

    def _fitted(self, views: Inputs) -> Inputs:
        manifest = self.manifest
        return inputs.for_set(views, self.recipe.data, modality=manifest.modality, deep=manifest.deep > 0)

    @property
    def finished(self) -> bool:
        """The same job has already been done."""
        return self.previous is not None and self.previous.status == "finished"

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should hear of the recipe before it runs."""
        reason = self.reasons.get("optim.lr", "")
        rate = (f"optim.lr {self.recipe.optim.lr:g}: {reason}",) if reason.startswith("scaled") else ()
        every = ("trains on val and test images too, without their labels",) if self.train_split == ALL else ()
        return rate + every
