"""A classifier's probabilities for a split: computed, gathered from all ranks, written as a table and read back."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed, nn

from pipelines.batch import Batch
from shards.errors import MstlError
from shards.progress import QUIET, Progress
from shards.read import read_records

POSITIVE_NAMES = ("covid", "covid-19")
COLUMNS = ("sample_id", "key", "patient", "label")


@dataclass(frozen=True, kw_only=True, slots=True)
class Predictions:
    """sample_ids [N] int64, ascending and each once; labels [N] int64; probabilities [N, C] float32, rows sum to 1."""

    sample_ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    probabilities: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.sample_ids)


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """Predictions of a split with what the shard set knows of each image: its key, and its patient or None."""

    predictions: Predictions
    keys: tuple[str, ...]
    patients: tuple[str | None, ...]

    def __len__(self) -> int:
        return len(self.keys)


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


def check_numbers(probabilities: NDArray[np.floating], who: str) -> None:
    """Raise MstlError unless all are finite; a network whose training diverged gives nan for every image."""
    if not np.isfinite(probabilities).all():
        raise MstlError(
            who, why="its network answers with what is no number", remedy="Train it again, with a smaller optim.lr"
        )


def positive_class(classes: Sequence[str], name: str | None = None) -> int | None:
    """Which of two classes counts as positive: the one named COVID or COVID-19, else the last; None unless binary.

    name: the user's choice instead. Raises MstlError when it is none of two classes.
    """
    if name is not None:
        if len(classes) != 2:
            raise MstlError(
                f"positive class {name!r}",
                why=f"there are {len(classes)} classes, and one is positive only among two",
                remedy="Leave --positive out: metrics.json has each class against the rest under per_class",
            )
        if name not in classes:
            raise MstlError(
                f"positive class {name!r}", why="there is no such class", remedy=f"Name {' or '.join(classes)}"
            )
        return list(classes).index(name)
    if len(classes) != 2:
        return None
    named = [index for index, each in enumerate(classes) if each.lower() in POSITIVE_NAMES]
    return named[0] if named else 1


def with_records(predictions: Predictions, shards: Path, split: str) -> Table:
    """Predictions beside the keys and patients of their samples in a shard set's folder."""
    records = {record.sample_id: record for record in read_records(shards, split)}
    mine = [records[sample_id] for sample_id in predictions.sample_ids.tolist()]
    return Table(
        predictions=predictions,
        keys=tuple(record.key for record in mine),
        patients=tuple(record.patient for record in mine),
    )


def write_table(table: Table, positive: int | None) -> str:
    """The text of predictions.csv: sample_id, key, patient, label (its index) and one probability.

    The probability is that of the positive class; with more than two classes there is one column per class,
    `probability_0` and on, in the order of the shard set's classes.
    """
    found = table.predictions
    names = _columns(found.probabilities.shape[1], positive)
    columns = range(len(names)) if positive is None else [positive]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*COLUMNS, *names])
    for sample_id, key, patient, label, row in zip(
        found.sample_ids.tolist(), table.keys, table.patients, found.labels.tolist(), found.probabilities, strict=True
    ):
        writer.writerow([sample_id, key, patient or "", label, *(repr(float(row[c])) for c in columns)])
    return text.getvalue()


def read_table(file: Path, *, classes: int, positive: int | None) -> Table:
    """A predictions.csv of so many classes, written with that positive class; raises MstlError when it is damaged."""
    names = _columns(classes, positive)
    try:
        with file.open(newline="") as text:
            rows = list(csv.DictReader(text, strict=True))
        ids = np.array([int(row["sample_id"]) for row in rows], dtype=np.int64)
        labels = np.array([int(row["label"]) for row in rows], dtype=np.int64)
        shares = np.array([[float(row[name]) for name in names] for row in rows], dtype=np.float32)
        if not rows:
            raise ValueError("no rows")
        if (np.diff(ids) <= 0).any():
            raise ValueError("sample ids that do not ascend")
        if not ((labels >= 0) & (labels < classes)).all() or not ((shares >= 0) & (shares <= 1)).all():
            raise ValueError("a label of no class, or a probability outside 0 to 1")
        keys, patients = [row["key"] for row in rows], [row["patient"] or None for row in rows]
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise MstlError(str(file), why=f"it cannot be read ({error!r})", remedy="Evaluate the run again") from error
    if positive is not None:
        shares = np.hstack([1 - shares, shares] if positive == 1 else [shares, 1 - shares])
    return Table(
        predictions=Predictions(sample_ids=ids, labels=labels, probabilities=shares),
        keys=tuple(keys),
        patients=tuple(patients),
    )


def _columns(classes: int, positive: int | None) -> list[str]:
    return [f"probability_{c}" for c in range(classes)] if positive is None else ["probability"]


def _each_once(sample_ids: NDArray[Any], labels: NDArray[Any], probabilities: NDArray[Any]) -> Predictions:
    """Sorted by sample id, the first of each id kept."""
    ids, first = np.unique(sample_ids, return_index=True)
    return Predictions(sample_ids=ids, labels=labels[first], probabilities=probabilities[first])
