"""The numbers of the input recipes."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from pipelines.recipe import RECIPES, Inputs, evaluation, multi_view_ct, supervised_cxr, supervised_natural, two_view
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
    assert not ct.region_flip
    assert multi_view_ct(region_flip=True).region_flip
    test = evaluation()
    assert (test.resize, test.crop, test.flip, test.jitter, test.geometry) == (256, "centre", 0, 0, 0)


def test_resize_keeps_the_ratio() -> None:
    assert [evaluation(size).resize for size in (224, 96, 64, 32)] == [256, 110, 73, 37]
    assert evaluation(96, resize=96).resize == 96


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"flip": 1.5}, "flip"),
        ({"grayscale": -0.1}, "grayscale"),
        ({"contrast": 1.1}, "contrast"),
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
