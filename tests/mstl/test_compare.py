"""Comparing two evaluated runs: the numbers, what is refused, and what the command says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from tiny_runs import make_run, make_shards

from mstl.cli.compare import command
from mstl.evaluation.compare import compare_runs
from mstl.evaluation.measure import Asked, measure
from mstl.evaluation.paired import delong, mcnemar
from mstl.evaluation.predictions import Predictions, Table, write_table
from shards.errors import MstlError
from shards.files import sha256_file
from shards.schema import Manifest

N = 60


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return make_shards(tmp_path_factory.mktemp("compare") / "shards", per_class=1)


def scores_of(seed: int, skill: float) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (1 / (1 + np.exp(-(skill * (np.arange(N) % 2 - 0.5) + rng.normal(0, 1, N))))).astype(np.float32)


def evaluated(
    path: Path,
    manifest: Manifest,
    scores: np.ndarray,
    *,
    patients: Sequence[str | None] = (None,) * N,
    threshold: float | None = 0.4,
    positive: int = 1,
    **changes: Any,
) -> Path:
    """A run folder with the evaluation of N images, every second one positive, that gave these probabilities."""
    run = make_run(path, path, manifest, weights=False)
    both = np.stack([1 - scores, scores], 1)
    found = Predictions(sample_ids=np.arange(N), labels=np.arange(N) % 2, probabilities=both)
    table = Table(predictions=found, keys=tuple(map(str, range(N))), patients=tuple(patients))
    asked = Asked(
        classes=manifest.classes, positive=positive, threshold=threshold, temperature=None, resamples=100, seed=0
    )
    out = run / "evaluation" / "test"
    out.mkdir(parents=True)
    (out / "predictions.csv").write_text(write_table(table, positive))
    operating = {"threshold": threshold, "origin": "val", "rule": "youden", "split": "val"} if threshold else None
    body = {
        **measure(table, asked).body, "operating": operating, "n": N, "classes": list(manifest.classes),
        "positive": manifest.classes[positive], "weights_sha256": sha256_file(run / "weights.safetensors"),
        "shards": {"digest": manifest.digest(), "source": "tiny", "same_as_run": True, "path": "x"},
    }  # fmt: skip
    (out / "metrics.json").write_text(json.dumps({**body, **changes}))
    return run


def test_the_difference_is_b_minus_a_with_its_tests(tmp_path: Path, manifest: Manifest) -> None:
    weak, strong = scores_of(0, 0.5), scores_of(1, 3.0)
    a = evaluated(tmp_path / "a", manifest, weak)
    b = evaluated(tmp_path / "b", manifest, strong, threshold=0.6)
    body = compare_runs(a, b, split="test", resamples=300)
    json.dumps(body, allow_nan=False)
    positives = np.arange(N) % 2 == 1
    for name, row in body["metrics"].items():
        alone = [json.loads((run / "evaluation/test/metrics.json").read_text())["metrics"][name] for run in (a, b)]
        assert [row["a"], row["b"]] == pytest.approx(alone, abs=1e-6)
        assert row["difference"] == pytest.approx(alone[1] - alone[0], abs=1e-6)
        if name == "ece":
            assert row["interval"] is None  # resampling distorts it, most where there is nothing to be seen
        else:
            assert row["interval"]["low"] <= row["difference"] <= row["interval"]["high"]
    assert list(body["metrics"])[:2] == ["accuracy", "f1"] and len(body["metrics"]) == 10
    assert body["metrics"]["auc"]["interval"]["low"] > 0
    expected = delong(weak, strong, positives)
    assert (body["delong"]["p"], body["delong"]["difference"]) == (expected.p, expected.difference)
    assert body["delong"]["difference"] == pytest.approx(body["metrics"]["auc"]["difference"])
    assert body["mcnemar"]["p"] == mcnemar((weak > 0.5) == positives, (strong > 0.5) == positives).p
    # Each run at its own operating point.
    right = [(weak >= 0.4) == positives, (strong >= 0.6) == positives]
    assert body["operating"]["mcnemar"]["p"] == mcnemar(*right).p
    row = body["operating"]["metrics"]["accuracy"]
    assert (row["a"], row["b"]) == pytest.approx([one.mean() for one in right])
    assert (body["bootstrap"]["unit"], body["bootstrap"]["clusters"]) == ("image", N)


def test_both_runs_stand_in_the_same_resamples(tmp_path: Path, manifest: Manifest) -> None:
    scores = scores_of(0, 1.0)
    a, b = evaluated(tmp_path / "a", manifest, scores), evaluated(tmp_path / "b", manifest, scores.copy())
    body = compare_runs(a, b, split="test", resamples=100)
    assert body["metrics"].pop("ece")["difference"] == 0
    for row in body["metrics"].values():
        assert (row["difference"], row["interval"]["low"], row["interval"]["high"]) == (0, 0, 0)
    assert (body["delong"]["p"], body["mcnemar"]["p"]) == (1, 1)


def test_patients_are_drawn_where_all_are_known(tmp_path: Path, manifest: Manifest) -> None:
    patients = [f"p{i // 6}" for i in range(N)]
    runs = [evaluated(tmp_path / str(i), manifest, scores_of(i, 1.0), patients=patients) for i in range(2)]
    body = compare_runs(*runs, split="test", resamples=100)
    assert (body["bootstrap"]["unit"], body["bootstrap"]["clusters"]) == ("patient", 10)
    result = CliRunner().invoke(command, [*map(str, runs), "--resamples", "100"], catch_exceptions=False)
    assert "prefer the intervals, which draw patients" in result.output


def test_without_an_operating_point_there_is_none_to_compare(tmp_path: Path, manifest: Manifest) -> None:
    a = evaluated(tmp_path / "a", manifest, scores_of(0, 1.0), threshold=None)
    b = evaluated(tmp_path / "b", manifest, scores_of(1, 1.0))
    assert compare_runs(a, b, split="test", resamples=100)["operating"] is None


def test_what_cannot_be_compared_is_refused(tmp_path: Path, manifest: Manifest) -> None:
    scores = scores_of(0, 1.0)
    a = evaluated(tmp_path / "a", manifest, scores)
    elsewhere = {"digest": "0" * 64, "source": "tiny", "same_as_run": False, "path": "x"}
    refused = {
        "other_set": ({"shards": elsewhere}, "different shard sets"),
        "positive": ({"positive": 0}, r"positive classes differ \(COVID, NonCOVID\)"),
        "stale": ({"weights_sha256": "0"}, "the run has other weights by now"),
        "rows": ({"n": N - 1}, f"has {N} rows, and metrics.json counts {N - 1}"),
    }
    for name, (changes, words) in refused.items():
        b = evaluated(tmp_path / name, manifest, scores, **changes)
        with pytest.raises(MstlError, match=words):
            compare_runs(a, b, split="test")
    with pytest.raises(MstlError, match=r"not been evaluated on split 'val'.*mstl evaluate .*/a --split val"):
        compare_runs(a, a, split="val")
    other = evaluated(tmp_path / "images", manifest, scores)
    table = other / "evaluation/test/predictions.csv"
    table.write_text(table.read_text().replace(f"\n{N - 1},", f"\n{N + 5},"))
    with pytest.raises(MstlError, match="of different images"):
        compare_runs(a, other, split="test")
    table.write_text("sample_id,key\n1,2\n")
    with pytest.raises(MstlError, match=r"predictions\.csv: it cannot be read"):
        compare_runs(a, other, split="test")
    (other / "evaluation/test/metrics.json").write_text("{")
    with pytest.raises(MstlError, match=r"metrics\.json: it cannot be read"):
        compare_runs(a, other, split="test")
    with pytest.raises(MstlError, match=r"no run\.json"):
        compare_runs(a, tmp_path, split="test")


def test_more_classes_have_intervals_and_mcnemar(tmp_path: Path) -> None:
    manifest = make_shards(tmp_path / "shards", classes=("a", "b", "c"), per_class=1)
    runs = []
    for seed in range(2):
        run = make_run(tmp_path / str(seed), tmp_path, manifest, stage="stl_m", weights=False)
        found = Predictions(
            sample_ids=np.arange(30), labels=np.arange(30) % 3,
            probabilities=np.random.default_rng(seed).dirichlet(np.ones(3), 30).astype(np.float32),
        )  # fmt: skip
        table = Table(predictions=found, keys=("k",) * 30, patients=(None,) * 30)
        out = run / "evaluation" / "test"
        out.mkdir(parents=True)
        (out / "predictions.csv").write_text(write_table(table, None))
        body = {
            "n": 30, "classes": ["a", "b", "c"], "positive": None, "metrics": {},
            "weights_sha256": sha256_file(run / "weights.safetensors"),
            "shards": {"digest": "d", "same_as_run": True},
        }  # fmt: skip
        (out / "metrics.json").write_text(json.dumps(body))
        runs.append(run)
    body = compare_runs(*runs, split="test", resamples=200)
    assert body["delong"] is None and body["operating"] is None and 0 <= body["mcnemar"]["p"] <= 1
    assert body["metrics"]["macro_auc"]["interval"]["low"] is not None
    assert not any("/" in name for name in body["metrics"])
    assert CliRunner().invoke(command, [*map(str, runs), "--resamples", "100"], catch_exceptions=False).exit_code == 0


def test_the_command_shows_and_writes_it(tmp_path: Path, manifest: Manifest) -> None:
    a = evaluated(tmp_path / "a", manifest, scores_of(0, 0.5))
    b = evaluated(tmp_path / "b", manifest, scores_of(1, 3.0))
    out = tmp_path / "new" / "gain.json"
    words = [str(a), str(b), "--resamples", "200", "--seed", "3", "--out", str(out)]
    result = CliRunner().invoke(command, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    body = json.loads(out.read_text())
    assert body["bootstrap"]["seed"] == 3 and body["bootstrap"]["resamples"] == 200
    gain = body["metrics"]["auc"]["difference"]
    assert f"DeLong: AUC B − A +{gain:.3f}" in result.output and "McNemar" in result.output
    assert "images of one patient are taken as independent" in result.output
    refused = CliRunner().invoke(command, [str(a), str(b), "--out", str(tmp_path)])
    assert isinstance(refused.exception, MstlError)
