"""Means over seeds and paired differences, against closed forms and a resampling written out."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_studies import finish, make_sets, plan_tiny, predicted, write_evaluation

from mstl.evaluation.compare import compare_runs
from mstl.evaluation.predictions import read_table
from mstl.study.estimates import contrast, estimate, level
from mstl.study.state import StudyState
from mstl.study.study_files import Result, read_study_folder

FULL, NONE = "finetune_full/resnet50-attn0/s{}", "finetune_no_tl/resnet50-attn0/s{}"


def test_one_seed_has_the_interval_for_other_images_alone() -> None:
    found = estimate({3: 0.5}, (0.4, 0.7))
    assert found is not None
    assert (found.mean, found.sd, found.seeds, found.seeds_span) == (0.5, None, (3,), None)
    assert found.images_span == (0.4, 0.7)
    assert found.span == pytest.approx((0.4, 0.7))
    bare = estimate({3: 0.5}, None)
    assert bare is not None and bare.span is None
    assert estimate({}, (0.0, 1.0)) is None


def test_seeds_by_students_t_and_both_reaches_as_squares() -> None:
    reach = 4.302652729911275 / math.sqrt(3)  # t of 2 degrees of freedom at 0.975, sd 1
    found = estimate({0: 1.0, 1: 2.0, 2: 3.0}, (1.5, 4.0))
    assert found is not None
    assert (found.mean, found.sd) == (2.0, 1.0)
    assert found.seeds_span == pytest.approx((2 - reach, 2 + reach))
    assert found.span == pytest.approx((2 - math.hypot(reach, 0.5), 2 + math.hypot(reach, 2.0)))
    cut = estimate({0: 1.0, 1: 2.0, 2: 3.0}, (1.5, 4.0), (0.0, 3.5))
    assert cut is not None
    assert cut.span == (0.0, 3.5)
    assert cut.images_span == (1.5, 3.5)
    alone = estimate({0: 1.0, 1: 2.0, 2: 3.0}, None)
    assert alone is not None and alone.span == alone.seeds_span


@pytest.mark.parametrize("seeds_sd", [0.3, 1.0, 3.0])
def test_the_interval_holds_the_truth_about_as_often_as_it_says(seeds_sd: float) -> None:
    """Images shift all seeds of a mean alike (sd 1), seeds each one by itself; the truth is 0."""
    random = np.random.default_rng(7)
    held = 0
    for _ in range(800):
        values = random.normal() + seeds_sd * random.normal(size=3)
        mean = float(values.mean())
        found = estimate(dict(enumerate(values.tolist())), (mean - 1.96, mean + 1.96))
        assert found is not None and found.span is not None
        held += found.span[0] < 0 < found.span[1]
    assert 0.94 < held / 800 < 0.99


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Result]:
    """Of one network: three seeds with and without transfer."""
    place = tmp_path_factory.mktemp("estimates")
    plan = plan_tiny(place, make_sets(place / "sets"))
    state = StudyState.open(plan)
    for name in ("stl_n/resnet50-attn0/s0", "sstl/resnet50-attn0/s0"):
        finish(state, name)
    for seed in range(3):
        finish(state, FULL.format(seed), 1.5)
        finish(state, NONE.format(seed), 0.5)
    return dict(read_study_folder(plan.out).results)


def of(results: dict[str, Result], pattern: str, seeds: tuple[int, ...] = (0, 1, 2)) -> list[Result]:
    return [results[pattern.format(seed)] for seed in seeds]


def test_a_level_is_the_mean_of_the_runs_with_the_mean_reach_of_their_intervals(results: dict[str, Result]) -> None:
    runs = of(results, FULL)
    bodies = [json.loads((run.folder / "metrics.json").read_text()) for run in runs]
    values = [body["metrics"]["auc"] for body in bodies]
    found = level(runs, "auc", (-1.0, 2.0))
    assert found is not None
    assert found.mean == pytest.approx(np.mean(values))
    assert found.sd == pytest.approx(np.std(values, ddof=1))
    ends = [np.mean([body["intervals"]["auc"][end] for body in bodies]) for end in ("low", "high")]
    assert found.images_span == pytest.approx(ends)
    lacking = replace(runs[0], values={})
    fewer = level([lacking, *runs[1:]], "auc", (0.0, 1.0))
    assert fewer is not None and fewer.seeds == (1, 2)


def test_a_difference_of_single_runs_is_that_of_mstl_compare(results: dict[str, Result]) -> None:
    full, none = (of(results, pattern, (1,)) for pattern in (FULL, NONE))
    body = compare_runs(none[0].folder.parents[1], full[0].folder.parents[1], split="test")
    for metric in ("accuracy", "f1", "auc"):
        found, row = contrast([(1, full), (-1, none)], metric), body["metrics"][metric]
        assert found is not None
        assert found.mean == pytest.approx(row["difference"])
        assert found.images_span == pytest.approx((row["interval"]["low"], row["interval"]["high"]))
        assert found.span == pytest.approx(found.images_span)
        assert found.seeds == (1,)


def test_a_difference_is_paired_over_seeds_and_images(results: dict[str, Result]) -> None:
    full, none = of(results, FULL), of(results, NONE)
    found = contrast([(1, full), (-1, none)], "accuracy")
    assert found is not None
    pairs = [a.values["accuracy"] - b.values["accuracy"] for a, b in zip(full, none, strict=True)]
    assert found.mean == pytest.approx(np.mean(pairs))
    assert found.sd == pytest.approx(np.std(pairs, ddof=1))
    hits = {}
    for run in (*full, *none):
        table = read_table(run.folder / "predictions.csv", classes=2, positive=1)
        hits[run.node.id] = table.predictions.probabilities.argmax(1) == table.predictions.labels
    n = len(hits[full[0].node.id])
    drawn = np.random.default_rng(0).integers(0, n, (2000, n))
    means = np.mean([hits[a.node.id][drawn].mean(1) - hits[b.node.id][drawn].mean(1)
                     for a, b in zip(full, none, strict=True)], axis=0)  # fmt: skip
    assert found.images_span == pytest.approx(np.quantile(means, (0.025, 0.975)))


def test_only_seeds_that_all_sides_have_are_compared(results: dict[str, Result]) -> None:
    found = contrast([(1, of(results, FULL, (0, 2))), (-1, of(results, NONE, (1, 2)))], "accuracy")
    assert found is not None and found.seeds == (2,)
    assert contrast([(1, of(results, FULL, (0,))), (-1, of(results, NONE, (1,)))], "accuracy") is None
    assert contrast([(1, of(results, FULL)), (-1, [])], "accuracy") is None
    assert contrast([(1, of(results, FULL)), (-1, of(results, NONE))], "no_such") is None


def test_other_images_are_never_compared(results: dict[str, Result]) -> None:
    full, none = of(results, FULL), of(results, NONE)
    other = [*none[:2], replace(none[2], images="other")]
    assert contrast([(1, full), (-1, other)], "accuracy") is None


def test_a_difference_of_differences(results: dict[str, Result]) -> None:
    full, none = of(results, FULL), of(results, NONE)
    found = contrast([(1, full), (-1, none), (-1, full), (1, none)], "auc")
    assert found is not None
    assert found.mean == pytest.approx(0)
    assert found.span == pytest.approx((0, 0), abs=1e-12)  # the same resamples on every side


def test_more_than_two_classes_have_no_interval_of_a_difference_for_other_images(
    results: dict[str, Result], tmp_path: Path
) -> None:
    (run,) = of(results, "stl_n/resnet50-attn0/s{}", (0,))
    assert {"accuracy", "top5_accuracy", "f1", "auc"} <= set(run.values)
    assert run.spans["accuracy"][0] <= run.values["accuracy"] <= run.spans["accuracy"][1]
    found = contrast([(1, [run]), (-1, [run])], "accuracy")
    assert found is not None and found.span is None


def test_one_patient_gives_no_interval_of_a_difference(tmp_path: Path) -> None:
    odd, none = "finetune_odd/resnet50-attn0/s0", NONE.format(0)
    plan = plan_tiny(tmp_path, make_sets(tmp_path / "sets"))
    state = StudyState.open(plan)
    for name in (odd, none):
        finish(state, name)
        planned = plan.nodes[name]
        table = predicted(planned, planned.data.manifest, "test", 1.0)
        alone = replace(table, patients=("one",) * len(table))
        write_evaluation(plan.out / planned.path, planned.data.manifest, "test", alone)
    found = read_study_folder(plan.out).results
    difference = contrast([(1, [found[odd]]), (-1, [found[none]])], "accuracy")
    assert difference is not None and difference.span is None
