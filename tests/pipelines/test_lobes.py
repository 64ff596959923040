"""Locating lungs against numpy and phantoms with known lungs; regions against plain crops."""

from __future__ import annotations

import os
from pathlib import Path

import locate_numpy
import numpy as np
import pytest
from nvidia.dali import fn
from PIL import Image
from run_graph import run_graph

from pipelines import lobes
from pipelines.recipe import REGION_NAMES


def phantom(seed: int, side: int = 96, window: str = "lung") -> tuple[np.ndarray, np.ndarray]:
    """A CT-like slice (body, two lungs, spine, vessels, table) and the true lung box in fractions."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side
    image = np.full((side, side), 5.0)

    def ellipse(cx: float, cy: float, rx: float, ry: float) -> np.ndarray:
        return ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 < 1

    image[ellipse(0.5, 0.48, 0.46, 0.38)] = 170
    lungs = np.zeros((side, side), bool)
    for cx in (0.3 + random.uniform(-0.02, 0.02), 0.7 + random.uniform(-0.02, 0.02)):
        lungs |= ellipse(cx, 0.47 + random.uniform(-0.03, 0.03), random.uniform(0.11, 0.15), random.uniform(0.2, 0.26))
    image[lungs] = 25
    image[ellipse(0.5, 0.68, 0.06, 0.06)] = 250
    for _ in range(6):
        vessel = ellipse(random.uniform(0.2, 0.8), random.uniform(0.3, 0.6), 0.012, 0.012)
        image[vessel & lungs] = 190
    image[int(0.93 * side) : int(0.93 * side) + max(1, side // 96), 5:-5] = 150  # the table
    if window == "soft":  # the lower part far brighter than the rest: body and lungs are one dark class at first
        image = np.minimum(image, 100)
        image[(y > 0.62) & ~lungs] = 255
    image = np.clip(image + random.normal(0, 4, image.shape), 0, 255).astype(np.uint8)
    columns, rows = np.flatnonzero(lungs.any(0)), np.flatnonzero(lungs.any(1))
    return image, np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) / side


def as_rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=2)


def locate(images: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes [N, 4], fallback [N] and thumbnails [N, 96, 96] of RGB images by the graph."""
    boxes, fallback, small = run_graph(lambda x: (*lobes.locate(x, "cpu"), lobes.thumbnail(x)), images)
    return np.stack(boxes), np.stack(fallback)[:, 0], np.stack(small)


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boxes."""
    size = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    both = float(np.prod(np.maximum(size, 0)))
    return both / (float(np.prod(a[2:] - a[:2])) + float(np.prod(b[2:] - b[:2])) - both)


def test_boundary_map_is_the_papers_rule() -> None:
    random = np.random.default_rng(0)
    maps = [
        random.integers(0, 6, (40, 33)),
        np.zeros((12, 9), int),
        np.kron(random.integers(0, 6, (5, 6)), np.ones((7, 7), int)),
    ]
    for quantised in maps:
        ((out,),) = run_graph(lambda q: lobes.boundary_map(fn.reshape(q, layout="HW")), [quantised.astype(np.float32)])
        assert np.array_equal(out > 0.5, locate_numpy.boundary(quantised))


def test_boxes_equal_the_numpy_oracle_on_phantoms_and_noise() -> None:
    random = np.random.default_rng(1)
    images = [phantom(seed)[0] for seed in range(12)] + [phantom(seed, window="soft")[0] for seed in range(4)]
    images += [random.integers(0, 256, (96, 96), dtype=np.uint8), np.full((96, 96), 90, np.uint8)]
    skewed = 255 * random.random((10, 12, 12)) ** 4  # the mean is far from a good threshold
    images += [np.kron(blocks, np.ones((8, 8))).astype(np.uint8) for blocks in skewed]
    images += [np.kron(random.integers(0, 256, (12, 12)), np.ones((8, 8))).astype(np.uint8) for _ in range(6)]
    boxes, fallback, small = locate([as_rgb(image) for image in images])
    for i, image in enumerate(images):
        assert np.array_equal(small[i], image), "a thumbnail of its own size is the image"
        expected, nothing = locate_numpy.locate(image)
        assert np.allclose(boxes[i], expected, atol=1e-6), i
        assert bool(fallback[i]) == nothing
    assert 0 < fallback.sum() < len(images)


def test_lungs_of_phantoms_are_found_at_any_size_and_shape() -> None:
    images, truth = [], []
    for seed, side in enumerate((96, 160, 256, 333, 96, 256)):
        image, box = phantom(seed, side, window="lung" if seed < 4 else "soft")
        images.append(as_rgb(np.asarray(Image.fromarray(image).resize((side, side * 3 // 4)))))
        truth.append(box)
    boxes, fallback, _ = locate(images)
    assert not fallback.any()
    assert min(overlap(a, b) for a, b in zip(boxes, truth, strict=True)) > 0.85


def test_an_image_without_lungs_falls_back_to_the_whole() -> None:
    boxes, fallback, _ = locate([np.full((50, 70, 3), 100, np.uint8), np.zeros((40, 40, 3), np.uint8)])
    assert fallback.tolist() == [1, 1]
    assert boxes.tolist() == [[0, 0, 1, 1]] * 2


def test_template_covers_the_box_once() -> None:
    assert tuple(lobes.TEMPLATE) == REGION_NAMES == ("ru", "rm", "rl", "lu", "ll")
    y, x = np.mgrid[:60, :60] / 60 + 1 / 120
    covered = np.zeros((60, 60), int)
    for cx, cy, w, h in lobes.TEMPLATE.values():
        covered += (np.abs(x - cx) < w / 2) & (np.abs(y - cy) < h / 2)
    assert (covered == 1).all()


def test_regions_show_their_own_part_of_the_box() -> None:
    """Each part of the box has its own colour: right lung (left in the image) in thirds, left lung in halves."""
    image = np.zeros((120, 160, 3), np.uint8)
    parts = {"ru": (30, 40, 60, 50), "rm": (30, 50, 60, 60), "rl": (30, 60, 60, 70),
             "lu": (60, 40, 90, 55), "ll": (60, 55, 90, 70)}  # fmt: skip
    for i, (x0, y0, x1, y1) in enumerate(parts.values()):
        image[y0:y1, x0:x1] = (40 + 40 * i, 200 - 30 * i, 10 * i)
    box = np.array([30 / 160, 40 / 120, 90 / 160, 70 / 120], np.float32)
    out = run_graph(lambda x, b: tuple(lobes.regions(x, b, 32)), [image], [box])
    for i, (region,) in enumerate(out):
        assert region.shape == (32, 32, 3)
        assert (region[4:-4, 4:-4] == (40 + 40 * i, 200 - 30 * i, 10 * i)).all(), REGION_NAMES[i]


def test_regions_are_pillows_resize_of_the_crop() -> None:
    y, x = np.mgrid[:96, :144]
    image = np.stack([128 + 100 * np.sin(x / 9), 128 + 100 * np.cos(y / 11), x + y], -1).astype(np.uint8)
    box = np.array([0.25, 0.125, 0.75, 0.875], np.float32)  # 36..108 x 12..84
    out = run_graph(lambda x, b: tuple(lobes.regions(x, b, 48)), [image], [box])
    corners = {"ru": (36, 12, 72, 36), "rm": (36, 36, 72, 60), "rl": (36, 60, 72, 84),
               "lu": (72, 12, 108, 48), "ll": (72, 48, 108, 84)}  # fmt: skip
    for (region,), corner in zip(out, corners.values(), strict=True):
        expected = Image.fromarray(image).resize((48, 48), Image.Resampling.BILINEAR, box=corner)
        difference = np.abs(region.astype(int) - np.asarray(expected).astype(int))
        assert difference[2:-2, 2:-2].max() <= 1
        assert difference.max() <= 8  # the graph sees beyond the crop's edge, Pillow does not


def test_lungs_of_real_slices_against_hand_checked_masks() -> None:
    """Box overlap over one patient's slices; the masks are those of the lung-mask data."""
    folder = Path(os.environ.get("MSTL_TEST_DATA", "")) / "lungmask"
    slices = sorted(p for p in folder.glob("*.png") if not p.stem.endswith("_mask")) if folder.is_dir() else []
    if not slices:
        pytest.skip("MSTL_TEST_DATA has no lungmask folder with real slices")
    boxes, _, _ = locate([np.asarray(Image.open(p).convert("RGB")) for p in slices])
    scores = []
    for path, box in zip(slices, boxes, strict=True):
        mask = np.asarray(Image.open(path.with_name(f"{path.stem}_mask.png")).convert("L")) > 0
        if mask.mean() < 0.02:
            continue
        columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
        truth = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) / np.tile(mask.shape[::-1], 2)
        scores.append(overlap(box, truth))
    assert len(scores) >= 20
    assert np.median(scores) >= 0.9
