"""How much of a heatmap lies in the lungs: the share of its mass, its lift over chance, and whether its peak does."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from mstl.evaluation.explain_maps import enlarged

INSIDE = 0.5  # of a pixel: from this share on it counts as lung


@dataclass(frozen=True, kw_only=True, slots=True)
class LungFocus:
    """One map against one lung mask, as fractions of 1; nan where the map or the mask is empty.

    lung_area: the lungs' share of the image, which is also what `mass` would be, and how often `hit` would be true,
    of a map that knows nothing. mass: the share of the map's sum that lies in the lungs. lift: mass / lung_area.
    hit: 1 where the map's highest cell has its centre in the lungs (the pointing game), else 0.
    """

    lung_area: float
    mass: float
    lift: float
    hit: float


def lung_focus(heat: Tensor, mask: Tensor) -> LungFocus:
    """Compare a map [h, w], not negative and not scaled, with a mask [H, W] of lung shares 0..1 of the same image.

    The map is enlarged bilinearly to the mask's size, as it is drawn. Its peak is the centre of its highest cell (the
    first of equals): enlarged, a cell at the border has its value up to the border, and no pixel of that stands out.
    """
    assert heat.ndim == 2 and mask.ndim == 2 and bool((heat >= 0).all())
    height, width = int(mask.shape[0]), int(mask.shape[1])
    mask = mask.double().cpu()
    large = enlarged(heat[None].cpu(), (height, width))[0].double()
    area, total = float(mask.mean()), float(large.sum())
    if not area > 0 or not total > 0:
        return LungFocus(lung_area=area, mass=math.nan, lift=math.nan, hit=math.nan)
    mass = float((large * mask).sum()) / total
    row, column = divmod(int(heat.argmax()), int(heat.shape[1]))
    peak = mask[int((row + 0.5) * height / heat.shape[0]), int((column + 0.5) * width / heat.shape[1])]
    return LungFocus(lung_area=area, mass=mass, lift=mass / area, hit=float(peak >= INSIDE))
