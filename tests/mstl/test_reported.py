"""The paper's figures: consistent with each other, with every printing error kept and marked."""

from __future__ import annotations

import pytest

from mstl.study.paper_tables import baseline_of
from mstl.study.reported import PAPER_NETWORKS, Key, Reported, prose_errors, reported, reported_difference

THREE = ("accuracy", "f1", "auc")


def test_every_cell_of_the_six_tables_is_there() -> None:
    columns: dict[int, tuple[str | None, ...]] = {
        1: (None,), 2: ("full",), 3: ("moco", "simclr", "full"), 4: ("no_tl", "full"), 5: ("no_tl", "stl_n", "stl_m"),
        6: ("no_tl", "stl_n", "stl_n+stl_m"),
    }  # fmt: skip
    metrics = {1: ("accuracy", "top5_accuracy"), 6: ("bits",)}
    wanted = {
        (table, network, column, metric)
        for table, names in columns.items()
        for network in PAPER_NETWORKS
        for column in names
        for metric in metrics.get(table, THREE)
    }
    assert set(reported()) == wanted
    assert all(-1 < one.value < 0 if key[0] == 6 else 77 < one.value < 98 for key, one in reported().items())


def test_tables_repeat_the_same_values() -> None:
    for network in PAPER_NETWORKS:
        for metric in THREE:
            full = {reported()[table, network, "full", metric].value for table in (2, 3, 4)}
            none = {reported()[table, network, "no_tl", metric].value for table in (4, 5)}
            assert len(full) == len(none) == 1


def test_printed_gains_are_the_differences_but_for_the_marked_misprints() -> None:
    wrong = set()
    for key, one in reported().items():
        table, network, _, metric = key
        if one.gain is None:
            continue
        base = {1: (baseline_of(network), None), 2: (baseline_of(network), "full")}.get(table, (network, "no_tl"))
        before = reported()[table, base[0], base[1], metric].value
        if round(one.value - before, 1) != one.gain:
            wrong.add(key)
            assert one.misprint is not None
            assert f"+{one.gain}" in one.misprint
            assert f"+{one.value - before:.1f}" in one.misprint
    assert wrong == {(5, "resnet101-attn1", "stl_m", "accuracy"), (5, "resnet50-attn1", "stl_m", "auc")}
    marked = {key for key, one in reported().items() if one.misprint}
    assert marked == wrong | {(6, "resnet101-attn0", "stl_n", "bits")}
    assert len(prose_errors()) == 5


def test_gains_stand_wherever_the_paper_prints_one() -> None:
    bare = {(key[0], key[2]) for key, one in reported().items() if one.gain is None and "attn0" not in key[1]}
    assert bare == {(3, "moco"), (3, "simclr"), (3, "full"), (4, "no_tl"), (5, "no_tl"),
                    (6, "no_tl"), (6, "stl_n"), (6, "stl_n+stl_m")}  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value", "gain"),
    [
        ((1, "resnet101-attn5", None, "top5_accuracy"), 94.6, 0.6),
        ((3, "resnet50-attn1", "simclr", "f1"), 91.7, None),
        ((4, "resnet101-attn5", "full", "auc"), 97.8, 10.2),
        ((5, "resnet50-attn5", "stl_n", "auc"), 90.2, 3.3),
        ((6, "resnet101-attn5", "stl_n+stl_m", "bits"), -0.865, None),
    ],
)
def test_values_are_those_printed(key: Key, value: float, gain: float | None) -> None:
    assert reported()[key] == Reported(value=value, gain=gain)


def test_differences_of_printed_values() -> None:
    found = reported_difference(("resnet50-attn1", "stl_m"), ("resnet50-attn1", "no_tl"), "auc")
    assert found == pytest.approx(6.4)  # not the 6.6 that is printed
    assert reported_difference(("resnet14-attn1", "stl_m"), ("resnet14-attn1", "no_tl"), "auc") is None
