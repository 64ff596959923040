"""What the network sees, as numbers: sizes, views and augmentation of every input recipe. No DALI here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from shards.errors import MstlError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
REGION_NAMES = ("ru", "rm", "rl", "lu", "ll")
"""The five regions in the order of their labels 0 … 4."""

Crop = Literal["random", "centre", "area"]
Views = Literal["one", "two", "two_and_regions"]
_RESIZE_RATIO = 256 / 224


@dataclass(frozen=True, kw_only=True, slots=True)
class Inputs:
    """One input recipe. Probabilities are per image and view; lengths in pixels, unless said otherwise.

    views: "one" (`x`), "two" (`q`, `k`) or "two_and_regions" (`q`, `k`, `ru`, `rm`, `rl`, `lu`, `ll`).
    image_size: side of the square every view has at the end. resize: side of the square the whole image is first
        brought to (aspect ratio given up, so that nothing is cut off: paper §6.2 prints 256x256).
    crop: "random" or "centre" image_size square of the resized image; "area": a random part of the original
        image, area_min … area_max of its area, straight to image_size (torchvision's RandomResizedCrop).
    flip: probability of a horizontal flip. grayscale: probability of dropping colour.
    jitter: probability of jitter; brightness and contrast are then factors, uniform in 1 ± their value; contrast
        is about mid-grey (128), as DALI has it.
    translation: largest shift as a fraction of the side, both ways; rotation: largest angle in degrees; intensity:
        all values times 1 ± this. Each happens with probability `geometry`; what comes into sight is black.
    region_flip, region_jitter: whether the five regions are augmented, each on its own.
    mean, std: of RGB values in 0 … 1.

    Raises MstlError for values out of range.
    """

    name: str
    views: Views = "one"
    image_size: int = 224
    resize: int = 256
    crop: Crop = "random"
    area_min: float = 0.08
    area_max: float = 1.0
    flip: float = 0.0
    grayscale: float = 0.0
    jitter: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    geometry: float = 0.0
    translation: float = 0.0
    rotation: float = 0.0
    intensity: float = 0.0
    region_flip: bool = False
    region_jitter: bool = True
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        for name in ("flip", "grayscale", "jitter", "geometry"):
            self._require(name, 0 <= getattr(self, name) <= 1, "a probability is between 0 and 1")
        for name in ("brightness", "contrast", "intensity"):
            self._require(name, 0 <= getattr(self, name) <= 1, "the factor 1 ± it must not be negative")
        self._require("translation", 0 <= self.translation < 1, "it is a fraction of the side")
        self._require("rotation", 0 <= self.rotation <= 180, "it is an angle in degrees, at most 180")
        self._require("image_size", self.image_size >= 8, "it must be at least 8 pixels")
        self._require("resize", self.resize >= self.image_size, f"a {self.image_size} pixel crop does not fit into it")
        self._require("area_min", 0 < self.area_min <= self.area_max <= 1, "needed: 0 < area_min <= area_max <= 1")
        self._require("crop", self.crop in get_args(Crop), "known are " + ", ".join(get_args(Crop)))
        self._require("views", self.views in get_args(Views), "known are " + ", ".join(get_args(Views)))
        self._require("std", len(self.mean) == 3 == len(self.std) and min(self.std) > 0, "three positive values needed")

    def _require(self, field: str, holds: bool, why: str) -> None:
        if not holds:
            raise MstlError(
                f"input recipe {self.name}: {field} = {getattr(self, field)!r}", why=why, remedy="Change it"
            )

    @property
    def view_names(self) -> tuple[str, ...]:
        """Names of the views, in the order of the graph's outputs."""
        return {"one": ("x",), "two": ("q", "k"), "two_and_regions": ("q", "k", *REGION_NAMES)}[self.views]

    @property
    def has_regions(self) -> bool:
        """Whether lungs are located and five regions cut out."""
        return self.views == "two_and_regions"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `from_dict` is its inverse."""
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Inputs:
        """Rebuild from `to_dict`, e.g. out of a run record; raises MstlError for unknown or missing fields."""
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown or "name" not in values:
            raise MstlError(
                "recorded input recipe",
                why=f"it has unknown fields: {', '.join(unknown)}" if unknown else "it has no name",
                remedy="Use the version of MSTL that wrote it",
            )
        triples = {name: tuple(values[name]) for name in ("mean", "std") if name in values}
        return cls(**{**values, **triples})


def resize_for(image_size: int) -> int:
    """Side of the resized image for a crop of `image_size`, at the paper's ratio 256:224, to the nearest pixel."""
    return round(image_size * _RESIZE_RATIO)


def supervised_natural(image_size: int = 224, *, random_resized_crop: bool = False) -> Inputs:
    """STL-N (paper §6.2): 256x256, random 224 crop, flip .5; or, not printed, RandomResizedCrop of area .08 … 1."""
    crop: Crop = "area" if random_resized_crop else "random"
    return Inputs(name="supervised_natural", image_size=image_size, resize=resize_for(image_size), crop=crop, flip=0.5)


def supervised_cxr(image_size: int = 224) -> Inputs:
    """STL-M (paper §6.2: translation, rotation, flip, intensity shift, each .5); amplitudes are COVID-Net's.

    The whole radiograph is used: no crop is printed for this stage.
    """
    return Inputs(
        name="supervised_cxr", image_size=image_size, resize=image_size, crop="centre", flip=0.5,
        geometry=0.5, translation=0.1, rotation=10.0, intensity=0.1,
    )  # fmt: skip


def _ct(name: str, views: Views, image_size: int, region_flip: bool = False) -> Inputs:
    return Inputs(
        name=name, views=views, image_size=image_size, resize=resize_for(image_size), crop="random", flip=0.5,
        grayscale=0.5, jitter=0.5, brightness=0.4, contrast=0.4, region_flip=region_flip,
    )  # fmt: skip


def multi_view_ct(image_size: int = 224, *, region_flip: bool = False) -> Inputs:
    """SSTL-M (paper §5.2, §5.3, §6.2): two views and five regions.

    Views: 256x256, random 224 crop; jitter, flip and grayscale, each .5. Jitter amplitudes are MoCo's .4 for
    brightness and contrast; hue and saturation do nothing on grey images.
    Regions are not flipped: a flip would hide which side they come from (ours).
    """
    return _ct("multi_view_ct", "two_and_regions", image_size, region_flip)


def supervised_ct(image_size: int = 224) -> Inputs:
    """Fine-tuning (paper §6.2): one view, augmented as in SSTL-M."""
    return _ct("supervised_ct", "one", image_size)


def two_view(image_size: int = 224) -> Inputs:
    """MoCo and SimCLR baselines: MoCo v1's augmentation (area .2 … 1, jitter .4 always, flip .5, grayscale .2)."""
    return Inputs(
        name="two_view", views="two", image_size=image_size, resize=resize_for(image_size), crop="area", area_min=0.2,
        flip=0.5, grayscale=0.2, jitter=1.0, brightness=0.4, contrast=0.4,
    )  # fmt: skip


def evaluation(image_size: int = 224, *, resize: int | None = None) -> Inputs:
    """Testing (paper §6.2): resize (default at 256:224), centre crop, normalise; nothing random.

    Give resize = image_size after training with `supervised_cxr`, which sees the whole image.
    """
    return Inputs(name="evaluation", image_size=image_size, resize=resize or resize_for(image_size), crop="centre")


RECIPES: Mapping[str, Callable[..., Inputs]] = {
    recipe.__name__: recipe
    for recipe in (supervised_natural, supervised_cxr, multi_view_ct, supervised_ct, two_view, evaluation)
}
"""Every named recipe; call with the image size and the recipe's own keywords."""
