"""DeLong and McNemar against slow references, the bootstrap, closed forms and their own promise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mstl.evaluation.intervals import bootstrap, clusters_of
from mstl.evaluation.paired import delong, mcnemar, placements
from mstl.evaluation.weighted import ranking


def kernel(x: float, y: float) -> float:
    return 1.0 if x > y else 0.5 if x == y else 0.0


def slow(scores: np.ndarray, positives: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    yes, no = scores[positives], scores[~positives]
    pairs = np.array([[kernel(x, y) for y in no] for x in yes])
    return pairs.mean(1), pairs.mean(0)


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(2, 12), st.integers(2, 12), st.sampled_from([3, 1000]))
def test_the_fast_algorithm_equals_all_pairs(seed: int, m: int, n: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    positives = rng.permutation(np.arange(m + n) < m)
    a, b = (rng.integers(0, levels, m + n) / levels for _ in range(2))
    for scores in (a, b):
        for fast, expected in zip(placements(scores, positives), slow(scores, positives), strict=True):
            np.testing.assert_allclose(fast, expected, atol=1e-12)
    # DeLong et al.: S = S10/m + S01/n of the two AUCs, L S L' with L = (−1, 1).
    (yes_a, no_a), (yes_b, no_b) = slow(a, positives), slow(b, positives)
    s = np.cov([yes_a, yes_b]) / m + np.cov([no_a, no_b]) / n
    variance = s[0, 0] + s[1, 1] - 2 * s[0, 1]
    found = delong(a, b, positives)
    assert found is not None
    assert found.difference == pytest.approx(yes_b.mean() - yes_a.mean(), abs=1e-12)
    assert found.standard_error == pytest.approx(math.sqrt(max(0, variance)), abs=1e-7)
    if variance > 1e-12:
        assert found.z == pytest.approx(found.difference / math.sqrt(variance), rel=1e-6)
        assert found.p == pytest.approx(math.erfc(abs(found.z) / math.sqrt(2)), rel=1e-9)
        assert found.high - found.low == pytest.approx(2 * 1.959964 * found.standard_error, rel=1e-6)
    mirrored = delong(b, a, positives)
    assert mirrored.difference == -found.difference and mirrored.p == found.p


def correlated(rng: np.random.Generator, n: int, gain: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    positives = np.arange(n) % 2 == 0
    shared = rng.normal(0, 1, n)
    a = positives + shared + rng.normal(0, 0.7, n)
    b = positives * (1 + gain) + shared + rng.normal(0, 0.7, n)
    return a, b, positives


def test_its_standard_error_is_that_of_the_bootstrap() -> None:
    a, b, positives = correlated(np.random.default_rng(0), 400)
    found = delong(a, b, positives)
    first, second = ranking(a, positives), ranking(b, positives)
    drawn = bootstrap(
        lambda w: {"d": second(w)["auc"] - first(w)["auc"]}, clusters_of([None] * 400), resamples=2000, seed=0
    )["d"]
    assert found.standard_error == pytest.approx(drawn.std(), rel=0.1)


def test_it_cries_wolf_in_five_of_a_hundred_and_sees_one_that_is_there() -> None:
    rng = np.random.default_rng(1)
    false = np.mean([delong(*correlated(rng, 80)).p < 0.05 for _ in range(500)])
    assert 0.02 <= false <= 0.085
    assert delong(*correlated(rng, 1000, gain=1.0)).p < 1e-6


def test_delong_where_nothing_varies() -> None:
    positives = np.array([True, True, False, False])
    good, flat = np.array([0.9, 0.8, 0.1, 0.2]), np.full(4, 0.5)
    same = delong(good, good, positives)
    assert (same.difference, same.standard_error, same.z, same.p) == (0, 0, 0, 1)
    apart = delong(flat, good, positives)  # 0.5 and 1 without any spread: no test can be made of it
    assert (apart.difference, apart.z, apart.p, apart.low) == (0.5, None, None, None)
    assert delong(good, flat, np.array([True, False, False, False])) is None
    assert delong(good, flat, np.array([True, True, True, False])) is None


def outcomes(only_a: int, only_b: int, both: int = 3, none: int = 2) -> tuple[np.ndarray, np.ndarray]:
    a = np.array([True] * only_a + [False] * only_b + [True] * both + [False] * none)
    b = np.array([False] * only_a + [True] * only_b + [True] * both + [False] * none)
    return a, b


@given(st.integers(0, 24), st.integers(0, 24))
def test_mcnemar_is_exact_when_few_differ(only_a: int, only_b: int) -> None:
    n = only_a + only_b
    found = mcnemar(*outcomes(only_a, only_b))
    assert (found.only_a, found.only_b) == (only_a, only_b)
    if n < 25:
        tail = sum(math.comb(n, k) for k in range(min(only_a, only_b) + 1)) / 2**n
        assert found.method == "exact binomial" and found.statistic is None
        assert found.p == pytest.approx(min(1, 2 * tail))
    else:
        assert found.method == "chi-squared"


def test_mcnemar_with_continuity_correction() -> None:
    found = mcnemar(*outcomes(10, 25))
    assert found.statistic == pytest.approx((15 - 1) ** 2 / 35)
    assert found.p == pytest.approx(math.erfc(math.sqrt(found.statistic / 2)))
    assert mcnemar(*outcomes(13, 12)).p == 1 and mcnemar(*outcomes(13, 13)).p == 1
    assert mcnemar(*outcomes(12, 12)).method == "exact binomial"
