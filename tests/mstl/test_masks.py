"""Masks go where their images go: the same geometry, on shapes whose place is known, and on real slices."""

from __future__ import annotations

import os
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from mstl.evaluation.explain_files import SPLIT, find_images, find_masks, write_file_set
from mstl.evaluation.masks import load_masks, mask_inputs
from pipelines.loader import Loader
from pipelines.recipe import Inputs, evaluation, supervised_ct
from shards.errors import MstlError

PLAIN = replace(evaluation(32), channels="grey")  # resized to 37, of which the middle 32


def seen(path: Path, inputs: Inputs, place: Path) -> Tensor:
    """[H, W] in 0..1: the first channel of an image as a network gets it, normalisation undone."""
    made = write_file_set(find_images([path]), place, classes=("any",))
    with closing(
        Loader(
            inputs,
            made.folder,
            SPLIT,
            rank=0,
            world=1,
            batch=1,
            epochs=1,
            device="cpu",
            seed=0,
            shuffle=False,
            remainder="pad",
        )
    ) as loader:
        (batch,) = list(loader)
    return batch.views["x"][0, 0] * inputs.std[0] + inputs.mean[0]


def save(path: Path, inside: NDArray[np.bool_], value: int = 255) -> Path:
    Image.fromarray((value * inside).astype(np.uint8)).save(path)
    return path


def square(height: int, width: int) -> NDArray[np.bool_]:
    inside = np.zeros((height, width), bool)
    inside[height // 4 : height // 2, width // 4 : width // 2] = True
    return inside


@pytest.mark.parametrize("inputs", [PLAIN, replace(evaluation(32, resize=32), channels="grey"), evaluation(32)])
@pytest.mark.parametrize("size", [(60, 80), (30, 20), (300, 200)])
def test_a_mask_lies_on_its_image_pixel_by_pixel(inputs: Inputs, size: tuple[int, int], tmp_path: Path) -> None:
    """A picture that is its own mask: white where lung is."""
    image = save(tmp_path / "x.png", square(*size))
    found = load_masks({"x": image}, {"x": (size[1], size[0])}, inputs)["x"]
    assert found.shape == (32, 32)
    torch.testing.assert_close(found, seen(image, inputs, tmp_path / "set"), rtol=0, atol=1e-5)
    assert 0.02 < float(found.mean()) < 0.1


def test_a_square_lands_where_arithmetic_says(tmp_path: Path) -> None:
    """Columns 20 to 40 of 80, at 37/80: 9.25 to 18.5; less the crop's 2: 7.25 to 16.5. Rows alike."""
    path = save(tmp_path / "x.png", square(60, 80), value=1)
    found = load_masks({"x": path}, {"x": (80, 60)}, PLAIN)["x"]
    for profile in (found[10], found[:, 10]):
        assert (profile[9:15] > 0.98).all() and (profile[:6] < 0.02).all() and (profile[18:] < 0.02).all()
        assert profile.sum() == pytest.approx(9.25, abs=0.1)
        assert float((profile * (torch.arange(32) + 0.5)).sum() / profile.sum()) == pytest.approx(11.875, abs=0.1)


def test_a_mask_of_another_resolution_lies_in_the_same_place(tmp_path: Path) -> None:
    small = save(tmp_path / "a.png", square(64, 64))
    large = save(tmp_path / "b.png", square(640, 640))
    found = load_masks({"a": small, "b": large}, {"a": (64, 64), "b": (64, 64)}, PLAIN)
    assert (found["a"] - found["b"]).abs().max() < 0.15
    assert float(found["a"].sum()) == pytest.approx(float(found["b"].sum()), rel=0.02)


def test_each_mask_goes_to_its_own_image(tmp_path: Path) -> None:
    paths, sizes = {}, {}
    for number in range(40):  # more than one batch
        inside = np.zeros((40, 40), bool)
        inside[number] = True
        paths[f"n{number}"] = save(tmp_path / f"{number}.png", inside)
        sizes[f"n{number}"] = (40, 40)
    found = load_masks(paths, {name: size for name, size in sizes.items() if name != "n3"}, evaluation(40, resize=40))
    assert sorted(found) == sorted(sizes.keys() - {"n3"})
    for name, mask in found.items():
        assert int(mask.sum(1).argmax()) == int(name[1:]) and float(mask.sum()) == pytest.approx(40)


def test_anything_but_0_is_lung_in_every_kind_of_png(tmp_path: Path) -> None:
    inside = square(40, 40)
    expected = load_masks({"x": save(tmp_path / "x.png", inside)}, {"x": (40, 40)}, PLAIN)["x"]
    labels = np.where(inside, np.arange(40) % 3 + 1, 0).astype(np.uint8)  # 1, 2, 3: three lobes
    kinds = {"labels": Image.fromarray(labels), "palette": Image.fromarray(labels).convert("P")}
    kinds["one bit"] = Image.fromarray(255 * inside.astype(np.uint8)).convert("1")
    colour = np.zeros((40, 40, 4), np.uint8)
    colour[..., 3] = 255
    colour[inside, 2] = 9
    kinds["blue on opaque black"] = Image.fromarray(colour)
    kinds["sixteen bits"] = Image.fromarray(labels.astype(np.uint16) * 256)
    for name, image in kinds.items():
        image.save(tmp_path / "kind.png")
        found = load_masks({"x": tmp_path / "kind.png"}, {"x": (40, 40)}, PLAIN)["x"]
        torch.testing.assert_close(found, expected, msg=name)


def test_what_cannot_be_a_mask_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "x.png", square(60, 80))
    with pytest.raises(MstlError, match=r"80 × 60 pixels and its image 60 × 80, of another shape"):
        load_masks({"x": path}, {"x": (60, 80)}, PLAIN)
    (tmp_path / "y.png").write_bytes(path.read_bytes()[:60])
    with pytest.raises(MstlError, match=r"mask .*y\.png: it cannot be read"):
        load_masks({"y": tmp_path / "y.png"}, {"y": (80, 60)}, PLAIN)


@pytest.mark.parametrize("inputs", [evaluation(32, as_printed=True), supervised_ct(32)])
def test_masks_cannot_follow_chance(inputs: Inputs) -> None:
    with pytest.raises(MstlError, match="at random, which masks cannot follow"):
        mask_inputs(inputs)


def test_masks_are_found_by_the_names_of_images(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("a", "a_mask", "b", "deep/c", "deep/c_mask"):
        save(tmp_path / f"{name}.png", square(8, 8))
    assert find_masks(tmp_path) == {"a": tmp_path / "a_mask.png", "deep/c": tmp_path / "deep" / "c_mask.png"}
    assert [file.name for file in find_images([tmp_path])] == ["a", "b", "deep/c"]
    assert [file.name for file in find_images([tmp_path / "a.png", tmp_path / "a_mask.png"])] == ["a"]
    (tmp_path / "plain").mkdir()
    save(tmp_path / "plain" / "a.png", square(8, 8))
    assert find_masks(tmp_path / "plain") == {"a": tmp_path / "plain" / "a.png"}


def test_images_and_masks_that_are_not_there_are_named(tmp_path: Path) -> None:
    for call, said in (
        (lambda: find_images([tmp_path / "x"]), "no such file or folder"),
        (lambda: find_images([tmp_path]), "no images are there"),
        (lambda: find_masks(tmp_path / "x"), "no such folder"),
        (lambda: find_masks(tmp_path), "no PNG is there"),
    ):
        with pytest.raises(MstlError, match=said):
            call()
    (tmp_path / "x.png").write_bytes(b"nothing")
    with pytest.raises(MstlError, match="none of them can be read"):
        write_file_set(find_images([tmp_path]), tmp_path / "set", classes=("a",))
    save(tmp_path / "x.jpg", square(8, 8))
    with pytest.raises(MstlError, match=r"x\.png: .*x\.jpg has the same name, x"):
        find_images([tmp_path])


def test_real_lungs_are_dark_where_their_masks_are(tmp_path: Path) -> None:
    folder = Path(os.environ.get("MSTL_TEST_DATA", "")) / "lungmask"
    if not (os.environ.get("MSTL_TEST_DATA") and folder.is_dir()):
        pytest.skip("MSTL_TEST_DATA has no lungmask folder with real slices")
    name = "id1_z20"
    inputs = replace(evaluation(64), channels="grey")
    mask = load_masks({name: find_masks(folder)[name]}, {name: (256, 256)}, inputs)[name]
    image = seen(folder / f"{name}.png", inputs, tmp_path / "set")
    shifted = torch.roll(mask, (8, 8), (0, 1))

    def grey(where: Tensor) -> float:
        return float(image[where > 0.9].mean())

    assert grey(mask) < 0.25 and grey(shifted) > grey(mask) + 0.05
