"""The whole graph of a recipe: kernels, one decoder, one channel or three, 8 bits or 16, unrelated draws."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from gpu_kernels import missing_kernels, operators
from nvidia.dali.pipeline import Pipeline
from PIL import Image, ImageOps
from tiny_shards import Picture, encode

from pipelines import lobes
from pipelines.inputs import build_pipeline
from pipelines.recipe import RECIPES, Inputs, evaluation, multi_view_ct, supervised_cxr, supervised_natural, two_view

FLAVOURS = {
    **{name: recipe(64) for name, recipe in RECIPES.items()},
    "supervised_natural of a random area": supervised_natural(64, random_resized_crop=True),
    "supervised_cxr in colour": replace(supervised_cxr(64), channels="rgb"),
    "supervised_cxr of 16 bits": replace(supervised_cxr(64), bits=16),
    "multi_view_ct as printed": replace(multi_view_ct(64, region_flip=True), channels="rgb"),
    "multi_view_ct of 16 bits": replace(multi_view_ct(64), bits=16),
    "moco_v2": two_view(64, published="moco_v2"),
    "simclr": two_view(64, published="simclr"),
    "moco_v2 of 16 bits": replace(two_view(64, published="moco_v2"), channels="grey", bits=16),
    "evaluation as printed": evaluation(64, as_printed=True),
}


def build(inputs: Inputs, shards: Path, *, device: str = "cpu", batch: int = 2, seed: int = 1) -> Pipeline:
    tar = shards / "train/000000.tar"
    return build_pipeline(
        inputs, [str(tar)], [str(tar.with_suffix(".idx"))],
        batch=batch, threads=2, device=device, device_id=0, seed=seed,
    )  # fmt: skip


def run(inputs: Inputs, shards: Path, batch: int, times: int = 1) -> np.ndarray:
    """[times, views, batch, H, W, 3] values 0 … 255 of a recipe, whatever its mean and std."""
    inputs = replace(inputs, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    pipeline = build(inputs, shards, batch=batch)
    outputs = [pipeline.run()[: len(inputs.view_names)] for _ in range(times)]
    return np.array([[np.stack([np.array(x) for x in view]) for view in output] for output in outputs]) * 255


@pytest.mark.parametrize("name", FLAVOURS)
def test_every_node_has_a_gpu_kernel_and_only_the_device_differs(
    name: str, noise_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lungs are found in numpy on the CPU, which test_lobes.py holds to the nodes."""
    monkeypatch.setattr(lobes, "locate", partial(lobes.locate, by_nodes=True))
    wrong, on_gpu = missing_kernels(build(FLAVOURS[name], noise_shards, device="gpu"))
    assert wrong == []
    _, on_cpu = missing_kernels(build(FLAVOURS[name], noise_shards))
    assert operators(on_cpu) == operators(on_gpu)
    pixels = {"Resize", "RandomResizedCrop", "Crop", "WarpAffine", "GaussianBlur", "BrightnessContrast", "Cat",
              "CropMirrorNormalize"}  # fmt: skip
    assert not {(operator, device) for operator, device in on_gpu if operator in pixels and device != "gpu"} - {
        ("Cat", "cpu")  # of numbers
    }


@pytest.mark.parametrize("name", FLAVOURS)
def test_images_are_decoded_once(name: str, noise_shards: Path) -> None:
    for device, placed in (("cpu", "cpu"), ("gpu", "mixed")):
        _, nodes = missing_kernels(build(FLAVOURS[name], noise_shards, device=device))
        decoder = "decoders__ImageRandomCrop" if "random area" in name else "decoders__Image"
        assert {node: n for node, n in nodes.items() if "decoder" in node[0].lower()} == {(decoder, placed): 1}
        normalised = sum(n for (operator, _), n in nodes.items() if operator == "CropMirrorNormalize")
        assert normalised == len(FLAVOURS[name].view_names)


def grey_pictures(count: int, side: int = 60) -> list[np.ndarray]:
    random = np.random.default_rng(3)
    small = random.integers(0, 256, (count, side // 4, side // 4), dtype=np.uint8)
    return [np.asarray(Image.fromarray(x).resize((side + 7, side), Image.Resampling.BICUBIC)) for x in small]


@pytest.mark.parametrize("extension", ["png", "jpg"])
@pytest.mark.parametrize("recipe", [multi_view_ct, supervised_cxr, two_view])
def test_one_channel_and_three_agree_on_grey_images(
    recipe: Callable[..., Inputs], extension: str, make_shards: Callable[..., Path]
) -> None:
    """The very same draws: nothing that only colour has is in the graph. Stored as grey, and as RGB."""
    stored = [encode(x if i % 2 else x[..., None].repeat(3, 2), extension) for i, x in enumerate(grey_pictures(32))]
    shards = make_shards(stored)
    inputs = replace(recipe(32), saturation=0.0, hue=0.0, grayscale=0.0)
    one, three = (run(replace(inputs, channels=kind), shards, batch=32) for kind in ("grey", "rgb"))
    assert one.shape == three.shape == (1, len(inputs.view_names), 32, 32, 32, 3)
    assert one.std() > 20
    assert np.abs(one - three).max() <= 1.01


@pytest.mark.parametrize("extension", ["png", "jpg"])
def test_a_crop_decoded_alone_is_of_the_stated_share(extension: str, make_shards: Callable[..., Path]) -> None:
    """Red tells x, green tells y."""
    y, x = np.mgrid[:96, :120]
    shards = make_shards([encode(np.stack([2 * x, 2 * y, 0 * x], -1).astype(np.uint8), extension)] * 600)
    inputs = replace(supervised_natural(32, random_resized_crop=True), area_min=0.2, area_max=0.6, flip=0.0)
    ((seen,),) = run(inputs, shards, batch=600)
    width = (seen[:, 16, -1, 0] - seen[:, 16, 0, 0]) / 2 * 32 / 31
    height = (seen[:, -1, 16, 1] - seen[:, 0, 16, 1]) / 2 * 32 / 31
    share, ratio = width * height / (96 * 120), np.log(width / height)
    assert 0.18 < share.min() < 0.22 and 0.58 < share.max() < 0.63
    assert abs(share.mean() - 0.4) < 0.02
    assert abs(ratio.mean()) < 0.03 and ratio.min() > np.log(3 / 4) - 0.05 and ratio.max() < np.log(4 / 3) + 0.05


def test_colour_becomes_luminance(make_shards: Callable[..., Path]) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    inputs = replace(evaluation(32, resize=32), channels="grey")
    (((got,),),) = run(inputs, make_shards([encode(colours)]), batch=1)
    assert np.abs(got - (colours @ np.array([0.299, 0.587, 0.114]))[..., None]).max() < 1.01  # cut, not rounded


def deep(values: np.ndarray) -> Picture:
    buffer = io.BytesIO()
    Image.fromarray(values.astype(np.uint16)).save(buffer, "PNG")
    return Picture(buffer.getvalue(), "png")


def test_sixteen_bits_keep_their_range_beside_eight(make_shards: Callable[..., Path]) -> None:
    random = np.random.default_rng(0)
    dark, full = random.integers(0, 4096, (32, 32)), random.integers(0, 65536, (32, 32))
    shallow = random.integers(0, 256, (32, 32), dtype=np.uint8)
    shards = make_shards([deep(dark), deep(full), encode(shallow), encode(shallow, "jpg")])
    inputs = replace(evaluation(32, resize=32), channels="grey", bits=16)
    ((kept,),) = run(inputs, shards, batch=4)
    for got, exact in zip(kept[:3], (dark / 257, full / 257, shallow), strict=True):
        assert np.abs(got - exact[..., None]).max() < 1e-3
    ((cut,),) = run(replace(inputs, bits=8), shards, batch=4)
    assert np.abs(cut - kept).max() < 0.51
    assert len(np.unique(np.rint(kept[0] * 257))) > 800 > 20 > len(np.unique(np.rint(cut[0])))


@pytest.mark.parametrize("recipe", [multi_view_ct, supervised_cxr])
def test_eight_bits_look_the_same_in_a_set_of_sixteen(
    recipe: Callable[..., Inputs], make_shards: Callable[..., Path]
) -> None:
    """The very same draws; the lungs are located in both alike."""
    shards = make_shards([encode(x) for x in grey_pictures(32)])
    shallow, wide = (run(replace(recipe(32), bits=bits), shards, batch=32) for bits in (8, 16))
    assert np.abs(shallow - wide).mean() < 0.5
    assert np.abs(shallow - wide).max() < 3  # each op rounded 8 bits, and jitter enlarged what was rounded before
    assert wide.min() >= 0 and wide.max() <= 255


def ramps(count: int) -> Sequence[Picture]:
    """Red tells x, green tells y."""
    y, x = np.mgrid[:64, :64]
    return [encode(np.stack([60 + 2 * x, 60 + 2 * y, 0 * x + 100], -1).astype(np.uint8))] * count


def test_views_regions_samples_and_epochs_draw_on_their_own(make_shards: Callable[..., Path]) -> None:
    """Place, flip, greyness and brightness of all seven views of equal images, twice over."""
    count, times = 200, 2
    shards = make_shards(ramps(count))
    inputs = replace(multi_view_ct(24, region_flip=True), channels="rgb", resize=32, jitter=0.0)
    placed = run(replace(inputs, grayscale=0.0), shards, count, times)
    greyed = run(inputs, shards, count, times)
    jittered = run(
        replace(inputs, grayscale=0.0, jitter=1.0, contrast=0.0, saturation=0.0, hue=0.0), shards, count, times
    )
    drawn = {
        "x": placed[..., 0].min(axis=(3, 4)),
        "y": placed[..., 0, 0, 1],
        "flip": placed[..., 0, 0, 0] > placed[..., 0, -1, 0],
        "grey": np.ptp(greyed[..., 4, 4, :], axis=3) < 1e-3,
        "brightness": jittered[..., 4, 4, 2],
    }
    for name, values in drawn.items():
        columns = values.reshape(times * 7, count).astype(float)
        assert len(np.unique(np.rint(columns[0]))) >= {"brightness": 50, "x": 9, "y": 9}.get(name, 2), name
        assert columns.std(axis=1).min() > 0, name
        assert np.abs(np.corrcoef(columns) - np.eye(times * 7)).max() < 4.5 / np.sqrt(count), name
    together = np.stack([drawn[name][:, 0].ravel() for name in ("x", "y", "flip")]).astype(float)
    assert np.abs(np.corrcoef(together) - np.eye(3)).max() < 4.5 / np.sqrt(times * count)


def test_the_same_seed_draws_the_same(make_shards: Callable[..., Path]) -> None:
    shards = make_shards(ramps(8))
    first, again = (run(two_view(24, published="simclr"), shards, batch=8) for _ in range(2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first[0, 0], first[0, 1])


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_crop_decoded_alone_is_upright(orientation: int, make_shards: Callable[..., Path]) -> None:
    """The area of the whole square leaves no choice of a crop."""
    y, x = np.mgrid[:64, :64]
    image = Image.fromarray(np.stack([3 * x, 3 * y, 0 * x + 90], -1).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95, subsampling=0, exif=exif)
    inputs = replace(supervised_natural(64, random_resized_crop=True), area_min=1.0, flip=0.0)
    (((seen,),),) = run(inputs, make_shards([Picture(buffer.getvalue(), "jpg")]), batch=1)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(buffer)))
    assert np.abs(seen - upright).mean() < 1
