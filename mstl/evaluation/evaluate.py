"""Run a classifier over a split and write what it is worth into the run folder."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed, nn

from mstl.evaluation.metrics import as_json, classification_metrics, confusion_counts, roc_curve
from mstl.evaluation.subject import open_subject
from mstl.runs import now, software
from pipelines.batch import Batch
from shards.cache import CacheOptions
from shards.files import sha256_file, write_atomic
from shards.progress import QUIET, Progress
from shards.read import read_records

SCHEMA_VERSION = 1
POSITIVE_NAMES = ("covid", "covid-19")


@dataclass(frozen=True, kw_only=True, slots=True)
class Predictions:
    """sample_ids [N] int64, ascending and each once; labels [N] int64; probabilities [N, C] float32, rows sum to 1."""

    sample_ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    probabilities: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.sample_ids)


class Batches(Protocol):
    """What `predict` needs of a loader."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Batch]: ...


def predict(
    classifier: nn.Module, loader: Batches, device: torch.device | str, *, progress: Progress = QUIET
) -> Predictions:
    """Class probabilities of one epoch of the loader's view `x`, on this rank.

    The classifier is put in evaluation mode, and every module back into the mode it came in. Samples that the loader
    repeats to fill a batch count once. Softmax in float32.
    """
    modes = [(module, module.training) for module in classifier.modules()]
    classifier.eval()
    parts: list[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]] = []
    progress.start(len(loader), "predict")
    try:
        with torch.inference_mode():
            for batch in loader:
                logits = classifier(batch.views["x"].to(device))
                probabilities = logits.float().softmax(1).cpu().numpy()
                parts.append((batch.sample_ids.cpu().numpy(), batch.labels.cpu().numpy(), probabilities))
                progress.advance()
    finally:
        for module, training in modes:
            module.training = training
    if not parts:
        raise ValueError("the loader gave no batch")
    return _each_once(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def gather_predictions(predictions: Predictions) -> Predictions:
    """The predictions of all ranks together, on every rank; without torch.distributed, the same predictions."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return predictions
    ranks: list[Predictions] = [predictions] * distributed.get_world_size()
    distributed.all_gather_object(ranks, predictions)
    return _each_once(
        np.concatenate([r.sample_ids for r in ranks]),
        np.concatenate([r.labels for r in ranks]),
        np.concatenate([r.probabilities for r in ranks]),
    )


def positive_class(classes: Sequence[str]) -> int | None:
    """Which of two classes counts as positive: the one named COVID or COVID-19, else the last; None unless binary."""
    if len(classes) != 2:
        return None
    named = [index for index, name in enumerate(classes) if name.lower() in POSITIVE_NAMES]
    return named[0] if named else 1


def evaluate_run(
    run: Path,
    *,
    split: str,
    shards: str | Path | None = None,
    batch: int = 64,
    cache: CacheOptions = CacheOptions(),  # noqa: B008 - frozen
    progress: Progress = QUIET,
) -> dict[str, Any]:
    """Evaluate a run on a split and write RUN/evaluation/SPLIT/; returns what metrics.json holds.

    Files: metrics.json, predictions.csv, confusion.png and, for two classes that both occur, roc.png. Raises MstlError
    as `open_subject` does.
    """
    out = run / "evaluation" / split
    subject = open_subject(run, split=split, shards=shards, out=out / "metrics.json", cache=cache, progress=progress)
    manifest, folder = subject.manifest, subject.folder.resolve()
    loader = subject.loader(batch)
    try:
        predictions = predict(subject.classifier, loader, subject.device, progress=progress)
    finally:
        loader.close()
    positive = positive_class(manifest.classes)
    metrics = classification_metrics(predictions.probabilities, predictions.labels, positive=positive)
    counts = np.bincount(predictions.labels, minlength=len(manifest.classes))
    body: dict[str, Any] = {
        "schema": SCHEMA_VERSION,
        "split": split,
        "n": len(predictions),
        "classes": list(manifest.classes),
        "class_counts": counts.tolist(),
        "positive": None if positive is None else manifest.classes[positive],
        "metrics": as_json(metrics),
        "shards": {
            "path": subject.origin,
            "digest": manifest.digest(),
            "source": manifest.source,
            "same_as_run": subject.same_as_run,
        },
        "weights_sha256": sha256_file(subject.record.weights),
        "image_size": subject.record.image_size,
        "device": torch.cuda.get_device_name() if subject.device.type == "cuda" else "cpu",
        "date": now(),
        "software": {**software(), "torchmetrics": version("torchmetrics")},
    }
    _write(out, body, predictions, folder, positive)
    return body


def _write(out: Path, body: dict[str, Any], predictions: Predictions, shards: Path, positive: int | None) -> None:
    """All files of one evaluation, metrics.json last: where it is new, the others are."""
    from mstl.study.figures import Curve, confusion_figure, roc_figure  # training imports this module and draws nothing

    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "predictions.csv", predictions_csv(predictions, shards, body["split"], positive).encode())
    title = f"{body['split']} split, n = {body['n']}"
    counts = confusion_counts(predictions.probabilities, predictions.labels)
    write_atomic(out / "confusion.png", confusion_figure(counts, body["classes"], title=title))
    roc = out / "roc.png"
    if positive is not None and body["metrics"]["auc"] is not None:
        fpr, tpr = roc_curve(predictions.probabilities[:, positive], predictions.labels == positive)
        name = f"{body['positive']} (AUC {body['metrics']['auc']:.3f})"
        write_atomic(roc, roc_figure([Curve(name=name, x=fpr, y=tpr)], title=title))
    else:
        roc.unlink(missing_ok=True)  # one of an earlier evaluation would pass for this one's
    write_atomic(out / "metrics.json", (json.dumps(body, indent=1, allow_nan=False) + "\n").encode())


def predictions_csv(predictions: Predictions, shards: Path, split: str, positive: int | None) -> str:
    """The text of predictions.csv: sample_id, key, patient, label (its index) and one probability.

    The probability is that of the positive class; with more than two classes there is one column per class,
    `probability_0` and on, in the order of the shard set's classes.
    """
    records = {record.sample_id: record for record in read_records(shards, split)}
    classes = predictions.probabilities.shape[1]
    columns = range(classes) if positive is None else [positive]
    names = [f"probability_{c}" for c in columns] if positive is None else ["probability"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["sample_id", "key", "patient", "label", *names])
    for sample_id, label, row in zip(
        predictions.sample_ids.tolist(), predictions.labels.tolist(), predictions.probabilities, strict=True
    ):
        record = records[sample_id]
        writer.writerow([sample_id, record.key, record.patient or "", label, *(repr(float(row[c])) for c in columns)])
    return text.getvalue()


def _each_once(sample_ids: NDArray[Any], labels: NDArray[Any], probabilities: NDArray[Any]) -> Predictions:
    """Sorted by sample id, the first of each id kept."""
    ids, first = np.unique(sample_ids, return_index=True)
    return Predictions(sample_ids=ids, labels=labels[first], probabilities=probabilities[first])
