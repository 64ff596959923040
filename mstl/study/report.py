"""One HTML file that shows what runs did: chain, test results, curves, heatmaps, recipes and provenance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mstl.runs import now
from mstl.study.checks import check_output
from mstl.study.figures import Curve, loss_figure, roc_figure
from mstl.study.provenance import grouped, recipe_rows
from mstl.study.records import RunFacts, read_runs, transfer_gains
from mstl.study.render import Picture, read_png, render
from shards.errors import MstlError
from shards.files import write_atomic

SPLIT = "test"
JUDGED_STAGES = ("finetune", "linear_probe")
SMALL_TEST_SET = 1000  # images; below it the report says how far chance reaches (ours)
METRICS = {
    "accuracy": "Accuracy",
    "f1": "F1",
    "macro_f1": "Macro F1",
    "auc": "AUC",
    "macro_auc": "Macro AUC",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "top5_accuracy": "Top-5 accuracy",
}
VALIDATION_METRICS = {**METRICS, "contrast_accuracy": "Contrast accuracy", "region_accuracy": "Region accuracy"}


def write_report(out: Path, *, title: str, runs: Sequence[Path], images: Mapping[str, Path] | None = None) -> None:
    """Write the report on the runs, in their order, as one HTML file that needs nothing beside it.

    images: caption → PNG (heatmap grids). All numbers come from the runs' files; what a run has not written stays
    an empty cell. Raises MstlError for a folder that is no run, for no run at all, for a missing or broken file, and
    when `out` cannot be written.
    """
    if not runs:
        raise MstlError("report", why="no run was named", remedy="Name run folders: mstl report RUN... --out FILE")
    check_output(out)
    facts = read_runs(runs)
    judged = [run for run in facts if run.record.stage in JUDGED_STAGES]
    page = render(
        "report.html.jinja",
        title=title,
        made=now(),
        synthetic=_synthetic_note(facts),
        chain=[_chain_row(run) for run in facts],
        results=_results(judged),
        roc=_roc_pictures(judged),
        losses=_loss_picture(facts),
        heatmaps=[
            Picture(png=read_png(path), caption=name, alt=f"heatmaps: {name}", width=820)
            for name, path in (images or {}).items()
        ],
        recipes=[_recipe(run) for run in facts],
        runs=facts,
        software=grouped((run.name, run.record.body["software"]) for run in facts),
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, page.encode())


def _chain_row(run: RunFacts) -> dict[str, Any]:
    losses = run.epoch_losses
    validation = run.validation or {}
    return {
        "run": run,
        "first_loss": losses[0] if losses else None,
        "last_loss": losses[-1] if losses else None,
        "steps": run.steps[-1]["step"] if run.steps else None,
        "validation": {
            shown: validation[name] for name, shown in VALIDATION_METRICS.items() if validation.get(name) is not None
        },
        "validation_epoch": validation["epoch"] + 1 if validation else None,
    }


def _results(judged: Sequence[RunFacts]) -> dict[str, Any] | None:
    """The test table: None when no judged run was given."""
    if not judged:
        return None
    evaluations = {id(run): run.evaluations.get(SPLIT, {}) for run in judged}
    found = [evaluation for evaluation in evaluations.values() if evaluation]
    names = [name for name in METRICS if any(name in evaluation["metrics"] for evaluation in found)]
    names = names or ["accuracy", "f1", "auc", "sensitivity", "specificity"]
    return {
        "metrics": {name: METRICS[name] for name in names},
        "rows": [{"run": run, "evaluation": evaluations[id(run)]} for run in judged],
        "gains": transfer_gains(judged, SPLIT),
        "positive": sorted({str(evaluation["positive"]) for evaluation in found if evaluation["positive"]}),
        "notes": _result_notes(found),
    }


def _result_notes(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a reader must know before comparing the rows."""
    notes = []
    small = [e for e in found if e["n"] < SMALL_TEST_SET and e["metrics"].get("accuracy") is not None]
    if small:
        n = min(evaluation["n"] for evaluation in small)
        reach = 100 * max(_chance_reach(e["metrics"]["accuracy"], e["n"]) for e in small)
        notes.append(
            f"Small test set: with n = {n} one image is {100 / n:.1f} points of accuracy, and an accuracy is certain "
            f"to about ±{reach:.0f} points only (95 %, Wilson). Differences of that size can be chance."
        )
    if len({(e["shards"]["digest"], e["n"]) for e in found}) > 1:
        notes.append("The rows were not measured on the same images (shard sets differ): do not compare them.")
    if any(not evaluation["shards"]["same_as_run"] for evaluation in found):
        notes.append("At least one row was measured on another shard set than its run was trained with.")
    return notes


def _chance_reach(accuracy: float, n: int) -> float:
    """Half the width of Wilson's 95 % interval of a proportion: unlike the normal one it is not 0 at 0 or 1."""
    z = 1.96
    return z / (1 + z * z / n) * math.sqrt(accuracy * (1 - accuracy) / n + z * z / (4 * n * n))


def _roc_pictures(judged: Sequence[RunFacts]) -> list[Picture]:
    """All ROC curves in one figure, then each run's confusion matrix as its evaluation drew it."""
    curves = []
    for run in judged:
        curve = run.roc(SPLIT)
        if curve is not None:
            auc = run.evaluations[SPLIT]["metrics"].get("auc")
            curves.append(replace(curve, name=f"{curve.name}: {'' if auc is None else f'AUC {auc:.3f}'}"))
    if not curves:
        return []
    png = roc_figure(curves, title=f"ROC, {SPLIT} split")
    pictures = [Picture(png=png, caption="ROC curves of the runs above", alt="ROC curves", width=400)]
    for run in judged:
        file = run.record.path / "evaluation" / SPLIT / "confusion.png"
        if file.is_file():
            alt = f"confusion matrix of {run.name}"
            pictures.append(Picture(png=read_png(file), caption=run.name, alt=alt, width=310))
    return pictures


def _loss_picture(facts: Sequence[RunFacts]) -> Picture | None:
    curves = [
        Curve(
            name=f"{run.name} ({run.record.title})" if run.name != run.record.title else run.name,
            x=np.array([entry["step"] for entry in run.steps], dtype=np.float64),
            y=np.array([entry["loss"] for entry in run.steps], dtype=np.float64),
        )
        for run in facts
        if run.steps
    ]
    if not curves:
        return None
    caption = (
        "Training loss, as logged (faint) and averaged over the last twentieth of the steps (bold). Scales differ."
    )
    width = 1060 if len(curves) > 3 else 280 * len(curves)
    return Picture(png=loss_figure(curves), caption=caption, alt="training loss of each run", width=width)


def _recipe(run: RunFacts) -> dict[str, Any]:
    note = f"{run.record.title}, flavour {run.record.body['flavour']}"
    return {"name": run.name, "note": note, "rows": recipe_rows(run.record)}


def _synthetic_note(facts: Sequence[RunFacts]) -> str:
    names = [run.name for run in facts if run.synthetic]
    if not names:
        return ""
    whose = "All runs" if len(names) == len(facts) else ", ".join(names)
    return (
        f"{whose} used synthetic sample images drawn by the program. The numbers show that the software works; "
        "they say nothing about patients."
    )
