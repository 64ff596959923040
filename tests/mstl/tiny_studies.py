"""A study's folder as `mstl run` leaves it, without training: states by the runner's own code, results by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from PIL import Image
from tiny_runs import make_run, make_shards

from mstl.evaluation.leep import Leep
from mstl.evaluation.leep_run import Scored, Target, as_body
from mstl.evaluation.leep_sources import Source
from mstl.evaluation.measure import Asked, measure
from mstl.evaluation.predictions import Predictions, Table, write_table
from mstl.runs import WEIGHTS_NAME
from mstl.study.planned import Planned, StudyPlan
from mstl.study.preflight import plan_study
from mstl.study.spec import read_study
from mstl.study.state import Failure, Status, StudyState
from shards.files import sha256_file
from shards.schema import Manifest

RESAMPLES = 200
TEXT = """
name = "tiny"
title = "A <tiny> study"
networks = ["resnet50-attn0", "resnet50-attn5", "resnet14-attn5"]
seeds = [0, 1, 2]
evaluate = ["test"]
[data]
natural = "{sets}/natural"
ct = "{sets}/ct"
[substitutions]
natural = "noise stands for ImageNet"
[set]
data.image_size = 48
data.batch_size = 4
optim.epochs = 3
[[node]]
name = "stl_n"
stage = "stl_n"
data = "natural"
seeds = [0]
evaluate = ["val"]
[[node]]
name = "sstl"
stage = "sstl_m"
data = "ct"
from = "stl_n"
seeds = [0]
[[node]]
name = "finetune_no_tl"
stage = "finetune"
data = "ct"
column = "no_tl"
[[node]]
name = "finetune_full"
stage = "finetune"
data = "ct"
from = "sstl"
column = "full"
explain = 2
[[node]]
name = "finetune_odd"
stage = "finetune"
data = "ct"
column = "odd_one"
[[node]]
name = "leep_stl_n"
kind = "leep"
data = "ct"
from = "stl_n"
column = "stl_n"
seeds = [0]
"""


def make_sets(folder: Path) -> Path:
    """natural/ with six classes, ct/ with two, ten images a split or so."""
    make_shards(folder / "natural", classes=tuple("abcdef"), per_class=2, source="noise")
    make_shards(folder / "ct", per_class=8, source="tiny-ct")
    return folder


def plan_tiny(place: Path, sets: Path, text: str = TEXT) -> StudyPlan:
    """The plan of the study, in PLACE/out."""
    file = place / "tiny.toml"
    file.write_text(text.format(sets=sets))
    return plan_study(read_study(file), place / "out")


def finish(state: StudyState, name: str, shift: float = 0.0) -> None:
    """Give a node the results of a network whose positives score higher by `shift`, and mark it finished."""
    plan = state.plan
    planned = plan.nodes[name]
    manifest, folder = planned.data.manifest, plan.out / planned.path
    if planned.training is None:
        _write_leep(plan, planned, manifest, shift)
    else:
        parent = plan.out / plan.nodes[planned.node.parents[0]].path if planned.node.parents else None
        make_run(folder, planned.data.folder, manifest, stage=str(planned.node.spec.stage),
                 model=planned.node.network, parent=parent, weights=False)  # fmt: skip
        for split in planned.evaluate:
            write_evaluation(folder, manifest, split, predicted(planned, manifest, split, shift))
        if planned.node.spec.explain:
            Image.new("RGB", (8, 8), "red").save(folder / "evaluation" / planned.evaluate[0] / "heatmaps.png")
    state.set(name, Status(state="finished", seconds=60.0 + planned.node.seed))


def predicted(planned: Planned, manifest: Manifest, split: str, shift: float) -> Table:
    """Random probabilities, others for each node, network and seed."""
    node = planned.node
    random = np.random.default_rng(crc32(node.id.encode()))
    classes, n = len(manifest.classes), manifest.samples(split)
    labels = np.arange(n) % classes
    logits = random.normal(size=(n, classes))
    logits[np.arange(n), labels] += shift
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return Table(
        predictions=Predictions(
            sample_ids=np.arange(n, dtype=np.int64),
            labels=labels.astype(np.int64),
            probabilities=shares.astype(np.float32),
        ),
        keys=tuple(f"k{i}" for i in range(n)),
        patients=(None,) * n,
    )


def write_evaluation(run: Path, manifest: Manifest, split: str, table: Table) -> None:
    """What `mstl evaluate` leaves of a split: metrics with their intervals, and predictions."""
    positive = 1 if len(manifest.classes) == 2 else None
    asked = Asked(classes=manifest.classes, positive=positive, threshold=None, temperature=None,
                  resamples=RESAMPLES, seed=0)  # fmt: skip
    body: dict[str, Any] = {
        "schema": 2, "split": split, "n": len(table), "classes": list(manifest.classes),
        "positive": None if positive is None else manifest.classes[positive],
        **measure(table, asked).body,
        "shards": {"path": "x", "digest": manifest.digest(), "source": manifest.source, "same_as_run": True},
        "weights_sha256": sha256_file(run / WEIGHTS_NAME),
    }  # fmt: skip
    out = run / "evaluation" / split
    out.mkdir(parents=True, exist_ok=True)
    (out / "metrics.json").write_text(json.dumps(body))
    (out / "predictions.csv").write_text(write_table(table, positive))


def _write_leep(plan: StudyPlan, planned: Planned, manifest: Manifest, shift: float) -> None:
    split = planned.node.spec.split
    chain = ("stl_n",) if planned.node.parents else ("no transfer",)
    source = Source(name="x", kind="run" if planned.node.parents else "untrained", model=planned.node.network,
                    chain=chain)  # fmt: skip
    score = Leep(nats=-0.6 + 0.1 * shift, floor_nats=-float(np.log(2)))
    target = Target(folder=planned.data.folder, origin="x", manifest=manifest, split=split)
    out = plan.out / planned.path
    out.mkdir(parents=True)
    scored = Scored(source=source, image_size=48, classes=6, score=score, notes=("a note of this score",))
    (out / "leep.json").write_text(json.dumps(as_body([scored], target)))


def finish_all(state: StudyState, shifts: Mapping[str, float], but: tuple[str, ...] = ()) -> None:
    """Finish every node, parents first, but some; shifts by the node's name."""
    for name, planned in state.plan.nodes.items():
        if name not in but:
            finish(state, name, shifts.get(planned.node.spec.name, 0.0))


def fail(state: StudyState, name: str) -> None:
    """Let a node have failed, and what stands on it be blocked."""
    log = f"{state.plan.nodes[name].path}.log"
    why = "the disk is <full>"
    state.set(name, Status(state="failed", error=Failure(what=f"training of {name}", why=why, remedy="-", log=log)))
    state.block(name)
