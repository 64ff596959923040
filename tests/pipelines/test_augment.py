"""Crops and movements against numpy and Pillow at fixed numbers, and the statistics of all that a view draws."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tv
from run_graph import run_graph

from pipelines import augment, resize
from pipelines.recipe import Inputs, multi_view_ct, supervised_cxr, two_view

MANY = 1200
PLAIN = Inputs(name="test", image_size=32, resize=32, crop="centre", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A smooth coloured image with noise on it."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [128 + 90 * np.sin(x / (3 + c) + y / (7 - c)) for c in range(3)]
    return np.clip(np.stack(waves, -1) + random.normal(0, 12, (height, width, 3)), 0, 255).astype(np.uint8)


def scalar(*values: float) -> list[np.ndarray]:
    return [np.float32(value) for value in values]


def views(inputs: Inputs, image: np.ndarray, count: int = MANY) -> np.ndarray:
    """[count, H, W, 3] views of one image in grey values 0 … 255 (for recipes with mean 0 and std 1)."""

    def graph(x: object) -> object:
        return augment.view(x, resize.square(x, inputs.resize, bits=inputs.bits), inputs)

    (out,) = run_graph(graph, [image] * count)
    return np.stack(out) * 255


def assert_share(hits: np.ndarray, probability: float) -> None:
    """The share of hits is within 4 standard errors of the probability."""
    error = np.sqrt(probability * (1 - probability) / len(hits))
    assert abs(hits.mean() - probability) <= 4 * error


def assert_uniform(values: np.ndarray, low: float, high: float, slack: float) -> None:
    """Values lie in a range, reach near both its ends and have its mean and spread."""
    assert low - slack <= values.min() < low + 0.05 * (high - low) + slack
    assert high + slack >= values.max() > high - 0.05 * (high - low) - slack
    assert abs(values.mean() - (low + high) / 2) < 0.05 * (high - low)
    assert abs(values.std() - (high - low) / np.sqrt(12)) < 0.03 * (high - low)


def moved(image: np.ndarray, shift: tuple[float, float], degrees: float) -> np.ndarray:
    """Rotation about the centre, counter-clockwise as seen, then translation: bilinear by looking back, 0 outside."""
    side = image.shape[0]
    turn = np.deg2rad(degrees)
    y, x = np.mgrid[:side, :side] + 0.5
    x, y = x - shift[0] * side - side / 2, y - shift[1] * side - side / 2
    # y points down: a counter-clockwise turn as seen looks back clockwise
    from_x = x * np.cos(turn) - y * np.sin(turn) + side / 2 - 0.5
    from_y = x * np.sin(turn) + y * np.cos(turn) + side / 2 - 0.5
    padded = np.pad(image.astype(np.float64), ((1, 1), (1, 1), (0, 0)))
    left, top = np.floor(from_x).astype(int), np.floor(from_y).astype(int)
    out = np.zeros(image.shape)
    for dy in (0, 1):
        for dx in (0, 1):
            weight = (1 - np.abs(from_x - left - dx)) * (1 - np.abs(from_y - top - dy))
            at = np.clip(top + dy + 1, 0, side + 1), np.clip(left + dx + 1, 0, side + 1)
            out += weight[..., None] * padded[at]
    return out


@pytest.mark.parametrize(
    ("shift", "degrees"), [((0.0, 0.0), 0.0), ((0.25, -0.125), 0.0), ((0.0, 0.0), 90.0), ((0.07, 0.03), -8.3)]
)
def test_shift_and_rotate_geometry(shift: tuple[float, float], degrees: float) -> None:
    image = picture(32, 32)
    ((out,),) = run_graph(
        lambda x, s, d: augment.shift_and_rotate(x, 32, shift=s, degrees=d),
        [image], [np.array(shift, np.float32)], scalar(degrees),
    )  # fmt: skip
    assert np.abs(out - moved(image, shift, degrees)).max() <= 1
    if degrees == 90.0:
        assert np.abs(out.astype(int) - np.rot90(image)).max() <= 1
    if shift[0] == 0.25:  # 8 pixels to the right, 4 up; what comes into sight is black
        assert np.array_equal(out[:28, 8:], image[4:, :24])
        assert not out[:, :8].any() and not out[28:].any()


@pytest.mark.parametrize("mirror", [0, 1])
def test_normalise_flips_and_scales(mirror: int) -> None:
    image = picture(16, 16)
    inputs = Inputs(name="test", image_size=16, resize=24)
    ((out,),) = run_graph(lambda x: augment.normalise(x, inputs, mirror=mirror), [image])
    expected = (image[:, :: -1 if mirror else 1] / 255 - np.array(inputs.mean)) / np.array(inputs.std)
    assert out.shape == (16, 16, 3) and out.dtype == np.float32
    assert np.allclose(out, expected, atol=2e-6)


@pytest.mark.parametrize(("bits", "dtype"), [(8, np.uint8), (16, np.float32)])
def test_normalise_makes_three_channels_of_grey(bits: int, dtype: type) -> None:
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 1)).astype(dtype)
    inputs = Inputs(name="test", image_size=16, resize=16, channels="grey", bits=bits)
    ((out,),) = run_graph(lambda x: augment.normalise(x, inputs), [image])
    assert out.shape == (16, 16, 3)
    assert np.allclose(out, (image / 255 - np.array(inputs.mean)) / np.array(inputs.std), atol=2e-6)


def test_square_crop_takes_its_place() -> None:
    image = picture(24, 30)
    ((out,),) = run_graph(lambda x: augment.square_crop(x, 16, x=0.5, y=1.0), [image])
    assert np.array_equal(out, image[8:24, 7:23])


def test_area_crop_takes_the_stated_share() -> None:
    """On an image of coordinates the extent of the crop can be read off."""
    y, x = np.mgrid[:128, :128]
    image = np.stack([2 * x, 2 * y, 0 * x], -1).clip(0, 255).astype(np.uint8)
    (out,) = run_graph(lambda i: augment.area_crop(i, 32, 0.2, 0.6), [image] * MANY)
    stack = np.stack(out).astype(float)
    width = (stack[:, 16, -1, 0] - stack[:, 16, 0, 0]) / 2 * 32 / 31
    height = (stack[:, -1, 16, 1] - stack[:, 0, 16, 1]) / 2 * 32 / 31
    share, ratio = width * height / 128**2, width / height
    assert_uniform(share, 0.2, 0.6, slack=0.03)
    assert_uniform(np.log(ratio), np.log(3 / 4), np.log(4 / 3), slack=0.05)
    centres = stack[:, 16, 16, :2] / 2 / 128
    assert np.abs(centres.mean(0) - 0.5).max() < 0.02
    assert abs(np.corrcoef(centres.T)[0, 1]) < 0.12


@pytest.mark.parametrize("whole", [24, 25, 27, 16])
@pytest.mark.parametrize("shared", [True, False])
def test_centre_crop_is_torchvisions_and_deterministic(whole: int, shared: bool) -> None:
    inputs = replace(PLAIN, image_size=16, resize=whole)
    image = picture(whole, whole)
    graph = lambda x: augment.view(x, resize.square(x, whole, bits=8) if shared else None, inputs)  # noqa: E731
    (out,) = run_graph(graph, [image] * 3)
    expected = tv.center_crop(torch.tensor(image).permute(2, 0, 1), [16, 16]).permute(1, 2, 0).numpy()
    assert np.allclose(np.stack(out) * 255, expected, atol=1e-3)


def test_flip_happens_as_often_as_it_should() -> None:
    image = picture(32, 32)
    for probability in (0.5, 0.2):
        out = views(replace(PLAIN, flip=probability), image)
        flipped = np.array([np.allclose(v, image[:, ::-1], atol=1e-3) for v in out])
        straight = np.array([np.allclose(v, image, atol=1e-3) for v in out])
        assert (flipped ^ straight).all()
        assert_share(flipped, probability)


def test_random_crop_is_uniform_over_all_places() -> None:
    y, x = np.mgrid[:40, :40]
    out = views(replace(PLAIN, image_size=32, resize=40, crop="random"), np.stack([x, y, x], -1).astype(np.uint8))
    corners = np.rint(out[:, 0, 0, :2]).astype(int)
    assert set(corners[:, 0]) == set(corners[:, 1]) == set(range(9))
    assert np.array_equal(np.rint(out[:, -1, -1, :2]).astype(int), corners + 31)
    assert abs(np.corrcoef(corners.T)[0, 1]) < 0.15
    for axis in (0, 1):
        for place in range(9):
            assert_share(corners[:, axis] == place, 1 / 9)


def test_jitter_amplitudes_and_probability() -> None:
    grey = np.full((32, 32, 3), 128, np.uint8)
    recipe = replace(PLAIN, jitter=0.5, brightness=0.4, contrast=0.4)
    brightness = views(recipe, grey)[:, 0, 0, 0] / 128  # contrast leaves alone what is all alike
    touched = np.abs(brightness - 1) > 0.004
    assert_share(touched, 0.5)
    assert_uniform(brightness[touched], 0.6, 1.4, slack=0.01)
    halves = grey.copy()
    halves[:16] = 64
    halves[16:] = 160
    seen = views(replace(recipe, brightness=0.0), halves)
    contrast = (seen[:, 31, 0, 0] - seen[:, 0, 0, 0]) / 96
    assert np.allclose(seen.mean(axis=(1, 2, 3)), 112, atol=0.6)
    assert_share(np.abs(contrast - 1) > 0.011, 0.5)
    assert_uniform(contrast[np.abs(contrast - 1) > 0.011], 0.6, 1.4, slack=0.02)


def test_saturation_and_hue_amplitudes_and_probability() -> None:
    image = np.full((32, 32, 3), (160, 80, 80), np.uint8)
    out = views(replace(PLAIN, jitter=0.8, saturation=0.5), image)[:, 0, 0]
    saturation = (out[:, 0] - out[:, 1]) / 80
    touched = np.abs(saturation - 1) > 0.013
    assert_share(touched, 0.8)
    assert_uniform(saturation[touched], 0.5, 1.5, slack=0.02)
    out = views(replace(PLAIN, jitter=0.8, hue=0.1), image)[:, 0, 0]
    turn = (out[:, 1] - out[:, 2]) / 80 / 6  # between yellow and magenta red stays the largest
    assert np.allclose(out.max(axis=1), 160, atol=1e-3) and np.allclose(out.min(axis=1), 80, atol=1e-3)
    touched = np.abs(turn) > 0.003
    assert_share(touched, 0.8)
    assert_uniform(turn[touched], -0.1, 0.1, slack=0.003)


def test_one_toss_decides_on_all_of_the_jitter() -> None:
    image = np.full((32, 32, 3), (160, 80, 80), np.uint8)
    out = views(replace(PLAIN, jitter=0.5, brightness=0.4, saturation=0.4), image)[:, 0, 0]
    brighter = np.abs(out @ [0.299, 0.587, 0.114] / 104 - 1) > 0.01
    coloured = np.abs((out[:, 0] - out[:, 1]) / out[:, 0] - 0.5) > 0.01
    assert_share(brighter | coloured, 0.5)


def test_blur_probability_and_sigma() -> None:
    """A bright column: of what is blurred the spread says sigma."""
    image = np.zeros((32, 32, 1), np.float32)
    image[:, 16] = 255
    inputs = replace(PLAIN, channels="grey", bits=16, blur=0.5, blur_sigma_min=0.5, blur_sigma_max=2.0)
    column = views(inputs, image)[:, 16, :, 0]
    sigma = np.sqrt((column * (np.arange(32) - 16) ** 2).sum(1) / column.sum(1))
    assert_share(sigma > 0, 0.5)
    assert_uniform(sigma[sigma > 0], 0.5, 2.0, slack=0.04)
    column = views(replace(inputs, blur_window=0.1), image)[:, 16, :, 0]
    assert (column[:, :15] == 0).all() and (column[:, 18:] == 0).all(), "three pixels of 32"
    assert_share(column[:, 15] > 0, 0.5)


def test_grayscale_probability() -> None:
    out = views(replace(PLAIN, grayscale=0.2), picture(32, 32))
    grey = np.ptp(out, axis=3).max(axis=(1, 2)) < 1e-3
    assert_share(grey, 0.2)
    assert np.allclose(out[~grey], picture(32, 32), atol=1e-3)


def test_translation_and_rotation_are_tossed_apart() -> None:
    """A bright block on black: its centre of mass is where the shift put it, its orientation what the turn made it."""
    image = np.zeros((64, 64, 1), np.uint8)
    image[28:36, 20:44] = 200
    out = views(replace(supervised_cxr(64), flip=0.0, intensity=0.0, mean=(0, 0, 0), std=(1, 1, 1)), image)[..., 0]
    y, x = np.mgrid[:64, :64] + 0.5
    mass = out.sum(axis=(1, 2))
    cx, cy = ((out * grid).sum(axis=(1, 2)) / mass for grid in (x, y))
    dx, dy = x - cx[:, None, None], y - cy[:, None, None]
    xy, xx, yy = ((out * product).sum(axis=(1, 2)) / mass for product in (dx * dy, dx**2, dy**2))
    angle = -np.rad2deg(np.arctan2(2 * xy, xx - yy)) / 2
    shifted, turned = np.hypot(cx - 32, cy - 32) > 0.05, np.abs(angle) > 0.1
    assert_share(shifted, 0.5)
    assert_share(turned, 0.5)
    assert_share(shifted & turned, 0.25)
    assert_uniform((cx[shifted] - 32) / 64, -0.1, 0.1, slack=0.01)
    assert_uniform((cy[shifted] - 32) / 64, -0.1, 0.1, slack=0.01)
    assert_uniform(angle[turned], -10, 10, slack=0.3)
    assert abs(np.corrcoef(cx[shifted], cy[shifted])[0, 1]) < 0.2


def test_intensity_amplitude_and_probability() -> None:
    image = np.full((32, 32, 1), 200, np.uint8)
    recipe = replace(supervised_cxr(32), translation=0.0, rotation=0.0, mean=(0, 0, 0), std=(1, 1, 1))
    factor = views(recipe, image)[:, 0, 0, 0] / 200
    touched = np.abs(factor - 1) > 0.003
    assert_share(touched, 0.5)
    assert_uniform(factor[touched], 0.9, 1.1, slack=0.005)


@pytest.mark.parametrize("region_flip", [True, False])
def test_regions_are_augmented_as_views_are_and_flipped_only_if_asked(region_flip: bool) -> None:
    y, x = np.mgrid[:40, :40]
    image = np.stack([2 * x + 60, 2 * y + 60, 0 * x + 20], -1).astype(np.uint8)
    recipe = replace(
        multi_view_ct(32, region_flip=region_flip), channels="rgb", resize=40, jitter=0.0, mean=(0, 0, 0), std=(1, 1, 1)
    )
    corners = [np.zeros(2, np.float32)] * MANY, [np.ones(2, np.float32)] * MANY
    (out,) = run_graph(lambda x, start, end: augment.region_view(x, start, end, recipe), [image] * MANY, *corners)
    stack = np.stack(out) * 255
    grey = np.ptp(stack, axis=3).max(axis=(1, 2)) < 1e-3
    assert_share(grey, 0.5)
    coloured = stack[~grey]
    flipped = coloured[:, 0, 0, 0] > coloured[:, 0, 31, 0]
    assert_share(flipped, 0.5) if region_flip else None
    assert region_flip or not flipped.any()
    left = np.rint((coloured[..., 0].min(axis=(1, 2)) - 60) / 2).astype(int)
    top = np.rint((coloured[:, 0, 0, 1] - 60) / 2).astype(int)
    for corner in (left, top):
        assert set(corner) == set(range(9))
    jittered = replace(recipe, jitter=0.5, grayscale=0.0)
    (out,) = run_graph(lambda x, start, end: augment.region_view(x, start, end, jittered), [image] * MANY, *corners)
    assert_share(np.array([np.abs(v[..., 2].mean() * 255 - 20) > 0.5 for v in out]), 0.5)


@pytest.mark.parametrize(
    ("published", "jitter", "grey"), [("moco_v1", 1.0, 0.2), ("moco_v2", 0.8, 0.2), ("simclr", 0.8, 0.2)]
)
def test_published_views_are_tossed_as_published(published: str, jitter: float, grey: float) -> None:
    image = np.full((32, 32, 3), (160, 80, 60), np.uint8)
    out = views(replace(two_view(32, published=published), mean=(0, 0, 0), std=(1, 1, 1)), image)
    first = out[:, 16, 16]
    assert_share(np.ptp(first, axis=1) < 1e-3, grey)
    as_it_was = np.abs(first - image[0, 0]).max(axis=1) < 1
    assert_share(as_it_was, (1 - jitter) * (1 - grey))
