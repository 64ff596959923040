"""Heatmaps as pictures: colours, overlays and the grid of the paper's figure 4."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib import colormaps
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion  # type: ignore[import-untyped]
from torch import Tensor

from mstl.evaluation.explain_maps import enlarged, min_max
from mstl.study.figures import image_grid
from pipelines.recipe import IMAGENET_MEAN, IMAGENET_STD

HEAT = colormaps["RdYlBu_r"]  # blue low, red high as in figure 4, and told apart with any colour vision
HEAT_SHARE = 0.45  # of the overlay, ours
OUTLINE = (1.0, 1.0, 1.0)
OUTLINE_ON_GREY = (0.902, 0.624, 0.0)  # Okabe and Ito's orange: seen on black lungs and on white bone
Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """One row of a grid: the image's name, the image [H, W, 3] in 0..1, and its lung mask [H, W] bool where given."""

    name: str
    image: Floats
    mask: NDArray[np.bool_] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class HeatColumn:
    """One kind of map for every row of a grid: maps [B, h, w], drawn as a column of its own and as an overlay."""

    name: str
    maps: Tensor


def heat_images(maps: Tensor, size: tuple[int, int]) -> Floats:
    """[B, h, w] maps → [B, H, W, 3] colours: min–max, bilinear to `size` (H, W), blue low and red high."""
    return np.asarray(HEAT(enlarged(min_max(maps.float()), size).cpu().numpy()), dtype=np.float32)[..., :3]


def plain_images(x: Tensor) -> Floats:
    """Normalised [B, 3, H, W] → [B, H, W, 3] in 0..1."""
    mean, std = (torch.tensor(v, dtype=x.dtype, device=x.device)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (x * std + mean).clamp(0, 1).permute(0, 2, 3, 1).float().cpu().numpy()


def heatmap_grid(rows: Sequence[Shown], columns: Sequence[HeatColumn], *, title: str) -> bytes:
    """Figure 4 as PNG: each row an image, then for each kind of map the heat and its overlay.

    Every map is coloured on its own scale, blue low and red high; lungs are outlined where a row has a mask. A map
    that is 0 everywhere is said to be empty, since it looks as if it had failed.
    """
    size = (rows[0].image.shape[0], rows[0].image.shape[1])
    heats = [heat_images(column.maps, size) for column in columns]
    names, cells = [], []
    for index, row in enumerate(rows):
        line = [_outlined(row.image, row.mask, OUTLINE_ON_GREY)]
        for heat in heats:
            overlay = (1 - HEAT_SHARE) * row.image + HEAT_SHARE * heat[index]
            line += [_outlined(heat[index], row.mask, OUTLINE), _outlined(overlay, row.mask, OUTLINE)]
        cells.append(line)
        empty = [column.name for column in columns if not column.maps[index].amax() > 0]
        names.append("\n".join([row.name, *(f"{name} empty" for name in empty)]))
    titles = [text for column in columns for text in (column.name, f"{column.name} overlay")]
    return image_grid(cells, columns=["original", *titles], names=names, title=title)


def _outlined(image: Floats, mask: NDArray[np.bool_] | None, colour: tuple[float, float, float]) -> Floats:
    """The image with the border of the mask drawn on it, one pixel inside."""
    if mask is None:
        return image
    drawn = image.copy()
    drawn[mask & ~binary_erosion(mask)] = colour
    return drawn
