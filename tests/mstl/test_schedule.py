"""The learning rate against its closed forms."""

import math

import pytest

from mstl.recipes import Optim, build_recipe
from mstl.schedule import learning_rate


def rates(optim: Optim, steps: int) -> list[float]:
    """The rate of every step of a training."""
    return [
        learning_rate(optim, epoch=epoch, step=step, steps=steps)
        for epoch in range(optim.epochs)
        for step in range(steps)
    ]


def test_the_papers_rate_falls_at_the_milestones_alone() -> None:
    found = rates(build_recipe("sstl_m").optim, steps=2)
    assert found == pytest.approx([0.03] * 240 + [0.003] * 80 + [0.0003] * 80)


def test_moco_v2_follows_half_a_cosine_epoch_by_epoch() -> None:
    found = rates(build_recipe("sstl_m", ssl="moco_v2").optim, steps=2)
    assert found == pytest.approx([0.015 * (1 + math.cos(math.pi * (n // 2) / 200)) for n in range(400)])
    assert (found[0], found[200]) == (pytest.approx(0.03), pytest.approx(0.015))


def test_simclr_warms_up_for_ten_epochs_and_then_falls_step_by_step() -> None:
    found = rates(build_recipe("sstl_m", ssl="simclr").optim, steps=2)
    assert found[:20] == pytest.approx([0.3 * n / 20 for n in range(1, 21)])
    assert found[20] == pytest.approx(0.3)
    assert found[20 + 190] == pytest.approx(0.15)  # half of what is left
    assert found[20:] == pytest.approx([0.15 * (1 + math.cos(math.pi * n / 380)) for n in range(380)])
    assert found[-1] > 0


def test_a_warm_up_by_epochs_goes_before_the_milestones() -> None:
    optim = Optim(epochs=6, lr=0.8, warmup_epochs=2, milestones=(4,), gamma=0.5)
    assert rates(optim, steps=3) == pytest.approx([0.4] * 3 + [0.8] * 9 + [0.4] * 6)


def test_steps_within_an_epoch_matter_only_where_asked() -> None:
    by_epoch = Optim(epochs=4, lr=1.0, schedule="cosine")
    by_step = by_epoch.model_copy(update={"lr_per": "step"})
    assert learning_rate(by_epoch, epoch=1, step=7, steps=8) == learning_rate(by_epoch, epoch=1, step=0, steps=8)
    assert learning_rate(by_step, epoch=1, step=4, steps=8) == pytest.approx((1 + math.cos(math.pi * 1.5 / 4)) / 2)
