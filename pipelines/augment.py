"""Augmentation as DALI nodes: each takes and gives a graph edge, runs on CPU and GPU, and draws per image.

Images are HWC uint8 RGB until `normalise`. An augmentation of probability p is folded into its numbers (a factor of
1 where the coin says no), so that a graph has no branches and a whole batch goes through one kernel.
"""

from __future__ import annotations

from collections.abc import Sequence

from nvidia.dali import fn, types
from nvidia.dali.data_node import DataNode

from pipelines.recipe import Inputs


def coin(probability: float) -> DataNode:
    """1 with this probability, else 0: a CPU int32 scalar per image."""
    return fn.random.coin_flip(probability=probability)


def spread(largest: float, shape: Sequence[int] = ()) -> DataNode:
    """Uniform in ± largest, which may be 0: CPU floats of this shape per image."""
    return largest * fn.random.uniform(range=(-1.0, 1.0), shape=list(shape))


def resize_square(image: DataNode, side: int) -> DataNode:
    """The whole image as a square of `side` pixels, bilinear with antialiasing."""
    return fn.resize(image, size=[side, side], interp_type=types.INTERP_LINEAR, antialias=True)


def area_crop(image: DataNode, side: int, area_min: float, area_max: float) -> DataNode:
    """A random part of the image (share of its area, sides' ratio 3/4 … 4/3) as a square of `side` pixels."""
    return fn.random_resized_crop(
        image,
        size=[side, side],
        random_area=(area_min, area_max),
        random_aspect_ratio=(3 / 4, 4 / 3),
        interp_type=types.INTERP_LINEAR,
        antialias=True,
    )


def jitter(image: DataNode, *, brightness: DataNode, contrast: DataNode) -> DataNode:
    """brightness · (128 + contrast · (x - 128)), rounded and kept within 0 … 255; the factors are scalars per image."""
    return fn.brightness_contrast(image, brightness=brightness, contrast=contrast, contrast_center=128.0)


def grayscale(image: DataNode, chosen: DataNode) -> DataNode:
    """The luminance in all three channels where `chosen` is 1, the image itself where it is 0.

    Written out, since DALI's saturation rounds the channels apart by one, even of images without colour.
    """
    grey = fn.color_space_conversion(image, image_type=types.RGB, output_type=types.GRAY)
    return fn.cast(image * (1 - chosen) + grey * chosen, dtype=types.UINT8)


def shift_and_rotate(image: DataNode, side: int, *, shift: DataNode, degrees: DataNode) -> DataNode:
    """A square image turned about its centre (positive: counter-clockwise as seen), then moved by `shift` (x, y).

    shift: fractions of the side. What comes into sight is black.
    """
    matrix = fn.transforms.rotation(angle=-degrees, center=[side / 2, side / 2])
    matrix = fn.transforms.translation(matrix, offset=shift * float(side))
    return fn.warp_affine(image, matrix=matrix, inverse_map=False, fill_value=0.0, interp_type=types.INTERP_LINEAR)


def scale_intensity(image: DataNode, factor: DataNode) -> DataNode:
    """All values times a factor, rounded and kept within 0 … 255."""
    return fn.brightness_contrast(image, brightness=factor)


def normalise(
    image: DataNode,
    inputs: Inputs,
    *,
    crop_x: DataNode | float = 0.5,
    crop_y: DataNode | float = 0.5,
    mirror: DataNode | int = 0,
) -> DataNode:
    """Crop of image_size at a fractional position, optional flip, (x/255 - mean)/std: float HWC.

    HWC is kept so that the batch, seen as BCHW, is channels_last without a copy.
    """
    return fn.crop_mirror_normalize(
        image,
        crop=(inputs.image_size, inputs.image_size),
        crop_pos_x=crop_x,
        crop_pos_y=crop_y,
        mirror=mirror,
        mean=[255 * m for m in inputs.mean],
        std=[255 * s for s in inputs.std],
        dtype=types.FLOAT,
        output_layout="HWC",
    )


def view(image: DataNode, resized: DataNode | None, inputs: Inputs) -> DataNode:
    """One augmented view of the decoded `image`; `resized` is its square resize, shared by views that crop it."""
    if inputs.crop == "area":
        x = area_crop(image, inputs.image_size, inputs.area_min, inputs.area_max)
    else:
        assert resized is not None, "this crop needs the resized image"
        x = resized
    x = _move(x, inputs)
    x = _recolour(x, inputs, inputs.grayscale)
    if inputs.crop == "random":
        slack = inputs.resize - inputs.image_size
        return normalise(x, inputs, crop_x=_place(slack), crop_y=_place(slack), mirror=_flip(inputs.flip))
    return normalise(x, inputs, mirror=_flip(inputs.flip))


def region_view(region: DataNode, inputs: Inputs) -> DataNode:
    """One region, already image_size square, with its own randomness; never grey-scaled, flipped only if asked."""
    x = _recolour(region, inputs, 0.0) if inputs.region_jitter else region
    return normalise(x, inputs, mirror=_flip(inputs.flip if inputs.region_flip else 0.0))


def _place(slack: int) -> DataNode | float:
    """Fractional position of a crop that may start at 0 … slack pixels, each equally often.

    Drawn from the whole pixels: of a continuous draw, rounded, the two ends would come half as often.
    """
    return fn.random.uniform(values=[pixel / slack for pixel in range(slack + 1)]) if slack else 0.0


def _flip(probability: float) -> DataNode | int:
    return fn.random.coin_flip(probability=probability) if probability else 0


def _move(x: DataNode, inputs: Inputs) -> DataNode:
    """Translation, rotation and intensity of the recipe, each tossed for on its own."""
    side = inputs.image_size if inputs.crop == "area" else inputs.resize
    if inputs.geometry and (inputs.translation or inputs.rotation):
        shift = coin(inputs.geometry) * spread(inputs.translation, shape=[2])
        x = shift_and_rotate(x, side, shift=shift, degrees=coin(inputs.geometry) * spread(inputs.rotation))
    if inputs.geometry and inputs.intensity:
        x = scale_intensity(x, 1.0 + coin(inputs.geometry) * spread(inputs.intensity))
    return x


def _recolour(x: DataNode, inputs: Inputs, grey: float) -> DataNode:
    """Jitter of the recipe, then grayscale with probability `grey`."""
    if inputs.jitter and (inputs.brightness or inputs.contrast):
        tossed = coin(inputs.jitter)
        brightness = 1.0 + tossed * spread(inputs.brightness)
        x = jitter(x, brightness=brightness, contrast=1.0 + tossed * spread(inputs.contrast))
    return grayscale(x, coin(grey)) if grey else x
