"""Run a classifier over a split and write what it is worth into the run folder."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mstl.evaluation.calibration import Fit, fit_temperature
from mstl.evaluation.intervals import RESAMPLES
from mstl.evaluation.measure import Asked, measure
from mstl.evaluation.operating import EVEN, Operating, Rule, choose_threshold, parse_rule, write_operating
from mstl.evaluation.places import evaluation_folder
from mstl.evaluation.predictions import (
    Table,
    check_numbers,
    positive_class,
    predict,
    read_table,
    with_records,
    write_table,
)
from mstl.evaluation.subject import Subject, bring, open_subject, own_split
from mstl.evaluation.weighted import decisions, unweighted
from mstl.runs import now, open_run, software
from mstl.stage_specs import CARD_STAGE
from mstl.study.checks import check_evaluation
from shards.cache import CacheOptions
from shards.errors import MstlError
from shards.files import sha256_file, write_atomic
from shards.progress import QUIET, Progress
from shards.schema import ALL

SCHEMA_VERSION = 2
CHOSEN_ON = "val"


@dataclass(frozen=True, kw_only=True, slots=True)
class How:
    """What every split of one evaluation shares."""

    positive: int | None
    rule: Rule
    resamples: int
    seed: int
    batch: int
    weights_sha256: str


def evaluate_run(
    run: Path,
    *,
    split: str,
    shards: str | Path | None = None,
    batch: int = 64,
    cache: CacheOptions = CacheOptions(),  # noqa: B008 - frozen
    positive: str | None = None,
    operating: str = "youden",
    resamples: int = RESAMPLES,
    seed: int = 0,
    progress: Progress = QUIET,
) -> dict[str, Any]:
    """Evaluate a run on a split and write `evaluation_folder`; returns what metrics.json holds.

    The operating point and the temperature are chosen on the val split of the run's own shard set, which is evaluated
    first unless that has been done with the same weights, and written to RUN/evaluation/operating.json; where there is
    no val split, 0.5 and no temperature are taken and the record says why. positive: name of the positive of two
    classes; operating: see `operating.parse_rule`; resamples and seed: of the bootstrap.
    Files: metrics.json, predictions.csv, confusion.png, reliability.png and, where classes that occur can be told from
    others that occur, roc.png and pr.png. Raises MstlError as `open_subject`, `positive_class` and `parse_rule` do.
    """
    rule, index = parse_rule(operating), positive_class(open_run(run).classes, positive)
    out = run / "evaluation" / split / "metrics.json"
    subject = open_subject(run, split=split, shards=shards, out=out, cache=cache, progress=progress)
    how = How(
        positive=index,
        rule=rule,
        resamples=resamples,
        seed=seed,
        batch=batch,
        weights_sha256=sha256_file(subject.record.weights),
    )
    table = _predicted(subject, batch, progress)
    try:
        own, why = own_split(subject, CHOSEN_ON, cache), None
    except MstlError as error:  # a set without val, or one that is no longer there, still leaves 0.5
        own, why = None, f"{error.what}: {error.why}"
    known = _stored(own, how) if own is not None else None
    if own is None:
        chosen = _choose(None, subject, how, why)
    elif split == CHOSEN_ON and subject.same_as_run:
        chosen = _choose(table, subject, how, None)
    elif known is not None:
        chosen = _choose(known, subject, how, None)
    else:
        bring(own, cache, progress)
        val = _predicted(own, batch, progress)
        chosen = _choose(val, subject, how, None)
        _judge(own, val, chosen, how, progress)
    write_operating(run, chosen)
    body = _judge(subject, table, chosen, how, progress)
    if subject.record.stage == CARD_STAGE:
        _complete_card(run, subject if subject.same_as_run else own)
    return body


def _complete_card(run: Path, trained: Subject | None) -> None:
    """Write the run's model card anew, with what was just measured. trained: the set that it was trained with."""
    from mstl.use.card import leave_card  # which reads what this module writes

    missing = leave_card(
        run,
        shards=None if trained is None else trained.folder,
        manifest=None if trained is None else trained.manifest,
    )
    if missing is not None:
        warnings.warn(missing, stacklevel=2)


def _predicted(subject: Subject, batch: int, progress: Progress) -> Table:
    loader = subject.loader(batch)
    try:
        found = predict(subject.classifier, loader, subject.device, progress=progress)
    finally:
        loader.close()
    check_numbers(found.probabilities, f"run {subject.record.path}")
    return with_records(found, subject.folder.resolve(), subject.split)


def _choose(val: Table | None, subject: Subject, how: How, why: str | None) -> Operating:
    """The operating point and the temperature of these validation images; without them the defaults and `why`."""
    threshold: float | None = None
    origin = "default"
    fit = Fit(temperature=None, why=why)
    rates: dict[str, float] = {}
    if val is not None:
        fit = fit_temperature(val.predictions.probabilities, val.predictions.labels)
    if how.positive is None:
        why = f"there are {len(subject.manifest.classes)} classes"
    elif how.rule.kind == "given":
        threshold, origin, why = how.rule.value, "given", None
    elif val is None or len(np.unique(val.predictions.labels)) < 2:
        threshold, why = EVEN, why or "the val split holds one class only"
    else:
        scores = val.predictions.probabilities[:, how.positive]
        threshold, origin = choose_threshold(scores, val.predictions.labels == how.positive, how.rule), CHOSEN_ON
    if val is not None and threshold is not None and how.positive is not None:
        scores = val.predictions.probabilities[:, how.positive].astype(np.float64)
        rates = unweighted(decisions(val.predictions.labels == how.positive, scores >= threshold), len(val))
    return Operating(
        rule=str(how.rule),
        threshold=threshold,
        origin=origin,
        why=why,
        temperature=fit.temperature,
        temperature_why=fit.why,
        split=None if val is None else CHOSEN_ON,
        n=0 if val is None else len(val),
        sensitivity=_finite(rates.get("sensitivity")),
        specificity=_finite(rates.get("specificity")),
        positive=None if how.positive is None else subject.manifest.classes[how.positive],
        classes=list(subject.manifest.classes),
        weights_sha256=how.weights_sha256,
        shards_digest=subject.record.shards_digest,
        date=now(),
    )


def _stored(own: Subject, how: How) -> Table | None:
    """The predictions that an earlier evaluation of val left; None unless of these weights, images and pixels."""
    body = _record(own)
    if body is None:
        return None
    same = {
        "weights_sha256": how.weights_sha256,
        "image_size": own.record.image_size,
        "classes": list(own.manifest.classes),
    }
    if body["shards"]["digest"] != own.manifest.digest() or any(body.get(key) != value for key, value in same.items()):
        return None
    positive = None if body["positive"] is None else own.manifest.classes.index(body["positive"])
    try:
        table = read_table(_folder(own) / "predictions.csv", classes=len(own.manifest.classes), positive=positive)
    except MstlError:
        return None
    return table if len(table) == body["n"] else None


def _record(subject: Subject) -> dict[str, Any] | None:
    file = _folder(subject) / "metrics.json"
    try:
        body: dict[str, Any] = json.loads(file.read_text())
        check_evaluation(file, body)
    except (OSError, ValueError, MstlError):
        return None  # none, or a damaged one: it is made anew
    return body


def _folder(subject: Subject) -> Path:
    return evaluation_folder(
        subject.record.path,
        subject.split,
        source=subject.manifest.source,
        digest=subject.manifest.digest(),
        own=subject.same_as_run,
    )


def _judge(subject: Subject, table: Table, chosen: Operating, how: How, progress: Progress) -> dict[str, Any]:
    """Measure a split and write all its files, metrics.json last: where it is new, the others are."""
    from mstl.evaluation.plots import draw  # matplotlib takes a second that a refused evaluation need not wait for

    manifest, found = subject.manifest, table.predictions
    asked = Asked(
        classes=manifest.classes,
        positive=how.positive,
        threshold=chosen.threshold,
        temperature=chosen.temperature,
        resamples=how.resamples,
        seed=how.seed,
    )
    measured = measure(table, asked, progress=progress)
    same_images = subject.split in (chosen.split, ALL) and manifest.digest() == chosen.shards_digest
    about = {"split": chosen.split, "n": chosen.n, "same_images": same_images}
    parts = dict(measured.body)
    parts["operating"] = {
        "rule": chosen.rule,
        "threshold": chosen.threshold,
        "origin": chosen.origin,
        "why": chosen.why,
        **about,
        **parts.get("operating", {}),
    }
    parts["calibration"] = {
        "temperature": chosen.temperature,
        "why": chosen.temperature_why,
        **about,
        **parts.get("calibration", {}),
    }
    body: dict[str, Any] = {
        "schema": SCHEMA_VERSION,
        "split": subject.split,
        "n": len(found),
        "classes": list(manifest.classes),
        "class_counts": np.bincount(found.labels, minlength=len(manifest.classes)).tolist(),
        "positive": None if how.positive is None else manifest.classes[how.positive],
        **parts,
        "shards": {
            "path": subject.origin,
            "digest": manifest.digest(),
            "source": manifest.source,
            "same_as_run": subject.same_as_run,
        },
        "weights_sha256": how.weights_sha256,
        "image_size": subject.record.image_size,
        "device": torch.cuda.get_device_name() if subject.device.type == "cuda" else "cpu",
        "date": now(),
        "software": software(),
    }
    out = _folder(subject)
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "predictions.csv", write_table(table, how.positive).encode())
    for name, png in draw(table, body, measured.roc).items():
        if png is None:
            (out / name).unlink(missing_ok=True)  # one of an earlier evaluation would pass for this one's
        else:
            write_atomic(out / name, png)
    write_atomic(out / "metrics.json", (json.dumps(body, indent=1, allow_nan=False) + "\n").encode())
    return body


def _finite(value: float | None) -> float | None:
    return value if value is not None and np.isfinite(value) else None
