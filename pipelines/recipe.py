"""What the network sees, as numbers: sizes, views and augmentation of every input recipe. No DALI here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

from shards.errors import MstlError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
REGION_NAMES = ("ru", "rm", "rl", "lu", "ll")
"""The five regions in the order of their labels 0 … 4."""

Crop = Literal["random", "centre", "area"]
Views = Literal["one", "two", "two_and_regions"]
Channels = Literal["rgb", "grey"]
Published = Literal["moco_v1", "moco_v2", "simclr"]
_RESIZE_RATIO = 256 / 224
_PROBABILITIES = ("flip", "grayscale", "jitter", "blur", "geometry")


@dataclass(frozen=True, kw_only=True, slots=True)
class Inputs:
    """One input recipe. Probabilities are per image and view; lengths in pixels, unless said otherwise.

    views: "one" (`x`), "two" (`q`, `k`) or "two_and_regions" (`q`, `k`, `ru`, `rm`, `rl`, `lu`, `ll`).
    channels: "grey" decodes to luminance and works on one channel, which becomes three equal ones at the very end;
        for images that measure one thing, such as radiographs and CT, where colour is only what was drawn on them.
        Saturation, hue and grayscale do nothing there and are left out.
    bits: 8, or for grey images 16, which keeps finer steps than 8 bits and costs more; images of 8 bits are fine too.
    image_size: side of the square every view has at the end. resize: side of the square the whole image, and each
        region, is first brought to (aspect ratio given up, so that nothing is cut off: paper §6.2 prints 256x256).
    crop: "random" or "centre" image_size square of the resized image; "area": a random part of the original
        image, area_min … area_max of its area, straight to image_size (torchvision's RandomResizedCrop).
    flip: probability of a horizontal flip. grayscale: probability of dropping colour; before the jitter instead of
        after it with grayscale_first.
    jitter: probability of jitter; brightness, contrast and saturation are then factors, uniform in 1 ± their value,
        and hue moves by up to this share of the colour circle. Always in this order, where torchvision shuffles: a
        graph has no branches, and apart from values cut off at black or white all but hue commute.
    blur: probability of a Gaussian blur with sigma uniform in blur_sigma_min … blur_sigma_max, its window at most
        blur_window of image_size (0: no limit).
    translation: largest shift as a fraction of the side, both ways; rotation: largest angle in degrees; intensity:
        all values times 1 ± this. Each happens with probability `geometry`; what comes into sight is black.
    region_flip: whether regions are flipped too. In all else but shift and rotation, of which regions have none, each
        is augmented as the views are, on its own.
    mean, std: of RGB values in 0 … 1.

    Raises MstlError for values out of range.
    """

    name: str
    views: Views = "one"
    channels: Channels = "rgb"
    bits: int = 8
    image_size: int = 224
    resize: int = 256
    crop: Crop = "random"
    area_min: float = 0.08
    area_max: float = 1.0
    flip: float = 0.0
    grayscale: float = 0.0
    grayscale_first: bool = False
    jitter: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    blur: float = 0.0
    blur_sigma_min: float = 0.1
    blur_sigma_max: float = 2.0
    blur_window: float = 0.0
    geometry: float = 0.0
    translation: float = 0.0
    rotation: float = 0.0
    intensity: float = 0.0
    region_flip: bool = False
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        for name in _PROBABILITIES:
            self._require(name, 0 <= getattr(self, name) <= 1, "a probability is between 0 and 1")
        for name in ("brightness", "contrast", "saturation", "intensity"):
            self._require(name, 0 <= getattr(self, name) <= 1, "the factor 1 ± it must not be negative")
        self._require("hue", 0 <= self.hue <= 0.5, "it is a share of the colour circle, half of which is all there is")
        smallest, largest = self.blur_sigma_min, self.blur_sigma_max
        self._require("blur_sigma_min", 0 < smallest <= largest, "needed: 0 < blur_sigma_min <= blur_sigma_max")
        self._require("blur_window", 0 <= self.blur_window <= 1, "it is a fraction of the side")
        self._require("translation", 0 <= self.translation < 1, "it is a fraction of the side")
        self._require("rotation", 0 <= self.rotation <= 180, "it is an angle in degrees, at most 180")
        self._require("image_size", self.image_size >= 8, "it must be at least 8 pixels")
        self._require("resize", self.resize >= self.image_size, f"a {self.image_size} pixel crop does not fit into it")
        self._require("area_min", 0 < self.area_min <= self.area_max <= 1, "needed: 0 < area_min <= area_max <= 1")
        for name, kinds in (("crop", Crop), ("views", Views), ("channels", Channels)):
            self._require(name, getattr(self, name) in get_args(kinds), "known are " + ", ".join(get_args(kinds)))
        self._require("bits", self.bits in (8, 16), "known are 8 and 16")
        self._require("bits", self.bits == 8 or self.is_grey, "more than 8 bits are kept of grey images only")
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

    @property
    def is_grey(self) -> bool:
        """Whether images have one channel until they are normalised."""
        return self.channels == "grey"

    @property
    def moves(self) -> bool:
        """Whether images are shifted or turned."""
        return self.geometry > 0 and (self.translation > 0 or self.rotation > 0)

    @property
    def decodes_crop(self) -> bool:
        """Whether no more than the crop is decoded, which only one view of a random part of the image allows."""
        return self.crop == "area" and self.views == "one"

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


def fitted(inputs: Inputs, *, modality: str, deep: bool) -> Inputs:
    """A recipe for the shard set at hand: radiographs and CT in grey, everything else in colour.

    deep: the set holds grey images of 16 bits, which are then read as such (all of the set, at some cost).
    """
    grey = modality in ("cxr", "ct")
    return replace(inputs, channels="grey" if grey else "rgb", bits=16 if deep and grey else 8)


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
        name="supervised_cxr", channels="grey", image_size=image_size, resize=image_size, crop="centre", flip=0.5,
        geometry=0.5, translation=0.1, rotation=10.0, intensity=0.1,
    )  # fmt: skip


def _ct(name: str, views: Views, image_size: int, region_flip: bool = False) -> Inputs:
    return Inputs(
        name=name, views=views, channels="grey", image_size=image_size, resize=resize_for(image_size), crop="random",
        flip=0.5, grayscale=0.5, jitter=0.5, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.4,
        region_flip=region_flip,
    )  # fmt: skip


def multi_view_ct(image_size: int = 224, *, region_flip: bool = False) -> Inputs:
    """SSTL-M (paper §5.2, §5.3, §6.2): two views and five regions, each 256x256, of which a random 224 crop.

    Jitter, flip and grayscale, each .5; jitter amplitudes are MoCo's .4. Of grey images hue, saturation and grayscale
    change nothing. Regions are not flipped unless asked, as the paper prints: a flip would hide which side they come
    from (ours).
    """
    return _ct("multi_view_ct", "two_and_regions", image_size, region_flip)


def supervised_ct(image_size: int = 224) -> Inputs:
    """Fine-tuning (paper §6.2): one view, augmented as in SSTL-M."""
    return _ct("supervised_ct", "one", image_size)


def two_view(image_size: int = 224, *, published: Published = "moco_v1", strength: float = 1.0) -> Inputs:
    """The baselines MoCo and SimCLR (paper §6.2: as in their papers): two views by a published augmentation.

    moco_v1 (He et al. 2020): area .2 … 1, grayscale .2, then jitter .4 of everything, always, flip .5.
    moco_v2 (Chen et al. 2020): area .2 … 1, jitter .4 (hue .1) with .8, grayscale .2, blur .5, flip .5.
    simclr (Chen et al. 2020): area .08 … 1, jitter .8 (hue .2), all times `strength`, with .8, grayscale .2, blur .5
    in a window of a tenth of the image, flip .5.
    Raises MstlError for an unknown name and for a strength that jitter cannot have.
    """
    if published not in get_args(Published):
        known = ", ".join(get_args(Published))
        raise MstlError(f"augmentation {published!r}", why="nobody published it", remedy=f"Choose one of {known}")
    common = Inputs(
        name="two_view", views="two", image_size=image_size, resize=resize_for(image_size), crop="area", area_min=0.2,
        flip=0.5, grayscale=0.2, brightness=0.4, contrast=0.4, saturation=0.4,
    )  # fmt: skip
    if published == "moco_v1":
        return replace(common, grayscale_first=True, jitter=1.0, hue=0.4)
    if published == "moco_v2":
        return replace(common, jitter=0.8, hue=0.1, blur=0.5)
    s = strength
    return replace(
        common, area_min=0.08, jitter=0.8, brightness=0.8 * s, contrast=0.8 * s, saturation=0.8 * s, hue=0.2 * s,
        blur=0.5, blur_window=0.1,
    )  # fmt: skip


def evaluation(image_size: int = 224, *, resize: int | None = None, as_printed: bool = False) -> Inputs:
    """Testing (paper §6.2): resize (default at 256:224), centre crop, normalise; nothing random.

    Give resize = image_size after training with `supervised_cxr`, which sees the whole image. as_printed: the paper
    says that all but the crop is as in training on CT; taken by the letter, jitter, flip and grayscale then stay.
    Images are read in colour; of grey data give the channels (and bits) of its training with `dataclasses.replace`.
    """
    side = resize or resize_for(image_size)
    if as_printed:
        return replace(supervised_ct(image_size), name="evaluation", resize=side, crop="centre", channels="rgb")
    return Inputs(name="evaluation", image_size=image_size, resize=side, crop="centre")


RECIPES: Mapping[str, Callable[..., Inputs]] = {
    recipe.__name__: recipe
    for recipe in (supervised_natural, supervised_cxr, multi_view_ct, supervised_ct, two_view, evaluation)
}
"""Every named recipe; call with the image size and the recipe's own keywords."""
