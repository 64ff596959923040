"""Speed, losses and the time left, by a clock that the test holds."""

from __future__ import annotations

import math
from typing import Any

import pytest

from mstl.watching.meter import SMOOTHING_SECONDS, Meter, clock_text
from mstl.watching.text import figure, line_text, metrics_text
from tests.mstl.held_clock import Clock


def entry(step: int, **more: Any) -> dict[str, Any]:
    return {"step": step, "epoch": 0, "stage": "s", "loss": 1.0, "lr": 0.1, "images_per_second": 10.0, "data_wait": 0.5,
            "ranks": 2, "norm": 3.0, **more}  # fmt: skip


def run(meter: Meter, clock: Clock, steps: list[tuple[float, dict[str, Any]]]) -> None:
    for seconds, line in steps:
        clock.now += seconds
        meter.step(line)


def test_the_time_left_after_a_resume_is_by_this_sessions_steps_without_the_first() -> None:
    clock = Clock()
    meter = Meter(1000, clock)
    meter.start(900)
    assert meter.left_seconds is None and meter.steps_per_second is None
    run(meter, clock, [(60.0, entry(901))])  # the pipeline fills
    assert meter.left_seconds is None
    run(meter, clock, [(2.0, entry(step)) for step in range(902, 912)])
    assert meter.left_seconds == pytest.approx(2.0 * (1000 - 911))
    assert meter.steps_per_second == pytest.approx(0.5)
    assert meter.elapsed_seconds == pytest.approx(80.0)
    clock.now += 5.0  # within the step that follows
    assert meter.left_seconds == pytest.approx(2.0 * (1000 - 911) - 5.0)
    clock.now += 1e6
    assert meter.left_seconds == 0.0


def test_validations_count_for_the_time_left_and_not_for_the_speed() -> None:
    clock = Clock()
    meter = Meter(10, clock)
    meter.start(0)
    run(meter, clock, [(1.0, entry(step)) for step in (1, 2, 3)])
    clock.now += 30.0
    meter.mark()
    run(meter, clock, [(1.0, entry(4))])
    assert meter.steps_per_second == pytest.approx(1.0)
    assert meter.left_seconds == pytest.approx((1 + 1 + 31) / 3 * 6)


def test_what_is_shown_is_a_mean_over_time_in_which_long_steps_weigh_more() -> None:
    clock = Clock()
    meter = Meter(100, clock)
    meter.start(0)
    run(meter, clock, [(9.0, entry(1, loss=100.0))])
    assert meter.losses == {"loss": 100.0}  # the first line shows something
    steps = [(1.0, 4.0, 40.0), (3.0, 2.0, 13.0), (0.5, 1.0, 80.0)]
    run(meter, clock, [(s, entry(2 + i, loss=v, images_per_second=r)) for i, (s, v, r) in enumerate(steps)])
    ages = [3.5, 0.5, 0.0]
    weights = [s * math.exp(-age / SMOOTHING_SECONDS) for (s, _, _), age in zip(steps, ages, strict=True)]
    expected = [sum(w * step[k] for w, step in zip(weights, steps, strict=True)) / sum(weights) for k in (1, 2)]
    assert meter.losses["loss"] == pytest.approx(expected[0], rel=1e-4)
    assert meter.images_per_second == pytest.approx(expected[1], rel=1e-4)
    for _ in range(100):
        run(meter, clock, [(5.0, entry(50, loss=7.0))])
    assert meter.losses["loss"] == pytest.approx(7.0)


def test_a_loss_that_is_no_number_is_passed_over() -> None:
    clock = Clock()
    meter = Meter(100, clock)
    meter.start(0)
    run(meter, clock, [(1.0, entry(1)), (1.0, entry(2, loss=math.nan, skipped=1)), (1.0, entry(3, loss=None))])
    assert meter.losses == {"loss": pytest.approx(1.0)}


def test_a_line_says_all() -> None:
    clock = Clock()
    meter = Meter(4000, clock)
    meter.start(0)
    run(meter, clock, [(1.0, entry(1)), (0.5, entry(2, region=0.25, unreadable=3))])
    assert line_text(meter, epochs=50) == (
        "step 2/4,000 (0%), epoch 1/50, loss 1, region 0.25, unreadable 3, lr 0.1, 2 step/s, 10 img/s, "
        "50% waiting for data, 0:33:19 left"
    )
    assert (
        metrics_text({"step": 1, "epoch": 2, "split": "val", "auc": 0.93125, "f1": None, "x": math.nan}) == "auc 0.9313"
    )


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "-:--:--"), (0.4, "0:00:00"), (3599.6, "1:00:00"), (86_400 * 3 + 61, "3d 0:01:01")]
)
def test_times_read_as_people_write_them(seconds: float | None, text: str) -> None:
    assert clock_text(seconds) == text


def test_figures_have_three_digits() -> None:
    assert [figure(value) for value in (0.0123, 2.345, 12.6, 12_345.6)] == ["0.0123", "2.35", "13", "12,346"]
