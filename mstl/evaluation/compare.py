"""Two runs on the same images: is one better, and by how much, with what the images allow to say."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mstl.evaluation.intervals import RESAMPLES, bootstrap, clusters_of, intervals, method
from mstl.evaluation.measure import MOST_RANKED
from mstl.evaluation.paired import delong, mcnemar
from mstl.evaluation.places import evaluation_folder
from mstl.evaluation.predictions import Table, read_table
from mstl.evaluation.weighted import Statistic, Values, as_they_are, classes_absent, many_classes, two_classes
from mstl.runs import now, open_run
from mstl.study.checks import check_evaluation
from shards.cache import CacheOptions, local_set
from shards.errors import MstlError
from shards.files import sha256_file
from shards.progress import QUIET, Progress
from shards.schema import Manifest, load_manifest

SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluated:
    """An evaluation of a run on a split, as its files have it. positive: index of that class, None unless binary."""

    run: Path
    body: dict[str, Any]
    table: Table
    positive: int | None

    @property
    def threshold(self) -> float | None:
        """The chosen operating point; None where none was chosen."""
        operating = self.body.get("operating") or {}
        return None if operating.get("origin") == "default" else operating.get("threshold")

    @property
    def guesses(self) -> NDArray[np.int64]:
        """The most probable class of each image [N]."""
        guesses: NDArray[np.int64] = np.argmax(self.table.predictions.probabilities, axis=1)
        return guesses

    @property
    def scores(self) -> NDArray[np.float64]:
        """The probabilities [N] of the positive class, which there must be."""
        assert self.positive is not None
        return self.table.predictions.probabilities[:, self.positive].astype(np.float64)


def compare_runs(
    a: Path,
    b: Path,
    *,
    split: str,
    shards: str | Path | None = None,
    cache: CacheOptions = CacheOptions(),  # noqa: B008 - frozen
    resamples: int = RESAMPLES,
    seed: int = 0,
    progress: Progress = QUIET,
) -> dict[str, Any]:
    """Compare two evaluated runs on the same images; all differences are b − a.

    shards: the set they were evaluated on, without it the one that each was trained with.

    `metrics`: each metric of both, the difference and its paired bootstrap interval (both runs in the same resamples,
    of patients where all are known); `operating`: the same where each decides at its own operating point, if both have
    one; `delong` and `mcnemar` (of `metrics`' decisions, and of `operating`'s) take images as independent. Raises
    MstlError unless both were evaluated on the same images, with the same positive class and with the weights they have
    now.
    """
    manifest = None if shards is None else load_manifest(local_set(shards, cache=cache, splits=(), tars=False))
    one, other = pair = (read_evaluated(a, split, manifest), read_evaluated(b, split, manifest))
    _check_same(one, other, split)
    labels, classes = one.table.predictions.labels, len(one.body["classes"])
    clusters = clusters_of(one.table.patients)
    with_operating = all(run.threshold is not None for run in pair)
    ranked = one.positive is not None or classes * len(labels) * resamples <= MOST_RANKED
    everything = [as_they_are(_statistic(run, ranked=True, operating=with_operating), len(labels)) for run in pair]
    statistics = [_statistic(run, ranked=ranked, operating=with_operating) for run in pair]
    absent = classes_absent(labels, classes)

    def difference(weights: Values) -> dict[str, Values]:
        first, second = (statistic(weights) for statistic in statistics)
        compared = {name: second[name] - value for name, value in first.items() if not name.startswith("ece")}
        return {**compared, **absent(weights)}

    values = bootstrap(difference, clusters, resamples=resamples, seed=seed, progress=progress)
    spans = intervals(values, clusters)
    rows: dict[str, dict[str, Any]] = {}
    for name, value in everything[0].items():
        if value.ndim:
            continue
        first, second = float(value), float(everything[1][name])
        span = spans.get(name)
        rows[name] = {
            "a": _finite(first),
            "b": _finite(second),
            "difference": _finite(second - first),
            "interval": None if span is None else span.as_json(),
        }
    body: dict[str, Any] = {
        "schema": SCHEMA_VERSION,
        "split": split,
        "n": len(labels),
        "classes": one.body["classes"],
        "positive": one.body["positive"],
        "a": _about(one),
        "b": _about(other),
        "shards": {"digest": one.body["shards"]["digest"], "source": one.body["shards"].get("source")},
        "bootstrap": method(clusters, resamples=resamples, seed=seed, one_class=int(values["absent"].sum())),
        "metrics": {name: row for name, row in rows.items() if not name.startswith("operating/")},
        "delong": None,
        "mcnemar": asdict(mcnemar(one.guesses == labels, other.guesses == labels)),
        "operating": None,
        "date": now(),
    }
    if one.positive is not None:
        positives = labels == one.positive
        found = delong(one.scores, other.scores, positives)
        body["delong"] = None if found is None else asdict(found)
        if with_operating:
            yes = [run.scores >= run.threshold for run in pair if run.threshold is not None]
            body["operating"] = {
                "metrics": {
                    name.removeprefix("operating/"): row for name, row in rows.items() if name.startswith("operating/")
                },
                "mcnemar": asdict(mcnemar(yes[0] == positives, yes[1] == positives)),
            }
    return body


def read_evaluated(run: Path, split: str, manifest: Manifest | None = None) -> Evaluated:
    """What `mstl evaluate` left of a run on a shard set, by default on its own.

    Raises MstlError when it left nothing, it is damaged, or out of date.
    """
    record = open_run(run)
    folder, again, where = run / "evaluation" / split, f"mstl evaluate {run} --split {split}", ""
    if manifest is not None:
        digest = manifest.digest()
        own = digest == record.shards_digest
        folder = evaluation_folder(run, split, source=manifest.source, digest=digest, own=own)
        again, where = f"{again} --shards DIR", " of that shard set"
    file = folder / "metrics.json"
    if not file.is_file():
        why = f"it has not been evaluated on split {split!r}{where}"
        raise MstlError(f"run {run}", why=why, remedy=f"First: {again}")
    try:
        body = json.loads(file.read_text())
    except ValueError as error:
        raise MstlError(str(file), why=f"it cannot be read ({error})", remedy=f"Evaluate again: {again}") from error
    check_evaluation(file, body)
    if record.weights.is_file() and body.get("weights_sha256") != sha256_file(record.weights):
        raise MstlError(str(file), why="the run has other weights by now", remedy=f"Evaluate again: {again}")
    positive = None if body["positive"] is None else body["classes"].index(body["positive"])
    table = read_table(folder / "predictions.csv", classes=len(body["classes"]), positive=positive)
    if len(table) != body["n"]:
        raise MstlError(
            str(folder / "predictions.csv"),
            why=f"it has {len(table)} rows, and metrics.json counts {body['n']} images",
            remedy=f"Evaluate again: {again}",
        )
    return Evaluated(run=run, body=body, table=table, positive=positive)


def _check_same(a: Evaluated, b: Evaluated, split: str) -> None:
    what = f"runs {a.run} and {b.run}"
    first, second = a.table.predictions, b.table.predictions
    if a.body["shards"]["digest"] != b.body["shards"]["digest"]:
        why = "they were evaluated on different shard sets"
        remedy = f"Evaluate both on one (mstl evaluate RUN --split {split} --shards DIR), and name it: --shards DIR"
    elif not np.array_equal(first.sample_ids, second.sample_ids) or not np.array_equal(first.labels, second.labels):
        why, remedy = "their predictions are of different images", "Evaluate both again"
    elif a.body["positive"] != b.body["positive"]:
        why = f"their positive classes differ ({a.body['positive']}, {b.body['positive']})"
        remedy = "Evaluate both with the same --positive"
    else:
        return
    raise MstlError(what, why=why, remedy=remedy)


def _statistic(run: Evaluated, *, ranked: bool, operating: bool) -> Statistic:
    found = run.table.predictions
    if run.positive is None:
        return many_classes(found.probabilities, found.labels, ranked=ranked)
    positives = found.labels == run.positive
    predicted = run.guesses == run.positive
    return two_classes(run.scores, positives, predicted, run.threshold if operating else None)


def _about(run: Evaluated) -> dict[str, Any]:
    operating = run.body.get("operating") or {}
    return {
        "run": str(run.run),
        "weights_sha256": run.body.get("weights_sha256"),
        "threshold": run.threshold,
        "threshold_rule": operating.get("rule"),
        "threshold_split": operating.get("split"),
    }


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def cautions(body: dict[str, Any]) -> Sequence[str]:
    """What a reader of a comparison must know of its tests."""
    # Chance makes every ECE too large, and that of the better calibrated run the most: resampling hides a difference.
    found = ["ece has no interval, for resampling distorts it: brier compares probabilities."]
    if body["bootstrap"]["unit"] == "patient":
        found.append(
            "DeLong and McNemar take images as independent, and some are of the same patient: prefer the intervals, "
            "which draw patients."
        )
    if body["operating"] is not None and body["split"] in (body[run]["threshold_split"] for run in "ab"):
        found.append("The operating points were chosen on these very images: what is measured there is optimistic.")
    return found
