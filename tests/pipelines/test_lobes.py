"""Locating lungs against numpy and phantoms with known lungs; regions against plain crops."""

from __future__ import annotations

import os
from pathlib import Path

import ct_phantoms
import locate_numpy
import numpy as np
import pytest
from nvidia.dali import fn, types
from PIL import Image
from run_graph import run_graph

from pipelines import body, lobes, lungs, resize, thumbnail
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


def as_grey(image: object) -> object:
    return fn.color_space_conversion(image, image_type=types.RGB, output_type=types.GRAY)


def locate(
    images: list[np.ndarray], rule: lobes.Rule = "inner", *, by_nodes: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes [N, 4] and fallback [N] of RGB images by the graph."""
    boxes, fallback = run_graph(lambda x: lobes.locate(as_grey(x), rule=rule, by_nodes=by_nodes), images)
    return np.stack(boxes), np.stack(fallback)[:, 0]


def steps(image: object) -> tuple[object, ...]:
    """The graph's results on the way, for the oracle to go on from."""
    grey = as_grey(image)
    seen = thumbnail.resized(grey, lobes.SIDE)
    small = thumbnail.as_plane(thumbnail.resized(seen, body.SIDE))
    found = body.find_body(small)
    body_seen = thumbnail.as_plane(lobes.body_image(seen, found.window))
    x = thumbnail.inverted_where(body_seen, found.inverted)
    lung, _ = lungs.lung_mask(x, found)
    levels = fn.stack(fn.cast(found.inverted, dtype=types.FLOAT), found.edge_level, found.air_level)
    return small, found.window, levels, body_seen, lung, *lobes.locate(grey, by_nodes=True)


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


def cases() -> list[np.ndarray]:
    """Phantoms in every window and setting, and images that are no slice at all."""
    random = np.random.default_rng(1)
    images = [phantom(seed, 120)[0] for seed in range(8)] + [phantom(seed, 120, "soft")[0] for seed in range(4)]
    images += [255 - phantom(9, 120)[0], np.pad(phantom(8, 120)[0], 40, constant_values=255), phantom(7, 61)[0]]
    images += [phantom(6, 200)[0][40:170, 30:170], with_gas(phantom(5, 160)[0])]
    images += [random.integers(0, 256, (96, 96), dtype=np.uint8), np.full((96, 96), 90, np.uint8)]
    images += [np.full((30, 30), 255, np.uint8), np.zeros((30, 50), np.uint8)]
    skewed = 255 * random.random((10, 12, 12)) ** 4  # the mean is far from a good threshold
    images += [np.kron(blocks, np.ones((8, 8))).astype(np.uint8) for blocks in skewed]
    return images


def with_gas(image: np.ndarray) -> np.ndarray:
    """Gas as dark as the air outside in front of lungs that are clearly brighter than it; no table."""
    side = len(image)
    y, x = np.mgrid[:side, :side] / side
    image = np.where((image > 16) & (image < 60), image + 20, image)
    image[y > 0.9] = 5
    image[((x - 0.55) / 0.09) ** 2 + ((y - 0.185) / 0.035) ** 2 < 1] = 5
    return image


def test_every_step_equals_the_numpy_oracle() -> None:
    images = cases()
    fallbacks = []
    for case in zip(*run_graph(steps, [as_rgb(image) for image in images]), strict=True):
        small, window, levels, body_seen, lung, box, fallback = case
        expected_window, expected_levels = locate_numpy.find_body(small)
        assert np.allclose(window, expected_window, atol=1e-6)
        assert np.allclose(levels, expected_levels, atol=2e-3)
        expected_lung, expected_box, doubts = locate_numpy.find_lungs(body_seen, levels)
        doubtful = bool(doubts)
        assert np.array_equal(lung > 0.5, expected_lung)
        size = np.tile(window[2:] - window[:2], 2)
        whole = np.array([0, 0, 1, 1])
        assert np.allclose(box, whole if doubtful else np.tile(window[:2], 2) + expected_box * size, atol=1e-6)
        assert bool(fallback[0]) == doubtful
        fallbacks.append(doubtful)
    assert 2 <= sum(fallbacks) <= len(images) - 15


@pytest.mark.parametrize("rule", ["inner", "literal"])
def test_the_cpu_finds_in_numpy_what_a_gpus_nodes_find(rule: lobes.Rule) -> None:
    """In batches of more than one part, and of one image."""
    images = [as_rgb(image) for image in cases()]
    slices = [ct_phantoms.diaphragm(seed, gas) for seed in range(3) for gas in ct_phantoms.GAS]
    images += [as_rgb(ct_phantoms.shown(one.hounsfield, "lung")) for one in slices]
    boxes, fallback = locate(images, rule, by_nodes=True)
    in_numpy = locate(images, rule)
    assert np.allclose(in_numpy[0], boxes, atol=1e-6)
    assert np.array_equal(in_numpy[1], fallback)
    assert np.array_equal(locate(images[:1], rule)[0], in_numpy[0][:1])
    assert 0 < fallback.sum() < len(images) / 2


def test_lungs_of_phantoms_are_found_at_any_size_and_shape() -> None:
    images, truth = [], []
    for seed, side in enumerate((61, 96, 160, 256, 333, 600, 96, 256)):
        image, box = phantom(seed, side, window="lung" if seed < 6 else "soft")
        images.append(as_rgb(np.asarray(Image.fromarray(image).resize((side, side * 3 // 4)))))
        truth.append(box)
    boxes, fallback = locate(images)
    assert not fallback.any()
    assert min(overlap(a, b) for a, b in zip(boxes, truth, strict=True)) > 0.93


def test_a_grey_image_is_located_as_its_rgb_copy() -> None:
    images = [phantom(seed, 150)[0] for seed in range(3)]
    grey, _ = run_graph(lambda x: lobes.locate(x), [image[..., None] for image in images])
    assert np.array_equal(np.stack(grey), locate([as_rgb(image) for image in images])[0])


def test_the_box_stays_whatever_is_about_the_lungs() -> None:
    """Window, inverted grey, white and black page, narrow white frame, lettering, cropped to and into the lungs."""
    image, box = phantom(3, 240)
    side = 240.0
    x0, y0, x1, y1 = (round(place * side) for place in box)
    lettering = image.copy()
    lettering[4:11, 6:60:8] = lettering[4:11:3, 6:60] = 255
    crop = image[y0 - 5 : y1 + 5, x0 - 5 : x1 + 5]
    cut = image[y0 - 5 : y1 + 5, x0 + 5 : x1 - 5]
    high, wide = y1 - y0 + 10, x1 - x0 + 10
    paged = np.array([(x0 + 60) / 360, (y0 + 60) / 360, (x1 + 60) / 360, (y1 + 60) / 360])
    variants = {
        "darker": (image // 2, box),
        "brighter": (np.clip(1.4 * image, 0, 255).astype(np.uint8), box),
        "inverted": (255 - image, box),
        "white page": (np.pad(image, 60, constant_values=255), paged),
        "black page": (np.pad(image, 60, constant_values=0), paged),
        "frame": (np.pad(image[6:-6, 6:-6], 6, constant_values=255), box),
        "lettering": (lettering, box),
        "crop": (crop, np.array([5 / wide, 5 / high, 1 - 5 / wide, 1 - 5 / high])),
        "cut": (cut, np.array([0, 5 / high, 1, 1 - 5 / high])),
        "gas": (with_gas(image), box),
    }
    boxes, fallback = locate([as_rgb(variant) for variant, _ in variants.values()])
    scores = {name: overlap(found, truth) for found, (name, (_, truth)) in zip(boxes, variants.items(), strict=True)}
    assert not fallback.any()
    assert min(scores.values()) > 0.93, scores


def test_the_literal_boundary_is_a_thumbnail_pixel_too_wide() -> None:
    images = [as_rgb(phantom(seed, 256)[0]) for seed in range(4)]
    truth = [phantom(seed, 256)[1] for seed in range(4)]
    inner, literal = (locate(images, rule)[0] for rule in ("inner", "literal"))
    pixel = 1 / lungs.SIDE  # of the body's image, which is a little smaller than the whole
    for a, b, true in zip(inner, literal, truth, strict=True):
        assert overlap(a, true) > overlap(b, true) + 0.01
        widened = np.concatenate([a[:2] - b[:2], b[2:] - a[2:]])
        assert (widened > 0.2 * pixel).all() and (widened < 2 * pixel).all()


def test_one_hole_or_a_flat_one_is_doubted() -> None:
    """One lung-dark hole in the left half of a body, and a hole of too little height."""
    y, x = np.mgrid[:120, :120] / 120
    images = []
    for place in (((x - 0.3) / 0.1) ** 2 + ((y - 0.5) / 0.2) ** 2 < 1, (abs(x - 0.5) < 0.35) & (abs(y - 0.5) < 0.03)):
        image = np.where(((x - 0.5) / 0.47) ** 2 + ((y - 0.5) / 0.4) ** 2 < 1, 190, 5)
        images.append(as_rgb(np.where(place, 30, image).astype(np.uint8)))
    boxes, fallback = locate(images)
    assert fallback.tolist() == [1, 1]
    assert boxes.tolist() == [[0, 0, 1, 1]] * 2


def mask_of(*places: tuple[int, int, int, int]) -> np.ndarray:
    """A [96, 96] mask of rectangles x0, y0, x1, y1."""
    mask = np.zeros((96, 96), np.uint8)
    for x0, y0, x1, y1 in places:
        mask[y0:y1, x0:x1] = 1
    return mask


PAIR = mask_of((12, 25, 42, 70), (54, 25, 84, 70))
FEW = PAIR * (np.arange(96) % 9 == 0)
CORNERED = mask_of((0, 10, 96, 88), (0, 0, 6, 96), (90, 0, 96, 96))
MASKS = {
    "two lungs": (PAIR, (12, 25, 84, 70), 88, set()),
    "a little right lung": (mask_of((12, 25, 42, 70), (70, 40, 84, 45)), (12, 25, 84, 70), 88, set()),
    "near the neck": (mask_of((28, 28, 44, 55), (52, 28, 68, 55)), (28, 28, 68, 55), 92, set()),
    "about the domes": (FEW, (12, 25, 84, 70), 88, set()),
    "a lung alone": (mask_of((12, 25, 42, 70), (70, 40, 74, 45)), (12, 25, 84, 70), 88, {"one side"}),
    "narrow": (mask_of((37, 25, 59, 70)), (37, 25, 59, 70), 88, {"small"}),
    "flat": (mask_of((28, 60, 68, 70)), (28, 60, 68, 70), 88, {"small"}),
    "specks": (FEW * (np.arange(96) % 2 == 0)[:, None], (12, 25, 84, 70), 88, {"sparse"}),
    "cut off": (mask_of((12, 25, 42, 55), (54, 25, 84, 55)), (12, 25, 84, 55), 88, {"back"}),
    "about the body": (CORNERED, (0, 0, 96, 96), 96, {"corners"}),
}
"""Mask, box and end of tissue in pixels, and the one rule that each breaks."""


@pytest.mark.parametrize("case", MASKS)
def test_each_rule_of_a_chest(case: str) -> None:
    """Every rule is broken alone by one mask and kept, if barely, by another: as the oracle says, and as expected."""
    mask, corners, end, broken = MASKS[case]
    box = np.array(corners, np.float32) / 96
    assert locate_numpy.doubts(mask > 0, box, end) == broken

    def graph(mask: object, box: object, end: object) -> object:
        return fn.stack(lungs.is_plausible(box, fn.reshape(mask, layout="HW"), end))

    ((plausible,),) = run_graph(graph, [mask], [box], [np.float32(end)])
    assert bool(plausible[0]) == (not broken)


@pytest.mark.parametrize("window", ct_phantoms.WINDOWS)
def test_gas_in_the_belly_does_not_move_the_box(window: str) -> None:
    """Slices at the height of the diaphragm, with thin lungs about it and gas of every shape above them."""
    settings = [(seed, gas) for seed in range(4) for gas in ct_phantoms.GAS]
    slices = [ct_phantoms.diaphragm(seed, gas, dome=0.65 + 0.07 * seed) for seed, gas in settings]
    boxes, fallback = locate([as_rgb(ct_phantoms.shown(one.hounsfield, window)) for one in slices])
    scores = np.array([overlap(box, one.box) for box, one in zip(boxes, slices, strict=True)])
    assert not fallback.any()
    assert np.median(scores) > 0.96
    worst = int(scores.argmin())
    assert scores[worst] > 0.87, settings[worst]


@pytest.mark.parametrize("window", ct_phantoms.WINDOWS)
def test_gas_alone_is_no_lung(window: str) -> None:
    slices = [ct_phantoms.diaphragm(seed, gas, lungs=False) for seed in range(3) for gas in ct_phantoms.GAS]
    _, fallback = locate([as_rgb(ct_phantoms.shown(one.hounsfield, window)) for one in slices])
    assert fallback.all()


def test_a_white_frame_about_an_image_with_grey_air_is_no_tissue() -> None:
    """A frame of some pixels, off-white and with a dark line outside, about air that is not black."""
    image, box = phantom(3, 240)
    image = np.where(image < 16, image + 60, image)
    image = np.where((image >= 16) & (image < 60), image + 60, image).astype(np.uint8)
    for wide, grey in ((3, 225), (8, 250), (16, 235)):
        framed = image.copy()
        framed[:wide] = framed[-wide:] = framed[:, :wide] = framed[:, -wide:] = grey
        framed[0] = framed[-1] = 160
        boxes, fallback = locate([as_rgb(framed)])
        assert fallback[0] == 0, wide
        assert overlap(boxes[0], box) > 0.93, wide


def test_an_image_without_lungs_falls_back_to_the_whole() -> None:
    boxes, fallback = locate([np.full((50, 70, 3), 100, np.uint8), np.zeros((40, 40, 3), np.uint8)])
    assert fallback.tolist() == [1, 1]
    assert boxes.tolist() == [[0, 0, 1, 1]] * 2


def test_template_covers_the_box_once() -> None:
    assert tuple(lobes.TEMPLATE) == REGION_NAMES == ("ru", "rm", "rl", "lu", "ll")
    y, x = np.mgrid[:60, :60] / 60 + 1 / 120
    covered = np.zeros((60, 60), int)
    for cx, cy, w, h in lobes.TEMPLATE.values():
        covered += (np.abs(x - cx) < w / 2) & (np.abs(y - cy) < h / 2)
    assert (covered == 1).all()


def regions(image: object, box: object, side: int) -> tuple[object, ...]:
    return tuple(resize.window(image, start, end, side) for start, end in lobes.region_windows(box))


def test_regions_show_their_own_part_of_the_box() -> None:
    """Each part of the box has its own colour: right lung (left in the image) in thirds, left lung in halves."""
    image = np.zeros((120, 160, 3), np.uint8)
    parts = {"ru": (30, 40, 60, 50), "rm": (30, 50, 60, 60), "rl": (30, 60, 60, 70),
             "lu": (60, 40, 90, 55), "ll": (60, 55, 90, 70)}  # fmt: skip
    for i, (x0, y0, x1, y1) in enumerate(parts.values()):
        image[y0:y1, x0:x1] = (40 + 40 * i, 200 - 30 * i, 10 * i)
    box = np.array([30 / 160, 40 / 120, 90 / 160, 70 / 120], np.float32)
    out = run_graph(lambda x, b: regions(x, b, 32), [image], [box])
    for i, (region,) in enumerate(out):
        assert region.shape == (32, 32, 3)
        assert (region[4:-4, 4:-4] == (40 + 40 * i, 200 - 30 * i, 10 * i)).all(), REGION_NAMES[i]


def test_regions_are_pillows_resize_of_the_crop() -> None:
    y, x = np.mgrid[:96, :144]
    image = np.stack([128 + 100 * np.sin(x / 9), 128 + 100 * np.cos(y / 11), x + y], -1).astype(np.uint8)
    box = np.array([0.25, 0.125, 0.75, 0.875], np.float32)  # 36..108 x 12..84
    out = run_graph(lambda x, b: regions(x, b, 48), [image], [box])
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
    images = [np.asarray(Image.open(p).convert("RGB")) for p in slices]
    truth = []
    for path in slices:
        mask = np.asarray(Image.open(path.with_name(f"{path.stem}_mask.png")).convert("L")) > 0
        columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
        truth.append(np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) / np.tile(mask.shape[::-1], 2))
    scores = {}
    for name, shown in (("as they are", images), ("inverted", [255 - image for image in images])):
        boxes, fallback = locate(shown)
        assert np.allclose(locate(shown, by_nodes=True)[0], boxes, atol=1e-6), name
        assert not fallback.any(), name
        scores[name] = [overlap(box, true) for box, true in zip(boxes, truth, strict=True)]
        assert np.median(scores[name]) >= 0.97, name
    assert np.percentile(scores["as they are"], 5) >= 0.9
    literal = [overlap(box, true) for box, true in zip(locate(images, "literal")[0], truth, strict=True)]
    assert np.median(literal) < np.median(scores["as they are"]) - 0.03
