"""The numbers of the input recipes."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from pipelines.recipe import (
    RECIPES,
    Inputs,
    evaluation,
    fitted,
    multi_view_ct,
    supervised_ct,
    supervised_cxr,
    supervised_natural,
    two_view,
)
from shards.errors import MstlError


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("size", [32, 224])
def test_recipes_round_trip_through_json(name: str, size: int) -> None:
    recipe = RECIPES[name](size)
    assert recipe.name == name
    again = Inputs.from_dict(json.loads(json.dumps(recipe.to_dict())))
    assert again == recipe
    assert hash(again) == hash(recipe)


def test_names_of_the_recipes_and_views() -> None:
    assert set(RECIPES) == {
        "supervised_natural", "supervised_cxr", "multi_view_ct", "supervised_ct", "two_view", "evaluation"
    }  # fmt: skip
    assert multi_view_ct().view_names == ("q", "k", "ru", "rm", "rl", "lu", "ll")
    assert two_view().view_names == ("q", "k")
    assert evaluation().view_names == ("x",)


def test_printed_numbers() -> None:
    natural = supervised_natural()
    assert (natural.resize, natural.image_size, natural.crop, natural.flip) == (256, 224, "random", 0.5)
    assert natural.jitter == natural.grayscale == natural.geometry == 0
    assert supervised_natural(random_resized_crop=True).area_min == 0.08
    cxr = supervised_cxr()
    assert (cxr.geometry, cxr.flip, cxr.translation, cxr.rotation, cxr.intensity) == (0.5, 0.5, 0.1, 10, 0.1)
    assert cxr.resize == cxr.image_size == 224
    ct = multi_view_ct()
    assert (ct.jitter, ct.flip, ct.grayscale, ct.brightness, ct.contrast) == (0.5, 0.5, 0.5, 0.4, 0.4)
    assert (ct.saturation, ct.hue, ct.grayscale_first, ct.blur) == (0.4, 0.4, False, 0)
    assert (ct.resize, ct.image_size, ct.crop) == (256, 224, "random")
    assert not ct.region_flip
    assert multi_view_ct(region_flip=True).region_flip
    test = evaluation()
    assert (test.resize, test.crop, test.flip, test.jitter, test.geometry) == (256, "centre", 0, 0, 0)
    by_the_letter = evaluation(as_printed=True)
    assert by_the_letter == replace(supervised_ct(), name="evaluation", crop="centre", channels="rgb")


def test_radiographs_and_ct_have_one_channel_and_natural_images_three() -> None:
    grey = {name for name, recipe in RECIPES.items() if recipe().is_grey}
    assert grey == {"supervised_cxr", "multi_view_ct", "supervised_ct"}
    assert all(recipe().bits == 8 for recipe in RECIPES.values())


def test_published_numbers_of_the_baselines() -> None:
    for name in ("moco_v1", "moco_v2", "simclr"):
        recipe = two_view(published=name)
        assert (recipe.crop, recipe.area_max, recipe.flip, recipe.grayscale) == ("area", 1.0, 0.5, 0.2)
    first, second, third = (two_view(published=name) for name in ("moco_v1", "moco_v2", "simclr"))
    assert (first.jitter, first.brightness, first.contrast, first.saturation, first.hue) == (1.0, 0.4, 0.4, 0.4, 0.4)
    assert (first.area_min, first.grayscale_first, first.blur) == (0.2, True, 0)
    assert (second.jitter, second.brightness, second.contrast, second.saturation, second.hue) == (
        0.8, 0.4, 0.4, 0.4, 0.1
    )  # fmt: skip
    assert (second.area_min, second.grayscale_first, second.blur, second.blur_window) == (0.2, False, 0.5, 0)
    assert (third.jitter, third.brightness, third.contrast, third.saturation, third.hue) == (0.8, 0.8, 0.8, 0.8, 0.2)
    assert (third.area_min, third.grayscale_first, third.blur, third.blur_window) == (0.08, False, 0.5, 0.1)
    assert (third.blur_sigma_min, third.blur_sigma_max) == (second.blur_sigma_min, second.blur_sigma_max) == (0.1, 2.0)
    half = two_view(published="simclr", strength=0.5)
    assert (half.brightness, half.contrast, half.saturation, half.hue) == (0.4, 0.4, 0.4, 0.1)
    assert two_view() == first


def test_what_follows_from_the_numbers() -> None:
    cxr = supervised_cxr()
    assert cxr.moves and replace(cxr, rotation=0.0).moves and replace(cxr, translation=0.0).moves
    assert not replace(cxr, geometry=0.0).moves and not replace(cxr, rotation=0.0, translation=0.0).moves
    assert supervised_natural(random_resized_crop=True).decodes_crop
    assert not any(recipe().decodes_crop for recipe in RECIPES.values()), "of several views each has its own crop"


def test_what_nobody_published_is_refused() -> None:
    with pytest.raises(MstlError, match="moco_v1, moco_v2, simclr"):
        two_view(published="moco_v9")
    with pytest.raises(MstlError, match="brightness"):
        two_view(published="simclr", strength=1.5)


def test_resize_keeps_the_ratio() -> None:
    assert [evaluation(size).resize for size in (224, 96, 64, 32)] == [256, 110, 73, 37]
    assert evaluation(96, resize=96).resize == 96


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"flip": 1.5}, "flip"),
        ({"grayscale": -0.1}, "grayscale"),
        ({"blur": 2}, "blur = 2"),
        ({"contrast": 1.1}, "contrast"),
        ({"saturation": -0.1}, "saturation"),
        ({"hue": 0.6}, "hue"),
        ({"blur_sigma_min": 0.0}, "blur_sigma_min"),
        ({"blur_sigma_max": 0.05}, "blur_sigma_min"),
        ({"blur_window": 1.5}, "blur_window"),
        ({"channels": "blue"}, "rgb, grey"),
        ({"channels": "grey", "bits": 12}, "8 and 16"),
        ({"bits": 16}, "grey images only"),
        ({"translation": 1.0}, "translation"),
        ({"rotation": 200.0}, "rotation"),
        ({"image_size": 4}, "image_size"),
        ({"image_size": 300}, "300 pixel crop"),
        ({"area_min": 0.5, "area_max": 0.4}, "area_min"),
        ({"crop": "left"}, "random, centre, area"),
        ({"views": "three"}, "two_and_regions"),
        ({"std": (1.0, 0.0, 1.0)}, "std"),
    ],
)
def test_bad_values_are_refused(changes: dict[str, object], word: str) -> None:
    with pytest.raises(MstlError, match=word):
        replace(evaluation(), **changes)


def test_a_record_of_another_version_is_refused() -> None:
    with pytest.raises(MstlError, match="sharpness"):
        Inputs.from_dict({**evaluation().to_dict(), "sharpness": 1})
    with pytest.raises(MstlError, match="no name"):
        Inputs.from_dict({"image_size": 32})


@pytest.mark.parametrize(
    ("modality", "deep", "channels", "bits"),
    [("natural", False, "rgb", 8), ("natural", True, "rgb", 8), ("cxr", False, "grey", 8), ("ct", True, "grey", 16)],
)
def test_a_recipe_is_fitted_to_its_shard_set(modality: str, deep: bool, channels: str, bits: int) -> None:
    for recipe in RECIPES.values():
        inputs = fitted(recipe(64), modality=modality, deep=deep)
        assert (inputs.channels, inputs.bits) == (channels, bits)
        assert replace(inputs, channels="rgb", bits=8) == replace(recipe(64), channels="rgb", bits=8)
