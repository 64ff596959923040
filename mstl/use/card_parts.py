"""The parts of a model card, read from a run's record and evaluations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mstl.evaluation.intervals import described
from mstl.recipes.rules import IDLE
from mstl.runs import RunRecord
from mstl.stage_specs import STAGES
from mstl.study.records import LONGEST_CHAIN, RunFacts
from mstl.use.card_data import Counted

SMALL = 1000  # images; a set with fewer is said to be small (ours)
NAMES = {
    "accuracy": "accuracy", "f1": "F1", "macro_f1": "macro F1", "auc": "AUC", "macro_auc": "macro AUC",
    "sensitivity": "sensitivity", "specificity": "specificity", "precision": "precision",
    "average_precision": "average precision", "brier": "Brier score (less is better)",
    "ece": "calibration error, ECE (less is better)", "top5_accuracy": "top-5 accuracy",
}  # fmt: skip


def chain(run: RunFacts) -> list[dict[str, str]]:
    """The stages that led to the run, first to last, with the data of each and what the paper has there instead."""
    rows = [_link(run.record)]
    facts, parent = run.record, run.parent
    while parent is not None and len(rows) < LONGEST_CHAIN:
        if parent.run is None:
            rows.append(
                {"stage": parent.title, "model": "", "source": "", "instead": "", "digest": f"`{parent.digest}`"}
            )
            break
        facts = parent.run
        rows.append({**_link(facts), "digest": f"`{parent.digest}`" + (" (others lie there now)" * parent.changed)})
        parent = RunFacts(name="", record=facts, log=(), evaluations={}).parent
    return rows[::-1]


def _link(record: RunRecord) -> dict[str, str]:
    source = str(record.body["shards"]["source"])
    spec = STAGES.get(record.stage)
    expected = "" if spec is None or source == spec.source else f"{spec.source}: substituted"
    return {"stage": record.title, "model": record.model, "source": source, "instead": expected, "digest": "this run"}


def origin(body: Mapping[str, Any]) -> str:
    """Where the first weights came from."""
    carry = body.get("carry")
    if body.get("parent") is None or carry is None:
        return "It began with random weights: no stage stands behind it."
    new = f", {len(carry['new'])} are new" if carry["new"] else ""
    return f"{carry['carried']} tensors were carried over from the weights before it{new}."


def recipe(run: RunFacts) -> list[dict[str, Any]]:
    """The fields in which what was used, our reading and what the paper prints are not all one."""
    body = run.record.body
    printed, resolved, reasons = body.get("printed", {}), body.get("resolved", {}), body.get("reasons", {})
    rows = []
    for section, fields in run.record.recipe.items():
        for field, used in fields.items():
            name = f"{section}.{field}"
            if name in IDLE.get(run.record.title, ()):
                continue
            ours, paper = resolved.get(name, used), printed.get(name)
            if used != ours or paper is not None:
                why = "; ".join(filter(None, (reasons.get(name), None if paper is None else paper["why"])))
                rows.append(
                    {
                        "field": name,
                        "used": used,
                        "resolved": ours,
                        "printed": None if paper is None else paper["value"],
                        "why": why,
                    }
                )
    return rows


def leakage(record: Mapping[str, Any] | None) -> dict[str, Any]:
    """The verdict that training was started with, in words."""
    if not record:
        return {"state": "not looked for", "lines": []}
    lines = [f"{verdict['name']}: {verdict['text']}" for verdict in record.get("verdicts", ())]
    lines += [f"waived by name: {waived['name']}" for waived in record.get("waived", ())]
    lines += [f"never compared: {missing}" for missing in record.get("missing", ())]
    lines += [
        f"{seen} learned from the val and test images too, without their labels"
        for seen in record.get("transductive", ())
    ]
    return {"state": record["state"], "lines": lines}


def results(run: RunFacts, weights_sha256: str | None) -> list[dict[str, Any]]:
    """Each split that was evaluated with the weights there are now."""
    return [
        _result(split, body)
        for split, body in sorted(run.evaluations.items())
        if weights_sha256 is not None and body.get("weights_sha256") == weights_sha256
    ]


def _result(split: str, body: Mapping[str, Any]) -> dict[str, Any]:
    operating = body.get("operating", {})
    there = operating.get("metrics", {}) if operating.get("origin") == "val" else {}
    names = list(dict.fromkeys([*body["metrics"], *there]))
    rows = [
        {
            "name": NAMES.get(name, name),
            "value": _number(body["metrics"].get(name)),
            "span": _span(body.get("intervals", {}).get(name)),
            "at": _number(there[name]) if name in there else "",
            "at_span": _span(operating.get("intervals", {}).get(name)) if name in there else "",
        }
        for name in names
    ]
    drawn = body.get("bootstrap")
    method = f"{described(drawn)}." if drawn else "No intervals were measured."
    counts = zip(body["classes"], body.get("class_counts", ()), strict=False)
    notes = []
    if operating.get("same_images"):
        notes.append("The operating point was chosen on these very images: what it gives here is optimistic.")
    if split == "train":
        notes.append("The network learned from these very images.")
    if split == "val":
        notes.append("The weights may have been chosen by these images too (checkpoint.select).")
    return {
        "split": split,
        "n": body["n"],
        "counts": ", ".join(f"{name} {count}" for name, count in counts),
        "same_as_run": body["shards"]["same_as_run"],
        "source": body["shards"].get("source", ""),
        "digest": body["shards"]["digest"],
        "rows": rows,
        "operating": bool(there),
        "method": method,
        "notes": notes,
    }


def limits(run: RunFacts, data: Counted | None, measured: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the network must not be taken for."""
    record = run.record
    source = record.body["shards"]["source"]
    found = [
        "Not for diagnosis, triage, screening or treatment of anybody: nothing in this card shows that it is fit for "
        "that, and it has no approval as a medical device.",
        f"It knows images like those of {source} alone. Of other scanners, protocols, hospitals, ages, diseases and "
        "times nothing is known here unless a result above was measured on them; of children in particular nothing.",
        "It names one of its classes for any image whatever, also for one that shows no chest.",
    ]
    tests = [result for result in measured if result["split"] == "test"]
    if not tests:
        found.append(
            "There is no result on a test split: nothing above says how it does on images it was not chosen by."
        )
    if measured and all(result["same_as_run"] for result in measured):
        found.append("Everything was measured on the data set it was trained with; elsewhere results are often worse.")
    for result in measured:
        if result["n"] < SMALL:
            points = 100 / result["n"]
            found.append(
                f"The {result['split']} split is small: one of its {result['n']} images is {points:.1f} points of "
                "accuracy, and the intervals above tell how much is chance."
            )
    train = next((row for row in data.splits if row.split == "train"), None) if data is not None else None
    if train is not None and train.images < SMALL:
        found.append(f"It was trained on {train.images} images, which is few.")
    if train is not None and train.unknown:
        found.append(
            f"Of {train.unknown} training images the patient is unknown, so that the same patient may stand on both "
            "sides of a split."
        )
    state = (record.body.get("leakage") or {}).get("state", "never checked")
    if state not in ("checked", "nothing to compare"):
        found.append(
            f"Leakage was {state if state != 'never checked' else 'never looked for'}: results may be too good."
        )
    substituted = [f"{row['source']} for {row['instead'].partition(':')[0]}" for row in chain(run) if row["instead"]]
    if substituted:
        found.append(f"Not the paper's data: {', '.join(substituted)}. The paper's figures do not hold for it.")
    if record.body.get("parent") is None:
        found.append("It was not trained in the paper's stages but from random weights.")
    if data is not None and data.modality == "ct":
        found.append("CT windows matter: images shown through another window than those it learned from mislead it.")
    return found


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"


def _span(span: Mapping[str, Any] | None) -> str:
    if span is None or span["low"] is None:
        return "–"
    return f"{span['low']:.3f} to {span['high']:.3f}"
