"""The LEEP score against loops over the paper's sums, closed forms, and the bounds that any LEEP keeps."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from mstl.evaluation.leep import leep


def slow_leep(source: NDArray[np.float64], labels: list[int]) -> float:
    """Eq. 7, sum by sum."""
    n, z_count = source.shape
    total = 0.0
    for i in range(n):
        inner = 0.0
        for z in range(z_count):
            joint = math.fsum(float(source[j, z]) for j in range(n) if labels[j] == labels[i]) / n
            margin = math.fsum(float(source[j, z]) for j in range(n)) / n
            if margin > 0:
                inner += joint / margin * float(source[i, z])
        total += math.log(inner)
    return total / n


def entropy(shares: list[float]) -> float:
    return -math.fsum(p * math.log(p) for p in shares if p > 0)


def conditional_entropy(source: NDArray[np.float64], labels: list[int]) -> float:
    """H(Y|Z) of the joint distribution that LEEP estimates."""
    n, z_count = source.shape
    total = 0.0
    for z in range(z_count):
        margin = math.fsum(float(p) for p in source[:, z]) / n
        for y in set(labels):
            joint = math.fsum(float(source[i, z]) for i in range(n) if labels[i] == y) / n
            if joint > 0:
                total -= joint * math.log(joint / margin)
    return total


@st.composite
def cases(draw: st.DrawFn) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Distributions from flat to all but certain, some source classes empty."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, z_count, y_count = draw(st.integers(1, 12)), draw(st.integers(1, 6)), draw(st.integers(1, 4))
    source = np.exp(random.normal(scale=draw(st.sampled_from([0.1, 1.0, 5.0, 40.0])), size=(n, z_count)))
    empty = random.random(z_count) < 0.3
    empty[random.integers(z_count)] = False
    source[:, empty] = 0
    return source / source.sum(1, keepdims=True), random.integers(y_count, size=n)


@given(cases())
def test_it_equals_the_papers_sums(case: tuple[NDArray[np.float64], NDArray[np.int64]]) -> None:
    source, labels = case
    assert leep(source, labels).nats == pytest.approx(slow_leep(source, labels.tolist()), rel=1e-10, abs=1e-12)


@given(cases())
def test_it_lies_between_the_entropies_and_0(case: tuple[NDArray[np.float64], NDArray[np.int64]]) -> None:
    source, labels = case
    found = leep(source, labels)
    shares = [float((labels == y).mean()) for y in set(labels.tolist())]
    assert found.floor_nats == pytest.approx(-entropy(shares), abs=1e-12)
    given_z = -conditional_entropy(source, labels.tolist())
    assert found.floor_nats <= given_z + 1e-12
    assert given_z <= found.nats + 1e-12
    assert found.nats <= 0
    assert found.bits == pytest.approx(found.nats / 0.6931471805599453)
    assert found.floor_bits == pytest.approx(-entropy(shares) * 1.4426950408889634)


@given(cases(), st.integers(0, 1000))
def test_it_does_not_depend_on_order_names_copies_or_how_source_classes_are_cut(
    case: tuple[NDArray[np.float64], NDArray[np.int64]], seed: int
) -> None:
    source, labels = case
    score = pytest.approx(leep(source, labels).nats, rel=1e-9, abs=1e-12)
    random = np.random.default_rng(seed)
    order = random.permutation(len(labels))
    assert leep(source[order], labels[order]).nats == score
    assert leep(source[:, random.permutation(source.shape[1])], labels).nats == score
    assert leep(source, labels * 7 + 3).nats == score
    assert leep(np.concatenate([source, source]), np.concatenate([labels, labels])).nats == score
    assert leep(np.concatenate([source, np.zeros((len(labels), 2))], 1), labels).nats == score
    share = random.random(source.shape[1])
    assert leep(np.concatenate([source * share, source * (1 - share)], 1), labels).nats == score


def test_certain_sources_have_closed_forms() -> None:
    labels = np.array([0, 0, 1, 1, 1, 2])
    perfect = np.eye(5)[[4, 4, 0, 0, 0, 2]]  # each class has source classes of its own
    assert leep(perfect, labels).nats == 0
    assert leep(np.tile([[0.2, 0.5, 0.3]], (6, 1)), labels).nats == pytest.approx(-entropy([2 / 6, 3 / 6, 1 / 6]))
    mixed = np.eye(2)[[0, 0, 0, 1, 1, 1]]  # one-hot: LEEP is −H(Y|Z)
    expected = -(0.5 * entropy([2 / 3, 1 / 3]) + 0.5 * entropy([2 / 3, 1 / 3]))
    assert leep(mixed, labels).nats == pytest.approx(expected)


def test_one_target_class_is_certain() -> None:
    source = np.random.default_rng(0).dirichlet(np.ones(1000), size=50)
    found = leep(source, np.full(50, 3))
    assert found.nats == pytest.approx(0, abs=1e-12) and found.nats <= 0
    assert found.floor_nats == 0


def test_float64_keeps_what_float32_would_lose() -> None:
    """Two images whose classes differ only in probabilities far below float32's smallest number."""
    small = 1e-200
    source = np.array([[1.0, small, 0.0], [1.0, 0.0, small]])
    assert leep(source, np.array([0, 1])).nats == pytest.approx(-math.log(2))
    certain = np.array([[small, 1.0], [1.0, small]])
    assert leep(certain, np.array([0, 1])).nats == pytest.approx(0, abs=1e-150)
    # A float32 mean over many images has fewer digits than LEEP's differences between networks (paper: 0.001).
    random = np.random.default_rng(1)
    many, labels = random.dirichlet(np.ones(3), size=20_000), random.integers(2, size=20_000)
    joint = [[math.fsum(many[labels == y, z]) / 20_000 for z in range(3)] for y in range(2)]
    slow = math.fsum(
        math.log(sum(joint[y][z] / (joint[0][z] + joint[1][z]) * p for z, p in enumerate(row)))
        for row, y in zip(many.tolist(), labels.tolist(), strict=True)
    )
    assert leep(many, labels).nats == pytest.approx(slow / 20_000, rel=1e-12)


def test_the_papers_table_is_possible_in_bits_only() -> None:
    """Table 6 lies in −.918 … −.865; the training split of COVID19-CT has 191 and 234 images."""
    labels = np.array([1] * 191 + [0] * 234)
    found = leep(np.full((425, 2), 0.5), labels)
    assert found.floor_nats == pytest.approx(-0.688, abs=5e-4)
    assert found.floor_bits < -0.918 < -0.865 < found.floor_nats


@pytest.mark.parametrize(
    ("source", "labels"),
    [
        (np.zeros((0, 3)), np.zeros(0, int)),
        (np.array([[0.5, 0.5]]), np.array([0, 1])),
        (np.array([[0.5, 0.6]]), np.array([0])),
        (np.array([[1.5, -0.5]]), np.array([0])),
        (np.array([[np.nan, 1.0]]), np.array([0])),
        (np.array([0.5, 0.5]), np.array([0])),
    ],
)
def test_what_is_no_distribution_is_refused(source: NDArray[np.float64], labels: NDArray[np.int64]) -> None:
    with pytest.raises(ValueError, match=r"are not \[N, Z\] and \[N\]|no distribution"):
        leep(source, labels)
