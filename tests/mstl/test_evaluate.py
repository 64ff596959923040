"""Evaluation of runs: predictions from a loader, the files written, and what is refused."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from tiny_runs import CT_CLASSES, SIDE, make_run, make_shards
from torch import multiprocessing, nn

from mstl.cli.evaluate import command
from mstl.evaluation.evaluate import (
    Predictions,
    evaluate_run,
    gather_predictions,
    positive_class,
    predict,
    predictions_csv,
)
from mstl.evaluation.explain import explain_run
from mstl.runs import load_classifier, open_run
from pipelines.batch import Batch
from shards.errors import MstlError
from shards.read import read_image, read_records
from shards.schema import Manifest, load_manifest


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate") / "shards"
    make_shards(folder)
    return folder


@pytest.fixture
def manifest(shards: Path) -> Manifest:
    return load_manifest(shards)


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


def test_without_a_process_group_gathering_changes_nothing() -> None:
    mine = Predictions(sample_ids=np.array([1]), labels=np.array([0]), probabilities=np.array([[1, 0]], np.float32))
    assert gather_predictions(mine) is mine


def _gather_on(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    ids = np.array([[2, 4], [0, 2, 3]][rank], dtype=object).astype(np.int64)
    both = np.stack([1 - ids / 10, ids / 10], 1).astype(np.float32)
    found = gather_predictions(Predictions(sample_ids=ids, labels=ids % 2, probabilities=both))
    np.savez(f"{folder}/rank{rank}.npz", ids=found.sample_ids, labels=found.labels, p=found.probabilities)
    torch.distributed.destroy_process_group()


def test_two_ranks_end_with_the_same_whole(tmp_path: Path) -> None:
    multiprocessing.spawn(_gather_on, args=(str(tmp_path),), nprocs=2)
    for rank in range(2):
        found = np.load(tmp_path / f"rank{rank}.npz")
        assert found["ids"].tolist() == [0, 2, 3, 4]
        assert found["labels"].tolist() == [0, 0, 1, 0]
        np.testing.assert_allclose(found["p"][:, 1], [0, 0.2, 0.3, 0.4], rtol=1e-6)


def test_evaluating_a_run_writes_what_its_network_says(tmp_path: Path, shards: Path, manifest: Manifest) -> None:
    run = make_run(tmp_path / "run", shards, manifest)
    body = evaluate_run(run, split="test", batch=4)  # 10 images: the last batch is padded
    out = run / "evaluation" / "test"
    assert json.loads((out / "metrics.json").read_text()) == body
    assert (body["n"], body["class_counts"], body["positive"]) == (10, [5, 5], "COVID")
    assert body["classes"] == list(CT_CLASSES)
    assert body["shards"]["digest"] == manifest.digest() and body["shards"]["same_as_run"] is True
    assert torch.__version__.startswith(body["software"]["torch"].split("+")[0])
    assert list(body["metrics"]) == ["accuracy", "f1", "auc", "sensitivity", "specificity"]

    rows = list(csv.DictReader((out / "predictions.csv").open()))
    assert list(rows[0]) == ["sample_id", "key", "patient", "label", "probability"]
    records = read_records(shards, "test")
    assert [int(row["sample_id"]) for row in rows] == sorted(record.sample_id for record in records)
    by_id = {record.sample_id: record for record in records}
    classifier = load_classifier(open_run(run))
    for row in rows:
        record = by_id[int(row["sample_id"])]
        assert (row["key"], row["patient"], int(row["label"])) == (record.key, record.patient or "", record.label)
        with torch.inference_mode():
            expected = classifier(reference_input(shards, record.sample_id)).softmax(1)[0, 1].item()
        assert float(row["probability"]) == pytest.approx(expected, abs=2e-2)
    right = [(float(row["probability"]) > 0.5) == (row["label"] == "1") for row in rows]
    assert body["metrics"]["accuracy"] == pytest.approx(np.mean(right))
    for name in ("roc.png", "confusion.png"):
        assert min(Image.open(out / name).size) > 300
    assert {p.name for p in out.iterdir()} == {"metrics.json", "predictions.csv", "roc.png", "confusion.png"}


def reference_input(shards: Path, sample_id: int) -> torch.Tensor:
    """What evaluation feeds the network, by Pillow: resize to 8/7 of the side, centre crop, normalise."""
    import io

    image = Image.open(io.BytesIO(read_image(shards, sample_id))).convert("RGB")
    large = round(SIDE * 256 / 224)
    image = image.resize((large, large), Image.Resampling.BILINEAR)
    low = round((large - SIDE) / 2)
    pixels = np.asarray(image.crop((low, low, low + SIDE, low + SIDE)), dtype=np.float32) / 255
    pixels = (pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    return torch.from_numpy(pixels).float().permute(2, 0, 1)[None]


def test_more_classes_get_a_probability_each_and_no_roc(tmp_path: Path) -> None:
    manifest = make_shards(tmp_path / "shards", classes=("a", "b", "c"), per_class=2)
    run = make_run(tmp_path / "run", tmp_path / "shards", manifest, stage="stl_m")
    body = evaluate_run(run, split="val")
    assert body["positive"] is None
    assert list(body["metrics"]) == ["accuracy", "macro_f1", "macro_auc"]
    out = run / "evaluation" / "val"
    rows = list(csv.DictReader((out / "predictions.csv").open()))
    assert [name for name in rows[0] if name.startswith("probability")] == [f"probability_{c}" for c in range(3)]
    for row in rows:
        assert sum(float(row[f"probability_{c}"]) for c in range(3)) == pytest.approx(1)
    assert not (out / "roc.png").exists()
    assert (out / "confusion.png").exists()


def test_the_probability_written_is_that_of_the_positive_class(shards: Path) -> None:
    record = read_records(shards, "test")[0]
    one = Predictions(
        sample_ids=np.array([record.sample_id]),
        labels=np.array([record.label]),
        probabilities=np.array([[0.25, 0.75]], np.float32),
    )
    assert predictions_csv(one, shards, "test", 0).splitlines()[1].endswith(",0.25")
    assert predictions_csv(one, shards, "test", 1).splitlines()[1].endswith(",0.75")


def test_other_classes_are_refused(tmp_path: Path, shards: Path, manifest: Manifest) -> None:
    run = make_run(tmp_path / "run", shards, manifest)
    make_shards(tmp_path / "other", classes=("COVID", "NonCOVID"), per_class=1)
    with pytest.raises(MstlError, match=r"its classes are COVID, NonCOVID, those of run .* NonCOVID, COVID"):
        evaluate_run(run, split="test", shards=tmp_path / "other")
    assert not (run / "evaluation").exists()


def test_a_changed_shard_set_must_be_named_and_is_recorded(tmp_path: Path, manifest: Manifest) -> None:
    changed = make_shards(tmp_path / "shards", per_class=2, seed=1)
    run = make_run(tmp_path / "run", tmp_path / "shards", manifest)
    with pytest.raises(MstlError, match="has changed since run"):
        evaluate_run(run, split="test")
    body = evaluate_run(run, split="test", shards=tmp_path / "shards")
    assert body["shards"]["same_as_run"] is False
    assert body["shards"]["digest"] == changed.digest() != manifest.digest()


@pytest.mark.parametrize("suffix", ["tar", "idx"])
def test_a_flipped_byte_is_never_vouched_for(tmp_path: Path, shards: Path, manifest: Manifest, suffix: str) -> None:
    copy = Path(shutil.copytree(shards, tmp_path / "shards"))
    run = make_run(tmp_path / "run", copy, manifest)
    shard = (copy / manifest.shards("test")[0].path).with_suffix(f".{suffix}")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    for given in (None, copy):
        with pytest.raises(MstlError, match=rf"{shard.name}"):
            evaluate_run(run, split="test", shards=given)
        with pytest.raises(MstlError, match=rf"{shard.name}"):
            explain_run(run, split="test", count=1, out=tmp_path / "grid.png", shards=given)
    assert not (run / "evaluation").exists() and not (tmp_path / "grid.png").exists()
    assert evaluate_run(run, split="val")["n"] == 10


def test_an_unfinished_run_is_said_to_be(tmp_path: Path, shards: Path, manifest: Manifest) -> None:
    run = make_run(tmp_path / "run", shards, manifest, changes={"status": "interrupted"})
    assert evaluate_run(run, split="test")["n"] == 10  # its weights are there: only its record came too late
    (run / "weights.safetensors").unlink()
    words = rf"run {run}: it is not finished \(status: interrupted\)\. Continue it: mstl train .* --out {run} "
    with pytest.raises(MstlError, match=words):
        evaluate_run(run, split="test")
    with pytest.raises(MstlError, match=words):
        explain_run(run, split="test", count=1, out=tmp_path / "grid.png")


def test_a_place_that_cannot_be_written_is_refused_before_the_work(
    tmp_path: Path, shards: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run", shards, manifest)
    (run / "evaluation").write_text("in the way")
    monkeypatch.setattr("mstl.evaluation.subject.load_classifier", lambda _: pytest.fail("it went to work"))
    with pytest.raises(MstlError, match="evaluation is no folder"):
        evaluate_run(run, split="test")
    with pytest.raises(MstlError, match="is a folder"):
        explain_run(run, split="test", count=1, out=tmp_path)


def test_odd_sections_of_run_json_are_named(tmp_path: Path, shards: Path, manifest: Manifest) -> None:
    run = make_run(tmp_path / "run", shards, manifest, changes={"inputs": {"evaluation": 3}})
    with pytest.raises(MstlError, match=r"run/run\.json: it cannot be read \(inputs\.evaluation: "):
        evaluate_run(run, split="test")


def test_a_split_or_a_classifier_that_is_not_there_is_refused(tmp_path: Path, shards: Path, manifest: Manifest) -> None:
    run = make_run(tmp_path / "run", shards, manifest)
    with pytest.raises(MstlError, match="'tset'"):
        evaluate_run(run, split="tset")
    ssl = make_run(tmp_path / "ssl", shards, manifest, stage="sstl_m")
    with pytest.raises(MstlError, match="no classifier"):
        evaluate_run(ssl, split="test")


def test_an_old_roc_does_not_outlive_an_evaluation_without_one(
    tmp_path: Path, shards: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run", shards, manifest)
    out = run / "evaluation" / "test"
    out.mkdir(parents=True)
    (out / "roc.png").write_bytes(b"old")
    found = Predictions(
        sample_ids=np.array([r.sample_id for r in read_records(shards, "test") if r.label == 1]),
        labels=np.ones(5, dtype=np.int64),
        probabilities=np.full((5, 2), 0.5, np.float32),
    )
    monkeypatch.setattr("mstl.evaluation.evaluate.predict", lambda *_, **__: found)
    body = evaluate_run(run, split="test")
    assert body["metrics"]["auc"] is None and body["metrics"]["specificity"] is None
    assert not (out / "roc.png").exists()


def test_the_command_prints_the_metrics(tmp_path: Path, shards: Path, manifest: Manifest) -> None:
    pytest.importorskip("mstl.cli.progress")
    run = make_run(tmp_path / "run", shards, manifest)
    result = CliRunner().invoke(command, [str(run), "--split", "val", "--batch", "3"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    body = json.loads((run / "evaluation" / "val" / "metrics.json").read_text())
    assert "positive class: COVID" in result.output
    assert f"{100 * body['metrics']['accuracy']:.1f}" in result.output
