"""Deletion and insertion against one pixel at a time and closed forms; the summary of many maps."""

from __future__ import annotations

import csv
import io
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mstl.evaluation.explain_curves import STEPS, area_under, deletion_curve, insertion_curve, pixel_ranks
from mstl.evaluation.explain_measure import Measured, chance_map, curves_figure, measure, measured_csv, summarise
from mstl.evaluation.lung_focus import LungFocus


class LooksAt(nn.Module):
    """Logits (0, gain x the mean of channel 0 over the left half): it needs nothing else."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        value = self.gain * x[:, 0, :, : x.shape[3] // 2].mean((1, 2))
        return torch.stack([torch.zeros_like(value), value], 1)


@pytest.fixture
def network() -> nn.Module:
    return LooksAt(4.0).eval()


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def slow_order(heat: Tensor, size: tuple[int, int]) -> list[int]:
    large = torch.nn.functional.interpolate(heat[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]
    values = large.flatten().tolist()
    return sorted(range(len(values)), key=lambda pixel: -values[pixel])


def test_curves_equal_changing_one_pixel_after_the_other(network: nn.Module) -> None:
    random = torch.Generator().manual_seed(1)
    x, heat = torch.randn(3, 8, 10, generator=random), torch.rand(8, 10, generator=random)
    order = slow_order(heat, (8, 10))
    ranks = pixel_ranks(heat, (8, 10), generator())
    assert [int((ranks == place).nonzero()[0] @ torch.tensor([10, 1])) for place in range(80)] == order
    expected = []
    image = x.clone()
    for step in range(STEPS + 1):
        for pixel in order[: round(80 * step / STEPS)]:
            image[:, pixel // 10, pixel % 10] = 0
        expected.append(float(network(image[None]).double().softmax(1)[0, 1]))
    np.testing.assert_allclose(deletion_curve(network, x, ranks, 1), expected, rtol=1e-6)
    np.testing.assert_allclose(deletion_curve(network, x, ranks, 0), 1 - np.array(expected), rtol=1e-6)


def test_insertion_begins_blurred_and_ends_with_the_image(network: nn.Module) -> None:
    random = torch.Generator().manual_seed(2)
    x, heat = torch.randn(3, 32, 32, generator=random), torch.rand(4, 4, generator=random)
    curve = insertion_curve(network, x, pixel_ranks(heat, (32, 32), generator()), 1)
    assert curve[-1] == pytest.approx(float(network(x[None]).double().softmax(1)[0, 1]), rel=1e-6)
    even = torch.full_like(x, 0.7)  # blurred, it is the same
    flat = insertion_curve(network, even, pixel_ranks(heat, (32, 32), generator()), 1)
    np.testing.assert_allclose(flat, flat[0], rtol=1e-5)
    shades = torch.zeros(3, 32, 32)
    shades[:, :, :16] = 1
    first = insertion_curve(network, shades, pixel_ranks(heat, (32, 32), generator()), 1)[0]
    assert 0.5 < first < float(network(shades[None]).softmax(1)[0, 1])  # some of it has flowed over the border


def test_a_map_that_knows_beats_one_that_is_wrong(network: nn.Module) -> None:
    x = torch.ones(3, 16, 16)
    knows, wrong = torch.zeros(2, 2), torch.zeros(2, 2)
    knows[:, 0], wrong[:, 1] = 1, 1
    curves = {
        name: deletion_curve(network, x, pixel_ranks(heat, (16, 16), generator()), 1)
        for name, heat in (("knows", knows), ("wrong", wrong))
    }
    certain = float(network(x[None]).double().softmax(1)[0, 1])
    assert curves["knows"][STEPS // 2] == pytest.approx(0.5) and curves["wrong"][STEPS // 2] == pytest.approx(certain)
    assert area_under(curves["knows"]) < area_under(curves["wrong"]) - 0.2


def test_equal_pixels_stand_in_no_order_of_their_own() -> None:
    ranks = pixel_ranks(torch.zeros(4, 4), (64, 64), generator())
    assert sorted(ranks.flatten().tolist()) == list(range(64 * 64))
    first = ranks < 64 * 64 / 4
    for part in (first[:32], first[32:], first[:, :32], first[:, 32:]):
        assert 0.2 < float(part.float().mean()) < 0.3
    assert torch.equal(ranks, pixel_ranks(torch.zeros(4, 4), (64, 64), generator()))


def test_the_area_is_that_of_the_trapezoids() -> None:
    line = np.linspace(1, 0, STEPS + 1)
    assert area_under(line) == pytest.approx(0.5)
    assert area_under(line**0) == pytest.approx(1)
    assert area_under(np.array([0.0, 1.0, 1.0])) == pytest.approx(0.75)


def test_training_mode_is_a_programmers_error() -> None:
    with pytest.raises(AssertionError, match="evaluation mode"):
        deletion_curve(LooksAt(1.0).train(), torch.zeros(3, 4, 4), torch.arange(16).reshape(4, 4), 0)


def test_an_empty_map_orders_nothing(network: nn.Module) -> None:
    focus, deletion, insertion = measure(network, torch.ones(3, 8, 8), torch.zeros(2, 2), torch.ones(8, 8), 1, name="a")
    assert math.isnan(focus.mass) and np.isnan(deletion).all() and np.isnan(insertion).all()
    assert deletion.shape == insertion.shape == (STEPS + 1,)


def test_what_is_drawn_is_drawn_from_the_images_name(network: nn.Module) -> None:
    heat = torch.zeros(2, 2)
    heat[0, 0] = 1
    x = torch.randn(3, 8, 8, generator=generator())
    once, again, other = (measure(network, x, heat, torch.ones(8, 8), 1, name=name)[1] for name in ("a", "a", "b"))
    np.testing.assert_array_equal(once, again)
    assert not np.array_equal(once, other)
    assert torch.equal(chance_map(heat, name="a"), chance_map(heat, name="a"))
    assert not torch.equal(chance_map(heat, name="a"), chance_map(heat, name="b"))
    assert chance_map(heat, name="a").shape == (2, 2)


def row(image: str, kind: str, mass: float, *, patient: str | None = None, run: str = "r") -> Measured:
    focus = LungFocus(lung_area=0.25, mass=mass, lift=mass / 0.25, hit=float(mass > 0.5))
    curve = np.full(STEPS + 1, mass)
    return Measured(
        image=image, patient=patient, label="COVID", run=run, map=kind, explained="COVID", probability=0.75,
        focus=focus, deletion=curve, insertion=1 - curve,
    )  # fmt: skip


def test_the_summary_has_means_intervals_and_the_difference_of_maps() -> None:
    random = np.random.default_rng(0)
    cam, attention = random.random(400), random.random(400) * 0.5 + 0.5
    rows = [row(f"i{i}", kind, mass[i]) for i in range(400) for kind, mass in (("CAM", cam), ("attention", attention))]
    summary, how = summarise(rows)
    by_map = {one["map"]: one for one in summary}
    assert list(by_map) == ["CAM", "attention", "attention − CAM"]
    assert (how["unit"], how["clusters"], how["level"]) == ("image", 400, 0.95)
    for name, values in (("CAM", cam), ("attention", attention), ("attention − CAM", attention - cam)):
        found = by_map[name]["lung_mass"]
        assert found["mean"] == pytest.approx(values.mean()) and found["n"] == 400
        reach = 1.96 * values.std() / 20
        assert found["low"] == pytest.approx(values.mean() - reach, abs=0.2 * reach)
        assert found["high"] == pytest.approx(values.mean() + reach, abs=0.2 * reach)
    assert by_map["CAM"]["lift"]["mean"] == pytest.approx(cam.mean() * 4)
    assert by_map["CAM"]["pointing_hit"]["mean"] == pytest.approx((cam > 0.5).mean())
    assert by_map["attention"]["deletion_auc"]["mean"] == pytest.approx(attention.mean())
    assert by_map["attention"]["insertion_auc"]["mean"] == pytest.approx(1 - attention.mean())


def test_images_of_a_patient_are_drawn_together() -> None:
    """Two patients whose images are all alike: 40 images tell no more than 2 do."""
    rows = [row(f"i{i}", "CAM", float(i % 2), patient=f"p{i % 2}") for i in range(40)]
    (one,), how = summarise(rows)
    assert (how["unit"], how["clusters"]) == ("patient", 2)
    assert (one["lung_mass"]["low"], one["lung_mass"]["high"]) == (0, 1)
    (apart,), how = summarise([row(r.image, "CAM", r.focus.mass) for r in rows])
    assert how["unit"] == "image" and 0.3 < apart["lung_mass"]["low"] < apart["lung_mass"]["high"] < 0.7


def test_what_is_not_defined_is_left_out_and_counted() -> None:
    masses = [math.nan, 0.2, 0.4, 0.6]
    (one,), _ = summarise([row(f"i{i}", "CAM", mass) for i, mass in enumerate(masses)])
    assert one["lung_mass"]["mean"] == pytest.approx(0.4) and one["lung_mass"]["n"] == 3
    assert one["lung_area"]["n"] == 4
    (none,), _ = summarise([row("i", "CAM", math.nan), row("j", "CAM", math.nan)])
    assert none["lung_mass"] == {"mean": None, "low": None, "high": None, "n": 0}
    (single,), _ = summarise([row("i", "CAM", 0.3)])
    assert single["lung_mass"] == {"mean": pytest.approx(0.3), "low": None, "high": None, "n": 1}


def test_the_table_leaves_empty_what_is_not_defined() -> None:
    lines = list(
        csv.DictReader(io.StringIO(measured_csv([row("a", "CAM", math.nan), row("b", "CAM", 0.5, patient="p")])))
    )
    assert lines[0]["lung_mass"] == lines[0]["lift"] == lines[0]["deletion_auc"] == lines[0]["patient"] == ""
    assert (lines[1]["image"], lines[1]["patient"], lines[1]["lung_mass"], lines[1]["lift"]) == ("b", "p", "0.5", "2.0")
    assert float(lines[1]["insertion_auc"]) == pytest.approx(0.5)


def test_the_figure_shows_the_mean_curve_of_every_map(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    monkeypatch.setattr("mstl.evaluation.explain_measure.to_png", lambda figure: drawn.append(figure) or b"")
    curves_figure(
        [row("a", "CAM", 0.2), row("b", "CAM", 0.4), row("a", "chance", math.nan), row("b", "chance", 0.9)], title=""
    )
    deletion, insertion = drawn[0].axes
    assert [line.get_label() for line in deletion.lines] == ["CAM (AUC 0.300)", "chance (AUC 0.900)"]
    np.testing.assert_allclose(deletion.lines[0].get_ydata(), 0.3)
    np.testing.assert_allclose(insertion.lines[0].get_ydata(), 0.7)
    assert len(deletion.lines[0].get_xdata()) == STEPS + 1
