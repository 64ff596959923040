"""The model card: every number is one of the run's own files, and what is not known is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_runs import make_run, make_shards

from mstl.evaluation.evaluate import evaluate_run
from mstl.evaluation.operating import read_operating
from mstl.runs import WEIGHTS_NAME, open_run
from mstl.use.card import CARD_NAME, leave_card, write_card
from shards.files import sha256_file
from shards.schema import load_manifest


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("card") / "shards"
    make_shards(folder)
    return folder


def rows(card: str) -> dict[str, list[str]]:
    """The rows of all tables by their first cell; of equal ones the last."""
    lines = [line for line in card.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return {first: rest for first, *rest in cells}


def test_a_card_of_a_run_that_was_never_evaluated(tmp_path: Path, shards: Path) -> None:
    run = make_run(tmp_path / "run", shards, load_manifest(shards))
    card = write_card(run, shards=shards, manifest=load_manifest(shards)).read_text()
    assert "Research software, not a medical device." in card
    assert "Never evaluated with these weights" in card
    assert "No operating point was chosen, so 0.5 is taken" in card
    table = rows(card)
    # Even images have a patient, the same ones in every split.
    assert table["train"] == ["10", "5", "5", "6", "4"] and table["test"] == ["10", "5", "5", "6", "4"]
    assert f"`{sha256_file(run / WEIGHTS_NAME)}`" in card and load_manifest(shards).digest() in card
    assert "covid19-ct: substituted" in card and "Not the paper's data: tiny for covid19-ct" in card
    assert "It began with random weights" in card and "trained in the paper's stages but from random" in card
    assert "Leakage between what was learned from and what is measured on: **not looked for**" in card
    assert "There is no result on a test split" in card
    assert "Of 4 training images the patient is unknown" in card
    assert "It was trained on 10 images, which is few" in card
    used, ours, printed, why = table["optim.lr"]
    body = open_run(run).body
    assert (used, ours, printed) == (str(body["recipe"]["optim"]["lr"]), str(body["resolved"]["optim.lr"]), "0.3")
    assert "a zero was lost in print" in why
    assert table["data.image_size"][:3] == ["48", "224", ""]


def test_evaluation_completes_the_card(tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mstl.evaluation.plots.draw", lambda *_: {})
    parent = make_run(tmp_path / "before", shards, load_manifest(shards), stage="sstl_m")
    run = make_run(tmp_path / "run", shards, load_manifest(shards), parent=parent)
    body = evaluate_run(run, split="test", resamples=100)
    card = (run / CARD_NAME).read_text()
    test = card.partition("### test split")[2].partition("## Operating")[0].partition("### val")[0]
    table = rows(test)
    for name, shown in (("accuracy", "accuracy"), ("auc", "AUC"), ("sensitivity", "sensitivity")):
        value, span = body["metrics"][name], body["intervals"][name]
        assert table[shown][0] == f"{value:.3f}"
        assert table[shown][1] == ("–" if span["low"] is None else f"{span['low']:.3f} to {span['high']:.3f}")
    assert table["sensitivity"][2] == f"{body['operating']['metrics']['sensitivity']:.3f}"
    assert "n = 10 (NonCOVID 5, COVID 5)" in test and "bootstrap of 10 images, 100 resamples" in test
    chosen = read_operating(run)
    assert chosen is not None and f"Operating point {chosen.threshold:.3f}: youden on 10 val images" in card
    assert chosen.temperature is not None and f"temperature of {chosen.temperature:.3f}" in card
    assert "The test split is small: one of its 10 images is 10.0 points" in card
    assert "There is no result on a test split" not in card
    assert "data set it was trained with; elsewhere" in card and rows(card)["train"][0] == "10"
    assert rows(card)["sstl_m"][3] == f"`{sha256_file(parent / WEIGHTS_NAME)}`"
    assert "80 tensors were carried over" in card and "random weights" not in card
    chain = [line.split(" | ")[0] for line in card.splitlines() if line.startswith(("| sstl_m |", "| finetune |"))]
    assert chain == ["| sstl_m", "| finetune"]


def test_results_of_other_weights_are_left_out(tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mstl.evaluation.plots.draw", lambda *_: {})
    run = make_run(tmp_path / "run", shards, load_manifest(shards))
    evaluate_run(run, split="val", resamples=100)
    file = run / "evaluation/val/metrics.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "weights_sha256": "0" * 64}))
    assert "Never evaluated with these weights" in write_card(run).read_text()
    assert "was not at hand when this card was written" in write_card(run).read_text()


def test_leakage_waivers_and_synthetic_images_are_told(tmp_path: Path) -> None:
    manifest = make_shards(tmp_path / "shards", source="covid19-ct (sample)", per_class=2)
    leakage = {
        "state": "partly checked", "missing": ["its train and sstl_m's"], "lineage": [], "transductive": ["runs/ssl"],
        "verdicts": [{"name": "x:train~val:patient", "text": "found: 3 of 4 val images", "outcome": "found",
                      "unknown": 0}],
        "waived": [{"name": "x:train~val:patient", "about": []}],
    }  # fmt: skip
    run = make_run(tmp_path / "run", tmp_path / "shards", manifest, changes={"leakage": leakage})
    card = write_card(run).read_text()
    assert "**Its images were drawn by a program.**" in card
    for line in (
        "measured on: **partly checked**.",
        "- x:train~val:patient: found: 3 of 4 val images",
        "- waived by name: x:train~val:patient",
        "- never compared: its train and sstl_m's",
        "- runs/ssl learned from the val and test images too, without their labels",
    ):
        assert line in card


def test_a_card_that_cannot_be_written_loses_nothing(
    tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run", shards, load_manifest(shards))
    assert leave_card(run, shards=None, manifest=None) is None and (run / CARD_NAME).is_file()
    monkeypatch.setattr("mstl.evaluation.plots.draw", lambda *_: {})
    monkeypatch.setattr("mstl.use.card.render", lambda *_: 1 / 0)
    told = leave_card(run, shards=None, manifest=None)
    assert told is not None and "no model card was written" in told and "ZeroDivisionError" in told
    with pytest.warns(UserWarning, match="no model card was written"):
        body = evaluate_run(run, split="val", resamples=100)
    assert json.loads((run / "evaluation/val/metrics.json").read_text()) == body
