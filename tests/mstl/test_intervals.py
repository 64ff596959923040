"""Bootstrap intervals: what is drawn together, what is undefined, and how often the truth lies inside."""

from __future__ import annotations

import numpy as np
import pytest

from mstl.evaluation import intervals as module
from mstl.evaluation.intervals import bootstrap, clusters_of, described, interval, intervals, method
from mstl.evaluation.weighted import Statistic, mean, probability_errors, ranking, unweighted


def test_patients_are_drawn_only_where_all_are_known() -> None:
    known = clusters_of(["b", "a", "b", "c"])
    assert (known.unit, known.count, known.without_patient) == ("patient", 3, 0)
    assert known.index[0] == known.index[2] and len(set(known.index.tolist())) == 3
    partly = clusters_of(["b", None, "b", ""])
    assert (partly.unit, partly.count, partly.without_patient) == ("image", 4, 2)
    assert partly.index.tolist() == [0, 1, 2, 3]


def test_a_resample_draws_whole_clusters_as_many_as_there_are() -> None:
    clusters = clusters_of(["a"] * 3 + ["b"] + ["c"] * 2)
    seen = bootstrap(lambda weights: {"weights": weights}, clusters, resamples=400, seed=1)["weights"]
    assert seen.shape == (400, 6)
    assert (seen[:, 0] == seen[:, 1]).all() and (seen[:, 1] == seen[:, 2]).all() and (seen[:, 4] == seen[:, 5]).all()
    drawn = seen[:, [0, 3, 4]]
    assert (drawn.sum(1) == 3).all() and (drawn == np.round(drawn)).all() and (drawn >= 0).all()
    # Each cluster is drawn Binomial(3, 1/3) times: mean 1, variance 2/3.
    assert drawn.mean(0) == pytest.approx([1, 1, 1], abs=0.15)
    assert drawn.var(0) == pytest.approx([2 / 3] * 3, abs=0.15)


def test_the_seed_decides_and_the_pieces_it_is_done_in_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    clusters = clusters_of([None] * 7)
    values = np.arange(7.0)
    whole = bootstrap(mean(values), clusters, resamples=50, seed=4)["mean"]
    monkeypatch.setattr(module, "_WEIGHTS_AT_ONCE", 60)
    assert bootstrap(mean(values), clusters, resamples=50, seed=4)["mean"].tolist() == whole.tolist()
    assert bootstrap(mean(values), clusters, resamples=50, seed=5)["mean"].tolist() != whole.tolist()


def test_an_interval_is_the_middle_95_percent_of_what_is_defined() -> None:
    found = interval(np.append(np.arange(101.0), [np.nan] * 5))
    assert (found.low, found.high, found.undefined) == (2.5, 97.5, 5)
    withheld = interval(np.append(np.arange(90.0), [np.nan] * 6))
    assert (withheld.low, withheld.high, withheld.undefined) == (None, None, 6)


def test_two_images_of_two_classes_have_no_auc_in_half_of_the_resamples() -> None:
    clusters = clusters_of([None, None])
    values = bootstrap(ranking(np.array([0.2, 0.9]), np.array([False, True])), clusters, resamples=2000, seed=0)
    found = intervals(values, clusters)["auc"]
    assert found.low is None and found.undefined == pytest.approx(1000, abs=100)


def test_one_patient_has_no_spread() -> None:
    clusters = clusters_of(["a"] * 5)
    found = intervals(bootstrap(mean(np.arange(5.0)), clusters, resamples=100, seed=0), clusters)["mean"]
    assert (found.low, found.high, found.undefined) == (None, None, 0)


def coverage(patients: int, images: int, *, know_patients: bool, trials: int = 250) -> float:
    """How often the interval of an accuracy holds the true 0.8, where all images of a patient are right or wrong."""
    rng = np.random.default_rng(11)
    inside = 0
    for trial in range(trials):
        right = np.repeat(rng.random(patients) < 0.8, images).astype(float)
        names = [str(i // images) if know_patients else None for i in range(patients * images)]
        clusters = clusters_of(names)
        found = intervals(bootstrap(mean(right), clusters, resamples=300, seed=trial), clusters)["mean"]
        assert found.low is not None and found.high is not None
        inside += found.low <= 0.8 <= found.high
    return inside / trials


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    assert 0.90 <= coverage(80, 1, know_patients=False) <= 0.98
    assert 0.90 <= coverage(80, 5, know_patients=True) <= 0.98
    # Taking five images of a patient for five patients makes them far too narrow: √5 times.
    assert coverage(80, 5, know_patients=False) < 0.75


def calibration(confidences: np.ndarray, hits: np.ndarray) -> Statistic:
    return probability_errors(confidences, hits, (confidences - hits) ** 2)


@pytest.mark.parametrize(("sharper", "true"), [(1.0, 0.002), (2.0, 0.103)])  # of 200,000 images
def test_the_interval_of_a_calibration_error_holds_the_truth_and_the_estimate(sharper: float, true: float) -> None:
    """The middle of the resamples would never hold the truth of a calibrated network, nor half of that of another."""
    rng = np.random.default_rng(0)
    covered, percentile = 0, 0
    for seed in range(60):
        logits = rng.normal(0, 1.5, 203)
        hits, confidences = rng.random(203) < 1 / (1 + np.exp(-logits)), 1 / (1 + np.exp(-logits * sharper))
        statistic, clusters = calibration(confidences, hits), clusters_of([None] * 203)
        values = bootstrap(statistic, clusters, resamples=200, seed=seed)
        found, measured = intervals(values, clusters)["ece"], unweighted(statistic, 203)["ece"]
        assert found.low is not None and found.high is not None and 0 <= found.low <= measured <= found.high
        covered += found.low <= true <= found.high
        percentile += np.quantile(values["ece"], 0.025) <= true
    assert covered >= 55 and percentile < 40


def test_the_low_end_of_a_calibration_error_is_what_was_measured_less_what_resampling_opened() -> None:
    statistic = calibration(np.array([0.9, 0.9, 0.1]), np.array([True, False, False]))
    # Gaps of the upper bin: 0.1 and −0.9; of the lower: −0.1; measured Σ|gap| = 0.8/3 + 0.1/3.
    found = statistic(np.array([[1.0, 1, 1], [3, 0, 0]]))
    assert found["ece"] == pytest.approx([0.3, 0.1])
    assert found["ece#low"] == pytest.approx([0.3, 0.3 - (0.1 + 0.8 / 3 + 0.1 / 3)])
    assert unweighted(statistic, 3).keys() == {"brier", "ece"}
    assert intervals(found, clusters_of(["a", "b", "c"]))["ece"].low == 0  # no error is below it


def test_the_method_is_told() -> None:
    body = method(clusters_of(["a", "b", "a"]), resamples=2000, seed=7, one_class=3)
    assert body == {
        "method": "percentile bootstrap", "level": 0.95, "resamples": 2000, "seed": 7, "unit": "patient", "clusters": 2,
        "images_without_patient": 0, "resamples_without_a_class": 3,
    }  # fmt: skip
    assert described(body) == (
        "95 % intervals: bootstrap of 2 patients, 2,000 resamples. So few patients: the true intervals are wider"
    )
    partly = described(method(clusters_of([*"ab", None] * 20), resamples=100, seed=0, one_class=0))
    assert "60 images" in partly and "the patients of 20 are not known" in partly and "few" not in partly
    assert "no patient is known" in described(method(clusters_of([None] * 40), resamples=100, seed=0, one_class=0))
