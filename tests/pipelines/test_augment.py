"""Every augmentation op against numpy or Pillow at fixed numbers, and the statistics of what is random."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from run_graph import run_graph

from pipelines import augment
from pipelines.recipe import Inputs, multi_view_ct, supervised_cxr

MANY = 600
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
        return augment.view(x, augment.resize_square(x, inputs.resize), inputs)

    (out,) = run_graph(graph, [image] * count)
    return np.stack(out) * 255


def assert_share(hits: np.ndarray, probability: float) -> None:
    """The share of hits is within 4 standard errors of the probability."""
    error = np.sqrt(probability * (1 - probability) / len(hits))
    assert abs(hits.mean() - probability) < 4 * error


def assert_uniform(values: np.ndarray, low: float, high: float, slack: float) -> None:
    """Values lie in a range, reach near both its ends and have its mean and spread."""
    assert low - slack <= values.min() < low + 0.05 * (high - low) + slack
    assert high + slack >= values.max() > high - 0.05 * (high - low) - slack
    assert abs(values.mean() - (low + high) / 2) < 0.05 * (high - low)
    assert abs(values.std() - (high - low) / np.sqrt(12)) < 0.03 * (high - low)


@pytest.mark.parametrize("shape", [(61, 90), (200, 153), (32, 32), (20, 17), (333, 40)])
def test_resize_square_is_pillows_bilinear(shape: tuple[int, int]) -> None:
    image = picture(*shape)
    ((out,),) = run_graph(lambda x: augment.resize_square(x, 48), [image])
    expected = np.asarray(Image.fromarray(image).resize((48, 48), Image.Resampling.BILINEAR))
    difference = np.abs(out.astype(int) - expected.astype(int))
    assert out.shape == (48, 48, 3)
    assert difference[2:-2, 2:-2].max() <= 1
    assert difference.max() <= 12  # at the border DALI repeats the last pixel, Pillow shortens the filter


def test_jitter_is_its_formula() -> None:
    image = picture(40, 30)
    brightness, contrast = [0.6, 1.0, 1.4, 1.2, 0.7], [1.0, 0.6, 1.4, 0.8, 1.3]
    (out,) = run_graph(
        lambda x, b, c: augment.jitter(x, brightness=b, contrast=c),
        [image] * 5, scalar(*brightness), scalar(*contrast),
    )  # fmt: skip
    for got, b, c in zip(out, brightness, contrast, strict=True):
        exact = np.clip(b * (128 + c * (image.astype(np.float64) - 128)), 0, 255)
        assert np.abs(got - exact).max() <= 0.51


def test_grayscale_is_the_luminance_in_equal_channels() -> None:
    image = picture(40, 30)
    (out,) = run_graph(augment.grayscale, [image] * 2, [np.int32(1), np.int32(0)])
    luminance = image.astype(np.float64) @ [0.299, 0.587, 0.114]
    assert np.abs(out[0] - luminance[..., None]).max() <= 0.51
    assert np.ptp(out[0], axis=2).max() == 0
    assert np.array_equal(out[1], image)
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    assert np.array_equal(run_graph(augment.grayscale, [ramp], [np.int32(1)])[0][0], ramp)


def test_scale_intensity_is_a_factor() -> None:
    image = picture(20, 30)
    (out,) = run_graph(augment.scale_intensity, [image] * 3, scalar(0.9, 1.0, 1.1))
    for got, factor in zip(out, (0.9, 1.0, 1.1), strict=True):
        assert np.abs(got - np.clip(image * factor, 0, 255)).max() <= 0.51


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
def test_normalise_crops_flips_and_scales(mirror: int) -> None:
    inputs = Inputs(name="test", image_size=16, resize=24)
    image = picture(24, 24)
    ((out,),) = run_graph(lambda x: augment.normalise(x, inputs, crop_x=0.25, crop_y=1.0, mirror=mirror), [image])
    part = image[8:24, 2:18][:, :: -1 if mirror else 1]
    expected = (part / 255 - np.array(inputs.mean)) / np.array(inputs.std)
    assert out.shape == (16, 16, 3) and out.dtype == np.float32
    assert np.allclose(out, expected, atol=2e-6)


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
    assert 0.7 < ratio.min() < 0.8 and 1.25 < ratio.max() < 1.4


def test_centre_crop_without_augmentation_is_deterministic_and_central() -> None:
    inputs = replace(PLAIN, image_size=16, resize=24)
    image = picture(24, 24)
    out = views(inputs, image, count=3)
    assert np.allclose(out, image[4:20, 4:20], atol=1e-3)


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
    grey, dark = np.full((32, 32, 3), 128, np.uint8), np.full((32, 32, 3), 64, np.uint8)
    recipe = replace(PLAIN, jitter=0.5, brightness=0.4, contrast=0.4)
    brightness = views(recipe, grey)[:, 0, 0, 0] / 128  # contrast is about 128, which it leaves alone
    touched = np.abs(brightness - 1) > 0.004
    assert_share(touched, 0.5)
    assert_uniform(brightness[touched], 0.6, 1.4, slack=0.01)
    contrast = 2 - views(replace(recipe, brightness=0.0), dark)[:, 0, 0, 0] / 64
    assert_share(np.abs(contrast - 1) > 0.008, 0.5)
    assert_uniform(contrast[np.abs(contrast - 1) > 0.008], 0.6, 1.4, slack=0.02)


def test_grayscale_probability() -> None:
    out = views(replace(PLAIN, grayscale=0.2), picture(32, 32))
    grey = np.ptp(out, axis=3).max(axis=(1, 2)) < 1e-3
    assert_share(grey, 0.2)
    assert np.allclose(out[~grey], picture(32, 32), atol=1e-3)


def test_translation_and_rotation_are_tossed_apart() -> None:
    """A bright block on black: its centre of mass is where the shift put it, its orientation what the turn made it."""
    image = np.zeros((64, 64, 3), np.uint8)
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
    image = np.full((32, 32, 3), 200, np.uint8)
    recipe = replace(supervised_cxr(32), translation=0.0, rotation=0.0, mean=(0, 0, 0), std=(1, 1, 1))
    factor = views(recipe, image)[:, 0, 0, 0] / 200
    touched = np.abs(factor - 1) > 0.003
    assert_share(touched, 0.5)
    assert_uniform(factor[touched], 0.9, 1.1, slack=0.005)


@pytest.mark.parametrize("region_jitter", [True, False])
@pytest.mark.parametrize("region_flip", [True, False])
def test_regions_are_augmented_only_as_asked_and_never_grey(region_flip: bool, region_jitter: bool) -> None:
    recipe = replace(
        multi_view_ct(32, region_flip=region_flip), region_jitter=region_jitter, mean=(0, 0, 0), std=(1, 1, 1)
    )
    image = picture(32, 32)
    (out,) = run_graph(lambda x: augment.region_view(x, recipe), [image] * MANY)
    stack = np.stack(out) * 255
    flipped = np.array([np.corrcoef(v.ravel(), image[:, ::-1].ravel())[0, 1] > 0.95 for v in stack])
    assert_share(flipped, 0.5) if region_flip else None
    assert region_flip or not flipped.any()
    straight = np.where(flipped[:, None, None, None], stack[:, :, ::-1], stack)
    assert_share(np.abs(straight - image).max(axis=(1, 2, 3)) > 0.6, 0.5) if region_jitter else None
    assert region_jitter or np.allclose(straight, image, atol=1e-3)
    assert np.ptp(stack, axis=3).max(axis=(1, 2)).min() > 20
