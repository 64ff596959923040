"""How much of a map lies in the lungs: closed forms, a slow reference, and what is not defined."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mstl.evaluation.lung_focus import lung_focus


def slow_bilinear(heat: Tensor, row: int, column: int, height: int, width: int) -> float:
    """The enlarged map at the centre of one pixel, its border continued outwards."""
    y = (row + 0.5) * heat.shape[0] / height - 0.5
    x = (column + 0.5) * heat.shape[1] / width - 0.5
    total = 0.0
    for i in (math.floor(y), math.floor(y) + 1):
        for j in (math.floor(x), math.floor(x) + 1):
            share = (1 - abs(y - i)) * (1 - abs(x - j))
            inside_i, inside_j = min(max(i, 0), heat.shape[0] - 1), min(max(j, 0), heat.shape[1] - 1)
            total += share * float(heat[inside_i, inside_j])
    return total


@pytest.mark.parametrize("seed", range(5))
def test_mass_and_lift_equal_the_sums_pixel_by_pixel(seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    heat, mask = torch.rand(3, 4, generator=random), torch.rand(10, 14, generator=random)
    inside = everything = 0.0
    for row in range(10):
        for column in range(14):
            value = slow_bilinear(heat, row, column, 10, 14)
            inside += value * float(mask[row, column])
            everything += value
    found = lung_focus(heat, mask)
    assert found.mass == pytest.approx(inside / everything, rel=1e-5)
    assert found.lung_area == pytest.approx(float(mask.mean()), rel=1e-6)
    assert found.lift == pytest.approx(found.mass / found.lung_area)


def test_an_even_map_has_lift_1_whatever_the_mask() -> None:
    mask = (torch.rand(32, 32, generator=torch.Generator().manual_seed(3)) > 0.8).float()
    found = lung_focus(torch.full((7, 7), 0.02), mask)
    assert found.mass == pytest.approx(found.lung_area, rel=1e-6)
    assert found.lift == pytest.approx(1)


def test_scale_does_not_matter_but_an_offset_does() -> None:
    random = torch.Generator().manual_seed(4)
    heat = torch.rand(4, 4, generator=random)
    mask = torch.zeros(16, 16)
    mask[:8] = 1
    assert lung_focus(heat * 1e-3, mask).mass == pytest.approx(lung_focus(heat, mask).mass, rel=1e-5)
    assert lung_focus(heat + 10, mask).lift == pytest.approx(1, abs=0.05)


def test_the_peak_is_the_centre_of_the_highest_cell() -> None:
    """Of a corner cell the enlarged map is highest in the image's corner too, where no lung is."""
    heat = torch.zeros(4, 4)
    heat[0, 3] = 1
    mask = torch.zeros(32, 32)
    mask[3:6, 27:30] = 1  # the centre of that cell is at (4, 28)
    assert lung_focus(heat, mask).hit == 1
    assert lung_focus(heat, 1 - mask).hit == 0
    assert lung_focus(heat, 0.4 * mask).hit == 0  # less than half of that pixel is lung
    wide = torch.zeros(2, 3)
    wide[1, 0] = 2
    mask = torch.zeros(20, 60)
    mask[15, 10] = 1
    assert lung_focus(wide, mask).hit == 1


def test_all_of_the_mass_may_lie_in_the_lungs() -> None:
    heat = torch.zeros(4, 4)
    heat[1:3, 1] = 1
    mask = torch.zeros(16, 16)
    mask[:, :12] = 1
    found = lung_focus(heat, mask)
    assert found.mass == pytest.approx(1) and found.lift == pytest.approx(4 / 3)


@pytest.mark.parametrize(("heat", "mask"), [(0.0, 1.0), (1.0, 0.0)])
def test_what_an_empty_map_or_mask_is_worth_is_not_defined(heat: float, mask: float) -> None:
    found = lung_focus(torch.full((2, 2), heat), torch.full((8, 8), mask))
    assert found.lung_area == mask
    assert math.isnan(found.mass) and math.isnan(found.lift) and math.isnan(found.hit)
