"""Evaluation of runs: the files written, where the operating point comes from, and what is refused."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from tiny_runs import CT_CLASSES, SIDE, make_run, make_shards

from mstl.cli.compare import command as compare_command
from mstl.cli.evaluate import command
from mstl.evaluation import evaluate as evaluate_module
from mstl.evaluation.compare import compare_runs
from mstl.evaluation.evaluate import evaluate_run
from mstl.evaluation.explain import explain_run
from mstl.evaluation.operating import read_operating
from mstl.evaluation.predictions import Table, read_table
from mstl.evaluation.subject import Subject
from mstl.runs import load_classifier, open_run
from mstl.weights import load_weights, save_weights
from shards.errors import MstlError
from shards.progress import Progress
from shards.read import read_image, read_records
from shards.schema import Manifest, load_manifest


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate") / "shards"
    make_shards(folder)
    return folder


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw no figures: they take most of an evaluation's time."""
    monkeypatch.setattr("mstl.evaluation.plots.draw", lambda *_: {})


@pytest.fixture
def manifest(shards: Path) -> Manifest:
    return load_manifest(shards)


def test_evaluating_a_run_writes_what_its_network_says(tmp_path: Path, shards: Path, manifest: Manifest) -> None:
    run = make_run(tmp_path / "run", shards, manifest)
    body = evaluate_run(run, split="test", batch=4)  # 10 images: the last batch is padded
    out = run / "evaluation" / "test"
    assert json.loads((out / "metrics.json").read_text()) == body
    assert (body["n"], body["class_counts"], body["positive"]) == (10, [5, 5], "COVID")
    assert body["classes"] == list(CT_CLASSES)
    assert body["shards"]["digest"] == manifest.digest() and body["shards"]["same_as_run"] is True
    assert torch.__version__.startswith(body["software"]["torch"].split("+")[0])
    assert list(body["metrics"]) == [
        "accuracy", "f1", "sensitivity", "specificity", "precision", "balanced_accuracy", "auc", "average_precision",
        "brier", "ece",
    ]  # fmt: skip
    for name, span in body["intervals"].items():
        if span["low"] is not None:
            assert span["low"] <= body["metrics"][name] <= span["high"], name
    assert body["intervals"].keys() == body["metrics"].keys() and body["intervals"]["accuracy"]["low"] is not None
    drawn = body["bootstrap"]  # of each class, images 1 and 3 have no patient
    assert (drawn["unit"], drawn["clusters"], drawn["images_without_patient"]) == ("image", 10, 4)
    assert drawn["resamples"] == 2000

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
    assert np.trace(body["confusion"]) == sum(right)
    figures = {"roc.png", "pr.png", "reliability.png", "confusion.png"}
    for name in figures:
        assert min(Image.open(out / name).size) > 300
    for folder in (out, run / "evaluation" / "val"):
        assert {p.name for p in folder.iterdir()} == {"metrics.json", "predictions.csv", *figures}


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


def test_more_classes_get_a_probability_each_and_a_curve_each(tmp_path: Path) -> None:
    manifest = make_shards(tmp_path / "shards", classes=("a", "b", "c"), per_class=2)
    run = make_run(tmp_path / "run", tmp_path / "shards", manifest, stage="stl_m")
    body = evaluate_run(run, split="val", resamples=100)
    assert body["positive"] is None and body["operating"]["threshold"] is None
    assert list(body["metrics"]) == [
        "accuracy", "macro_f1", "balanced_accuracy", "macro_specificity", "macro_precision", "brier", "ece",
        "macro_auc", "macro_average_precision",
    ]  # fmt: skip
    out = run / "evaluation" / "val"
    rows = list(csv.DictReader((out / "predictions.csv").open()))
    assert [name for name in rows[0] if name.startswith("probability")] == [f"probability_{c}" for c in range(3)]
    for row in rows:
        assert sum(float(row[f"probability_{c}"]) for c in range(3)) == pytest.approx(1)
    assert [(row["class"], row["n"]) for row in body["per_class"]] == [("a", 2), ("b", 2), ("c", 2)]
    aucs = [row["metrics"]["auc"] for row in body["per_class"]]
    assert np.mean(aucs) == pytest.approx(body["metrics"]["macro_auc"], abs=1e-6)
    for name in ("roc.png", "pr.png", "reliability.png", "confusion.png"):
        assert (out / name).exists()
    with pytest.raises(MstlError, match="one is positive only among two"):
        evaluate_run(run, split="val", positive="a")


@pytest.mark.usefixtures("undrawn")
def test_the_operating_point_is_chosen_on_val_and_applied_to_test(
    tmp_path: Path, shards: Path, manifest: Manifest
) -> None:
    run = make_run(tmp_path / "run", shards, manifest)
    body = evaluate_run(run, split="test", resamples=100)
    chosen = read_operating(run)
    assert chosen is not None and (chosen.origin, chosen.split, chosen.n) == ("val", "val", 10)
    val = read_table(run / "evaluation/val/predictions.csv", classes=2, positive=1)
    test = read_table(run / "evaluation/test/predictions.csv", classes=2, positive=1)
    yes = {
        name: table.predictions.probabilities[:, 1].astype(float) >= chosen.threshold
        for name, table in (("val", val), ("test", test))
    }
    assert chosen.sensitivity == pytest.approx(yes["val"][val.predictions.labels == 1].mean())
    everywhere = np.unique(np.append(0, val.predictions.probabilities[:, 1]))
    gains = []
    for threshold in everywhere:
        said = val.predictions.probabilities[:, 1] >= threshold
        gains.append(said[val.predictions.labels == 1].mean() + (~said[val.predictions.labels == 0]).mean())
    assert chosen.sensitivity + chosen.specificity == pytest.approx(max(gains))
    operating = body["operating"]
    assert (operating["threshold"], operating["rule"], operating["same_images"]) == (chosen.threshold, "youden", False)
    assert operating["metrics"]["accuracy"] == pytest.approx((yes["test"] == test.predictions.labels).mean())
    assert operating["confusion"][1] == [int(5 - yes["test"][test.predictions.labels == 1].sum()),
                                         int(yes["test"][test.predictions.labels == 1].sum())]  # fmt: skip
    assert evaluate_run(run, split="val", resamples=100)["operating"]["same_images"] is True
    # A threshold of one's own, and the other class as the positive one.
    body = evaluate_run(run, split="test", resamples=100, operating="0.9", positive="NonCOVID")
    assert (body["operating"]["threshold"], body["operating"]["origin"], body["positive"]) == (0.9, "given", "NonCOVID")
    mirrored = read_table(run / "evaluation/test/predictions.csv", classes=2, positive=0)
    np.testing.assert_allclose(mirrored.predictions.probabilities, test.predictions.probabilities, atol=1e-6)
    with pytest.raises(MstlError, match="no such class"):
        evaluate_run(run, split="test", positive="covid")
    with pytest.raises(MstlError, match="is no rule"):
        evaluate_run(run, split="test", operating="best")


@pytest.mark.usefixtures("undrawn")
def test_val_is_evaluated_again_only_for_other_weights(
    tmp_path: Path, shards: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run", shards, manifest)
    evaluate_run(run, split="val", resamples=100)
    seen: list[str] = []
    first = evaluate_module._predicted

    def counting(subject: Subject, batch: int, progress: Progress) -> Table:
        seen.append(subject.split)
        return first(subject, batch, progress)

    monkeypatch.setattr("mstl.evaluation.evaluate._predicted", counting)
    before = evaluate_run(run, split="test", resamples=100)
    assert seen == ["test"]
    record = run / "evaluation/val/metrics.json"
    record.write_text(record.read_text().replace('"weights_sha256": "', '"weights_sha256": "0'))
    assert evaluate_run(run, split="test", resamples=100)["operating"] == before["operating"]
    assert seen == ["test", "test", "val"]
    (run / "evaluation/val/predictions.csv").write_text("damaged")
    assert evaluate_run(run, split="test", resamples=100)["operating"] == before["operating"]
    assert seen[3:] == ["test", "val"]


@pytest.mark.usefixtures("undrawn")
def test_without_val_the_threshold_is_one_half_and_it_says_so(tmp_path: Path) -> None:
    whole = make_shards(tmp_path / "one", without=("val", 1), per_class=2)
    run = make_run(tmp_path / "run", tmp_path / "one", whole)
    body = evaluate_run(run, split="test", resamples=100)
    assert (body["operating"]["threshold"], body["operating"]["origin"]) == (0.5, "default")
    assert body["operating"]["why"] == "the val split holds one class only"
    assert "one class only" in body["calibration"]["why"]
    # The run's own set is gone; another one is named.
    shutil.rmtree(tmp_path / "one")
    make_shards(tmp_path / "two", per_class=2, seed=1)
    body = evaluate_run(run, split="val", shards=tmp_path / "two", resamples=100)
    operating = body["operating"]
    assert (operating["threshold"], operating["split"], operating["n"]) == (0.5, None, 0)
    assert str(tmp_path / "one") in operating["why"] and not operating["same_images"]
    assert read_operating(run).why == operating["why"]


@pytest.mark.usefixtures("undrawn")
def test_another_set_is_measured_beside_the_runs_own(tmp_path: Path, shards: Path, manifest: Manifest) -> None:
    run = make_run(tmp_path / "run", shards, manifest)
    place = tmp_path / "other"
    other = make_shards(place, per_class=3, seed=1, source="other hospital/1")
    body = evaluate_run(run, split="val", shards=place, resamples=100)
    own = json.loads((run / "evaluation/val/metrics.json").read_text())  # the threshold's images are its own val's
    assert (body["n"], own["n"], own["shards"]["digest"]) == (6, 10, manifest.digest())
    assert body["operating"]["threshold"] == own["operating"]["threshold"]
    assert not body["operating"]["same_images"] and own["operating"]["same_images"]
    folder = run / "evaluation" / f"val-on-other-hospital-1-{other.digest()[:8]}"
    assert json.loads((folder / "metrics.json").read_text()) == body
    assert json.loads((run / "evaluation/val/metrics.json").read_text()) == own

    at_home = make_run(tmp_path / "home", place, other)
    with pytest.raises(MstlError, match=r"not been evaluated on split 'val' of that shard set.*--shards DIR"):
        compare_runs(run, at_home, split="val", shards=place, resamples=100)
    evaluate_run(at_home, split="val", resamples=100)
    with pytest.raises(MstlError, match="evaluated on different shard sets"):
        compare_runs(run, at_home, split="val", resamples=100)
    found = compare_runs(run, at_home, split="val", shards=place, resamples=100)
    assert (found["n"], found["shards"]["digest"]) == (6, other.digest())
    words = [str(run), str(at_home), "--split", "val", "--resamples", "100", "--shards", str(place)]
    assert "6" in CliRunner().invoke(compare_command, words, catch_exceptions=False).output


@pytest.mark.usefixtures("undrawn")
def test_a_network_that_diverged_is_named(tmp_path: Path, shards: Path, manifest: Manifest) -> None:
    run = make_run(tmp_path / "run", shards, manifest)
    weights = load_weights(run / "weights.safetensors")
    save_weights(run / "weights.safetensors", {**weights, "fc.bias": torch.full((2,), torch.nan)})
    words = f"run {run}: its network answers with what is no number"
    with pytest.raises(MstlError, match=words):
        evaluate_run(run, split="test")
    with pytest.raises(MstlError, match=words):
        explain_run(run, split="test", count=1, out=tmp_path / "g.png")
    assert not (run / "evaluation/test").exists() and not (tmp_path / "g.png").exists()


def test_other_classes_are_refused(tmp_path: Path, shards: Path, manifest: Manifest) -> None:
    run = make_run(tmp_path / "run", shards, manifest)
    make_shards(tmp_path / "other", classes=("COVID", "NonCOVID"), per_class=1)
    with pytest.raises(MstlError, match=r"its classes are COVID, NonCOVID, those of run .* NonCOVID, COVID"):
        evaluate_run(run, split="test", shards=tmp_path / "other")
    assert not (run / "evaluation").exists()


@pytest.mark.usefixtures("undrawn")
def test_a_changed_shard_set_must_be_named_and_is_recorded(tmp_path: Path, manifest: Manifest) -> None:
    changed = make_shards(tmp_path / "shards", per_class=2, seed=1)
    run = make_run(tmp_path / "run", tmp_path / "shards", manifest)
    with pytest.raises(MstlError, match="has changed since run"):
        evaluate_run(run, split="test")
    body = evaluate_run(run, split="test", shards=tmp_path / "shards")
    assert body["shards"]["same_as_run"] is False
    assert body["shards"]["digest"] == changed.digest() != manifest.digest()


@pytest.mark.usefixtures("undrawn")
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
    assert evaluate_run(run, split="val", resamples=100)["n"] == 10


@pytest.mark.usefixtures("undrawn")
def test_a_damaged_val_split_is_not_taken_for_a_missing_one(tmp_path: Path, shards: Path, manifest: Manifest) -> None:
    copy = Path(shutil.copytree(shards, tmp_path / "shards"))
    run = make_run(tmp_path / "run", copy, manifest)
    shard = copy / manifest.shards("val")[0].path
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    with pytest.raises(MstlError, match=rf"val/{shard.name}"):
        evaluate_run(run, split="test")
    assert not (run / "evaluation" / "test").exists()


@pytest.mark.usefixtures("undrawn")
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


def test_a_split_of_one_class_is_measured_as_far_as_it_goes(tmp_path: Path) -> None:
    manifest = make_shards(tmp_path / "one", without=("test", 0), per_class=3)
    run = make_run(tmp_path / "run", tmp_path / "one", manifest)
    out = run / "evaluation" / "test"
    out.mkdir(parents=True)
    for name in ("roc.png", "pr.png"):
        (out / name).write_bytes(b"of an earlier evaluation")
    result = CliRunner().invoke(command, [str(run), "--resamples", "100"], catch_exceptions=False)
    body = json.loads((out / "metrics.json").read_text())
    assert body["n"] == 3
    for name in ("auc", "specificity", "balanced_accuracy"):
        assert body["metrics"][name] is None and f"{name}" in result.output
        assert body["intervals"][name] == {"low": None, "high": None, "undefined": 100}
    assert body["metrics"]["sensitivity"] == body["metrics"]["accuracy"]
    assert body["bootstrap"]["resamples_without_a_class"] == 0  # it never had the other
    assert body["operating"]["origin"] == "val" and body["operating"]["metrics"]["specificity"] is None
    assert "undefined" in result.output and "So few images: the true intervals are wider" in result.output
    assert re.search(
        r"No interval for specificity, .*auc.*: undefined in more than 5 % of the resamples", result.output
    )
    assert not (out / "roc.png").exists() and not (out / "pr.png").exists()
    assert (out / "reliability.png").exists()


def test_the_command_prints_the_metrics(tmp_path: Path, shards: Path, manifest: Manifest) -> None:
    pytest.importorskip("mstl.cli.progress")
    run = make_run(tmp_path / "run", shards, manifest)
    words = [str(run), "--split", "val", "--batch", "3", "--resamples", "200", "--seed", "5"]
    result = CliRunner().invoke(command, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    body = json.loads((run / "evaluation" / "val" / "metrics.json").read_text())
    assert "positive class: COVID" in result.output
    span = body["intervals"]["accuracy"]
    assert f"{body['metrics']['accuracy']:.3f} │ {span['low']:.3f} to {span['high']:.3f}" in result.output
    assert (body["bootstrap"]["resamples"], body["bootstrap"]["seed"]) == (200, 5)
    assert "bootstrap of 10 images, 200 resamples (the patients of 4 are not known" in result.output
    assert f"Operating point {body['operating']['threshold']:.3f}: youden on 10 val images" in result.output
    assert "was chosen on these very images" in result.output
