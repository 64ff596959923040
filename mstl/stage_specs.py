"""What is fixed about the stages before anything is built; apart from `mstl.stages`, which needs torch."""

from __future__ import annotations

from dataclasses import dataclass

from shards.plan import Remainder


@dataclass(frozen=True, kw_only=True, slots=True)
class StageSpec:
    """What is fixed about a stage before anything is built.

    source: the shard set it trains on by default. parent: the stage whose weights it starts from.
    remainder: what becomes of an epoch's last, partial batch; small sets cannot afford to lose it (spec 1.8, 8).
    """

    name: str
    source: str
    parent: str | None
    remainder: Remainder


STAGES: dict[str, StageSpec] = {
    spec.name: spec
    for spec in (
        StageSpec(name="stl_n", source="imagenet", parent=None, remainder="drop"),
        StageSpec(name="stl_m", source="covidx", parent="stl_n", remainder="drop"),
        StageSpec(name="sstl_m", source="covid19-ct", parent="stl_m", remainder="keep"),
        StageSpec(name="finetune", source="covid19-ct", parent="sstl_m", remainder="keep"),
    )
}

CARD_STAGE = "finetune"  # whose runs get a model card: those that judge images of patients
