"""Every colour op against torchvision and Pillow at fixed numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tv
from PIL import Image, ImageFilter
from run_graph import run_graph

from pipelines import augment, colour
from pipelines.recipe import Inputs

STRONG = Inputs(
    name="test", image_size=40, resize=40, crop="centre", jitter=1.0, brightness=0.4, contrast=0.3, saturation=0.5,
    hue=0.3, grayscale=1.0, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0),
)  # fmt: skip


def picture(height: int = 40, width: int = 40, seed: int = 0) -> np.ndarray:
    """Noise of all colours, smooth enough to look at."""
    small = np.random.default_rng(seed).integers(0, 256, (height // 3, width // 3, 3), dtype=np.uint8)
    return np.array(Image.fromarray(small).resize((width, height), Image.Resampling.BILINEAR))


def scalar(*values: float) -> list[np.ndarray]:
    return [np.float32(value) for value in values]


def by_torchvision(image: np.ndarray, *steps: Callable[[torch.Tensor], torch.Tensor]) -> np.ndarray:
    """Values 0 … 255 after torchvision's float ops, unrounded."""
    x = torch.tensor(image).permute(2, 0, 1).float() / 255
    for step in steps:
        x = step(x)
    return (x * 255).permute(1, 2, 0).numpy()


def colour_contrast(image: object, factor: object) -> object:
    return colour.contrast(image, factor, grey=False)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (colour.brightness, tv.adjust_brightness),
        (colour_contrast, tv.adjust_contrast),
        (colour.saturation, tv.adjust_saturation),
    ],
)
def test_factors_are_torchvisions(ours: Callable[..., object], theirs: Callable[..., torch.Tensor]) -> None:
    image = np.random.default_rng(1).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    factors = (0.0, 0.2, 0.6, 0.95, 1.0, 1.4, 1.8)
    (out,) = run_graph(ours, [image] * len(factors), scalar(*factors))
    for got, factor in zip(out, factors, strict=True):
        assert got.dtype == np.uint8
        difference = np.abs(got - by_torchvision(image, lambda x, f=factor: theirs(x, f)))
        assert difference.mean() < 0.5
        assert difference.max() < 1
    assert np.array_equal(out[4], image), "a factor of 1 changes nothing"


def test_hue_is_torchvisions() -> None:
    image = np.random.default_rng(2).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    turns = (-0.5, -0.4, -0.1, 0.0, 0.05, 0.3, 0.5)
    (out,) = run_graph(colour.hue, [image] * len(turns), scalar(*turns))
    for got, turn in zip(out, turns, strict=True):
        assert np.abs(got - by_torchvision(image, lambda x, t=turn: tv.adjust_hue(x, t))).max() < 0.51
    assert np.array_equal(out[3], image), "no turn changes nothing"


def test_hue_of_pure_and_grey_colours() -> None:
    colours = np.array([[[255, 0, 0], [0, 255, 0], [200, 200, 0], [90, 90, 90], [0, 0, 0], [255, 255, 255]]], np.uint8)
    ((out,),) = run_graph(colour.hue, [colours], scalar(1 / 3))
    assert out[0].tolist() == [[0, 255, 0], [0, 0, 255], [0, 200, 200], [90, 90, 90], [0, 0, 0], [255, 255, 255]]


def test_grayscale_is_the_luminance_in_equal_channels() -> None:
    image = picture()
    (out,) = run_graph(colour.grayscale, [image] * 2, scalar(1, 0))
    assert np.abs(out[0] - image.astype(np.float64) @ np.array([[0.299], [0.587], [0.114]])).max() < 0.6
    assert np.ptp(out[0], axis=2).max() == 0
    assert np.array_equal(out[1], image)
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    for op in (colour.grayscale, colour.saturation):
        assert np.array_equal(run_graph(op, [ramp], scalar(1))[0][0], ramp), "grey has no colour to lose"


def test_grey_images_are_jittered_as_three_equal_channels_are() -> None:
    image = np.random.default_rng(3).integers(0, 256, (40, 50, 1), dtype=np.uint8)
    for factor in (0.6, 1.0, 1.7):
        ((one,),) = run_graph(lambda x, f: colour.contrast(x, f, grey=True), [image], scalar(factor))
        ((three,),) = run_graph(colour_contrast, [image.repeat(3, axis=2)], scalar(factor))
        assert one.shape == (40, 50, 1)
        assert np.array_equal(one.repeat(3, axis=2), three)


def test_float_images_are_not_rounded_but_kept_in_range() -> None:
    image = np.random.default_rng(4).uniform(0, 255, (40, 50, 1)).astype(np.float32)
    factors = (0.3, 1.0, 1.9)

    def graph(x: object, factor: object) -> object:
        bright = colour.bounded(colour.brightness(x, factor))
        return bright, colour.bounded(colour.contrast(x, factor, grey=True))

    bright, contrasted = run_graph(graph, [image] * 3, scalar(*factors))
    for i, factor in enumerate(factors):
        assert bright[i].dtype == contrasted[i].dtype == np.float32
        assert np.allclose(bright[i], np.clip(factor * image, 0, 255), atol=1e-3)
        mean = image.mean(dtype=np.float64)
        assert np.allclose(contrasted[i], np.clip(mean + factor * (image - mean), 0, 255), atol=1e-3)


@pytest.mark.parametrize("channels", [1, 3])
def test_blur_is_torchvisions_and_pillows(channels: int) -> None:
    image = np.ascontiguousarray(picture(60, 70)[..., :channels])
    sigmas = (0.1, 0.4, 1.0, 1.6, 2.0)
    (out,) = run_graph(lambda x, s: colour.blur(x, s, largest_window=None), [image] * len(sigmas), scalar(*sigmas))
    for got, sigma in zip(out, sigmas, strict=True):
        exact = by_torchvision(image, lambda x, s=sigma: tv.gaussian_blur(x, [23, 23], [s, s]))
        assert np.abs(got - exact).max() < 1
        bands = [Image.fromarray(image[..., c]).filter(ImageFilter.GaussianBlur(sigma)) for c in range(channels)]
        assert np.abs(got.astype(float) - np.stack(bands, -1)).mean() < 1  # Pillow's is three box blurs


def test_blur_in_a_small_window_is_torchvisions() -> None:
    image, sigmas = picture(60, 70), (0.3, 0.7, 2.0)
    for window in (3, 7, 23):
        graph = lambda x, s, w=window: colour.blur(x, s, largest_window=w)  # noqa: E731
        (out,) = run_graph(graph, [image] * 3, scalar(*sigmas))
        for got, sigma in zip(out, sigmas, strict=True):
            exact = by_torchvision(image, lambda x, w=window, s=sigma: tv.gaussian_blur(x, [w, w], [s, s]))
            assert np.abs(got - exact).max() < 1


def test_no_blur_is_none() -> None:
    image = np.random.default_rng(5).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    for window in (None, 9):
        graph = lambda x, s, w=window: colour.blur(x, s, largest_window=w)  # noqa: E731
        assert np.array_equal(run_graph(graph, [image], scalar(colour.NO_BLUR_SIGMA))[0][0], image)


@pytest.mark.parametrize("grayscale_first", [False, True])
def test_the_jitter_of_a_recipe_is_torchvisions_in_its_order(
    grayscale_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With every coin 1 and every draw at its largest the whole view is known."""
    monkeypatch.setattr(augment, "coin", lambda probability: augment.fn.random.uniform(values=[1.0]))
    monkeypatch.setattr(augment, "spread", lambda largest: augment.fn.random.uniform(values=[largest]))
    inputs = replace(STRONG, grayscale_first=grayscale_first)
    image = picture()
    ((got,),) = run_graph(lambda x: augment.view(x, x, inputs), [image])

    def jitter(x: torch.Tensor) -> torch.Tensor:
        x = tv.adjust_contrast(tv.adjust_brightness(x, 1.4), 1.3)
        return tv.adjust_hue(tv.adjust_saturation(x, 1.5), 0.3)

    def grey(x: torch.Tensor) -> torch.Tensor:
        return tv.rgb_to_grayscale(x, num_output_channels=3)

    exact = by_torchvision(image, *((grey, jitter) if grayscale_first else (jitter, grey)))
    difference = np.abs(got * 255 - exact)
    assert difference.mean() < 1
    assert difference.max() < 4  # roundings of four ops, enlarged by those after them
    other = by_torchvision(image, *((jitter, grey) if grayscale_first else (grey, jitter)))
    assert np.abs(got * 255 - other).mean() > 5, "the two orders can be told apart"
