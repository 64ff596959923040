"""The operating point: rules, thresholds against a search over all of them, and the file for later use."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_runs import make_run, make_shards

from mstl.evaluation.operating import Operating, Rule, choose_threshold, parse_rule, read_operating, write_operating
from shards.errors import MstlError
from shards.files import sha256_file


def test_rules() -> None:
    assert parse_rule("youden") == Rule(kind="youden") and str(parse_rule("youden")) == "youden"
    assert parse_rule(" sensitivity=0.95") == Rule(kind="sensitivity", value=0.95)
    assert parse_rule("0.5") == Rule(kind="given", value=0.5)
    assert [str(parse_rule(text)) for text in ("sensitivity=0.95", "0.25")] == ["sensitivity=0.95", "0.25"]
    for text in ("", "Youdens", "sensitivity=2", "specificity=0.9", "1.5", "nan", "=0.5x"):
        with pytest.raises(MstlError, match="is no rule"):
            parse_rule(text)


cases = st.lists(st.tuples(st.integers(0, 8), st.booleans()), min_size=2, max_size=25).filter(
    lambda rows: len({positive for _, positive in rows}) == 2
)


def rates(scores: np.ndarray, positives: np.ndarray, threshold: float) -> tuple[float, float]:
    yes = scores >= threshold
    return yes[positives].mean(), (~yes[~positives]).mean()


@given(cases)
def test_youden_is_the_best_of_all_thresholds(rows: list[tuple[int, bool]]) -> None:
    scores = np.array([score for score, _ in rows], np.float32) / np.float32(8)
    positives = np.array([positive for _, positive in rows])
    found = choose_threshold(scores, positives, Rule(kind="youden"))
    everywhere = np.linspace(0, 1, 17)  # between and at all levels of the scores
    best = max(sum(rates(scores, positives, t)) for t in everywhere if (scores >= t).any())
    assert sum(rates(scores, positives, found)) == pytest.approx(best)
    assert (scores >= found).any()


@given(cases, st.sampled_from([0.5, 0.8, 0.95]))
def test_the_sensitivity_rule_gives_the_highest_threshold_with_it(rows: list[tuple[int, bool]], least: float) -> None:
    scores = np.array([score for score, _ in rows], np.float32) / np.float32(8)
    positives = np.array([positive for _, positive in rows])
    found = choose_threshold(scores, positives, Rule(kind="sensitivity", value=least))
    sensitivity, specificity = rates(scores, positives, found)
    assert sensitivity >= least
    for other in np.linspace(0, 1, 17):
        its, kept = rates(scores, positives, other)
        if its >= least:
            assert kept <= specificity


def test_thresholds_stand_between_probabilities_and_near_the_middle() -> None:
    scores, positives = np.array([0.1, 0.3, 0.4, 0.9]), np.array([False, False, True, True])
    assert choose_threshold(scores, positives, Rule(kind="youden")) == pytest.approx(0.35)
    # Two are as good as each other (1.5): the one nearer to 0.5 is taken, be it the higher or the lower.
    truth = np.array([False, True, False, True])
    assert choose_threshold(np.array([0.1, 0.2, 0.3, 0.9]), truth, Rule(kind="youden")) == pytest.approx(0.6)
    assert choose_threshold(np.array([0.1, 0.7, 0.8, 0.9]), truth, Rule(kind="youden")) == pytest.approx(0.4)
    # 19 of 20 is 95 %, though 0.95 · 20 is not 19 in binary.
    scores, positives = np.arange(40) / 40, np.arange(40) % 2 == 1
    threshold = choose_threshold(scores, positives, Rule(kind="sensitivity", value=0.95))
    assert rates(scores, positives, threshold)[0] == 0.95
    # A classifier without skill: yes to everybody, not to nobody.
    assert choose_threshold(np.array([0.3, 0.3]), np.array([True, False]), Rule(kind="youden")) == 0
    assert choose_threshold(np.array([0.3]), np.array([True]), Rule(kind="given", value=0.7)) == 0.7


def test_the_file_comes_back_and_is_refused_for_other_weights(tmp_path: Path) -> None:
    manifest = make_shards(tmp_path / "shards", per_class=1)
    run = make_run(tmp_path / "run", tmp_path / "shards", manifest, weights=False)
    assert read_operating(run) is None
    chosen = Operating(
        rule="youden", threshold=0.25, origin="val", why=None, temperature=1.5, temperature_why=None, split="val", n=2,
        sensitivity=1.0, specificity=0.5, positive="COVID", classes=["NonCOVID", "COVID"],
        weights_sha256=sha256_file(run / "weights.safetensors"), shards_digest=manifest.digest(), date="x",
    )  # fmt: skip
    write_operating(run, chosen)
    assert read_operating(run) == chosen
    file = run / "evaluation" / "operating.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "threshold": "high"}))
    with pytest.raises(MstlError, match=r"operating\.json: it cannot be read \(threshold"):
        read_operating(run)
    file.write_text("{")
    with pytest.raises(MstlError, match=r"operating\.json: it cannot be read"):
        read_operating(run)
    write_operating(run, chosen)
    (run / "weights.safetensors").write_bytes(b"others")
    with pytest.raises(MstlError, match="chosen for other weights"):
        read_operating(run)
