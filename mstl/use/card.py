"""The model card of a run, RUN/model_card.md: on what it was trained, what it is worth, and what it is not for.

Every number is read from the run's own files; what was never measured is said to be so.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from mstl.evaluation.operating import Operating, read_operating
from mstl.evaluation.predictions import positive_class
from mstl.runs import now
from mstl.study.records import RunFacts, read_runs
from mstl.study.render import STAGE_NAMES
from mstl.use.card_data import Counted, counted
from mstl.use.card_parts import chain, leakage, limits, origin, recipe, results
from mstl.use.network import operating_text
from shards.files import sha256_file, write_atomic
from shards.schema import Manifest

CARD_NAME = "model_card.md"


def write_card(run: Path, *, shards: Path | None = None, manifest: Manifest | None = None) -> Path:
    """Write RUN/model_card.md from the run's record, log and evaluations; returns its path.

    shards, manifest: the set that the run was trained with, where it is at hand, to count images and patients.
    Raises MstlError for a damaged record, log or evaluation.
    """
    (facts,) = read_runs([run])
    data = None
    if shards is not None and manifest is not None and manifest.digest() == facts.record.shards_digest:
        data = counted(shards, manifest)
    file = run / CARD_NAME
    write_atomic(file, render(facts, data).encode())
    return file


def leave_card(run: Path, *, shards: Path | None, manifest: Manifest | None) -> str | None:
    """Write the card as the last thing after a training or evaluation, of which it must lose nothing.

    Returns why there is none, None when there is one.
    """
    try:
        write_card(run, shards=shards, manifest=manifest)
    except Exception as error:  # noqa: BLE001 - whatever is wrong with the card, the work before it is done
        return f"no model card was written for {run} ({type(error).__name__}: {error})"
    return None


def render(run: RunFacts, data: Counted | None) -> str:
    """The text of the card."""
    record = run.record
    weights = sha256_file(record.weights) if record.weights.is_file() else None
    operating = _operating(run)
    positive = positive_class(record.classes, None if operating is None else operating.positive)
    measured = results(run, weights)
    validation = run.validation or {}
    scores = {name: value for name, value in validation.items() if name in _SCORES and value is not None}
    environment = Environment(
        loader=PackageLoader("mstl.use", "."), autoescape=False, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters.update(cell=_cell, given=_given, duration=_duration)
    return environment.get_template("card.md.jinja").render(
        run=run,
        record=record.body,
        classes=record.classes,
        positive=None if positive is None else record.classes[positive],
        stage_title=STAGE_NAMES.get(record.stage, (record.stage, ""))[0],
        inputs=record.evaluation_inputs,
        weights_name=record.weights.name,
        weights_sha256=weights,
        data=data,
        leakage=leakage(record.body.get("leakage")),
        chain=chain(run),
        origin=origin(record.body),
        recipe=recipe(run),
        validation={
            "epoch": validation["epoch"] + 1,
            "text": ", ".join(f"{name} {value:.3f}" for name, value in scores.items()),
        }
        if scores
        else None,
        results=measured,
        operating=operating_text(operating, classes=len(record.classes), run="RUN"),
        calibration=_calibration_text(operating),
        limits=limits(run, data, measured),
        written=now(),
    )


_SCORES = ("accuracy", "f1", "macro_f1", "auc", "macro_auc", "sensitivity", "specificity")


def _operating(run: RunFacts) -> Operating | None:
    return read_operating(run.record.path) if run.record.weights.is_file() else None


def _calibration_text(chosen: Operating | None) -> str:
    if chosen is None:
        return "The probabilities were not calibrated."
    if chosen.temperature is None:
        return f"The probabilities were not calibrated: {chosen.temperature_why}."
    return (
        f"Calibrated probabilities are those at a temperature of {chosen.temperature:.3f}, fitted on the same images."
    )


def _cell(value: object) -> str:
    """A value as it may stand in a cell of a Markdown table."""
    text = "" if value is None else str(value)
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")


def _given(value: int | None) -> str:
    return "not counted" if value is None else str(value)


def _duration(seconds: float) -> str:
    return f"{timedelta(seconds=round(seconds))} h"
