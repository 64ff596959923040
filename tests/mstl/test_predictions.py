"""Predictions: from a loader, gathered from ranks, and the table they are written to and read from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from gather_ranks import gather_on
from tiny_runs import make_shards
from torch import multiprocessing, nn

from mstl.evaluation.predictions import (
    Predictions,
    Table,
    gather_predictions,
    positive_class,
    predict,
    read_table,
    with_records,
    write_table,
)
from pipelines.batch import Batch
from shards.errors import MstlError
from shards.read import read_records


class Logits(nn.Module):
    """Logits that depend on the image alone, through a dropout that would disturb them in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.9)
        self.frozen = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        value = self.dropout(x[:, 0, 0, 0])
        return torch.stack([torch.zeros_like(value), value], 1)


class Batches:
    """A loader of given (sample id, label, value) triples, two at a time."""

    def __init__(self, samples: list[tuple[int, int, float]]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return (len(self.samples) + 1) // 2

    def __iter__(self) -> Iterator[Batch]:
        for i in range(0, len(self.samples), 2):
            ids, labels, values = zip(*self.samples[i : i + 2], strict=True)
            x = torch.tensor(values, dtype=torch.float32)[:, None, None, None].expand(-1, 3, 4, 4)
            yield Batch(views={"x": x}, labels=torch.tensor(labels), sample_ids=torch.tensor(ids))


def test_predict_sorts_counts_repeats_once_and_restores_the_mode() -> None:
    model = Logits().train()
    model.frozen.eval()
    found = predict(model, Batches([(7, 1, 2.0), (3, 0, -1.0), (5, 1, 0.0), (7, 1, 2.0)]), "cpu")
    assert model.training and model.dropout.training and not model.frozen.training
    assert found.sample_ids.tolist() == [3, 5, 7]
    assert found.labels.tolist() == [0, 1, 1]
    expected = 1 / (1 + np.exp(-np.array([-1.0, 0.0, 2.0])))
    np.testing.assert_allclose(found.probabilities[:, 1], expected, rtol=1e-6)
    np.testing.assert_allclose(found.probabilities.sum(1), 1, rtol=1e-6)
    assert found.probabilities.dtype == np.float32


def test_the_positive_class_is_the_covid_one_else_the_last() -> None:
    assert positive_class(("NonCOVID", "COVID")) == 1
    assert positive_class(("COVID-19", "normal")) == 0
    assert positive_class(("ill", "well")) == 1
    assert positive_class(("normal", "pneumonia", "COVID-19")) is None
    assert positive_class(("NonCOVID", "COVID"), "NonCOVID") == 0
    with pytest.raises(MstlError, match=r"no such class\. Name NonCOVID or COVID"):
        positive_class(("NonCOVID", "COVID"), "covid")
    with pytest.raises(MstlError, match="there are 3 classes"):
        positive_class(("normal", "pneumonia", "COVID-19"), "COVID-19")


def test_without_a_process_group_gathering_changes_nothing() -> None:
    mine = Predictions(sample_ids=np.array([1]), labels=np.array([0]), probabilities=np.array([[1, 0]], np.float32))
    assert gather_predictions(mine) is mine


def test_two_ranks_end_with_the_same_whole(tmp_path: Path) -> None:
    multiprocessing.spawn(gather_on, args=(str(tmp_path),), nprocs=2)
    for rank in range(2):
        found = np.load(tmp_path / f"rank{rank}.npz")
        assert found["ids"].tolist() == [0, 2, 3, 4]
        assert found["labels"].tolist() == [0, 0, 1, 0]
        np.testing.assert_allclose(found["p"][:, 1], [0, 0.2, 0.3, 0.4], rtol=1e-6)


def test_the_probability_written_is_that_of_the_positive_class(tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    make_shards(shards, per_class=1)
    record = read_records(shards, "test")[0]
    one = with_records(
        Predictions(
            sample_ids=np.array([record.sample_id]),
            labels=np.array([record.label]),
            probabilities=np.array([[0.25, 0.75]], np.float32),
        ),
        shards,
        "test",
    )
    assert (one.keys, one.patients) == ((record.key,), (record.patient,))
    assert write_table(one, 0).splitlines()[1].endswith(",0.25")
    assert write_table(one, 1).splitlines()[1].endswith(",0.75")


@pytest.mark.parametrize(("classes", "positive"), [(2, 0), (2, 1), (3, None)])
def test_a_table_comes_back_as_it_was_written(tmp_path: Path, classes: int, positive: int | None) -> None:
    shares = np.random.default_rng(0).dirichlet(np.ones(classes), 5).astype(np.float32)
    if positive is not None:
        shares[:, 1 - positive] = 1 - shares[:, positive]
    found = Predictions(sample_ids=np.arange(5) * 2, labels=np.arange(5) % classes, probabilities=shares)
    table = Table(predictions=found, keys=("a,b", "c", "d", "e", 'f"g'), patients=("p", None, "p", "1", None))
    file = tmp_path / "predictions.csv"
    file.write_text(write_table(table, positive))
    back = read_table(file, classes=classes, positive=positive)
    assert (back.keys, back.patients) == (table.keys, table.patients)
    assert back.predictions.probabilities.dtype == np.float32
    for name in ("sample_ids", "labels", "probabilities"):
        assert getattr(back.predictions, name).tolist() == getattr(found, name).tolist()
    for damaged in (file.read_text().replace("\n4,", "\n1,"), "sample_id,key\n", file.read_text() + "9,k,,7,0.5\n"):
        file.write_text(damaged)
        with pytest.raises(MstlError, match=r"predictions\.csv: it cannot be read"):
            read_table(file, classes=classes, positive=positive)
