"""From the decoded image to the network's input: crops, movements, colours and flips of a recipe, drawn per image.

Images are HWC with values 0 … 255 until `normalise`: uint8, or float where 16 bits were read. Nodes have a CPU and a
GPU kernel, all but one (see resize.py). An augmentation of probability p is folded into its numbers (a factor of 1
where the coin says no), so that a graph has no branches and a whole batch goes through one kernel.
"""

from __future__ import annotations

from collections.abc import Sequence

from nvidia.dali import fn, types
from nvidia.dali.data_node import DataNode

from pipelines import colour, resize
from pipelines.recipe import Inputs

ASPECT_RATIOS = (3 / 4, 4 / 3)
"""Width to height of a crop of random area, drawn evenly in its logarithm (torchvision's RandomResizedCrop)."""


def coin(probability: float) -> DataNode:
    """1 with this probability, else 0: a CPU float scalar per image."""
    return fn.cast(fn.random.coin_flip(probability=probability), dtype=types.FLOAT)


def spread(largest: float, shape: Sequence[int] = ()) -> DataNode:
    """Uniform in ± largest, which may be 0: CPU floats of this shape per image."""
    return largest * fn.random.uniform(range=(-1.0, 1.0), shape=list(shape))


def area_crop(image: DataNode, side: int, area_min: float, area_max: float) -> DataNode:
    """A random part of the image (share of its area, sides' ratio 3/4 … 4/3) as a square of `side` pixels."""
    return fn.random_resized_crop(
        image,
        size=[side, side],
        random_area=(area_min, area_max),
        random_aspect_ratio=ASPECT_RATIOS,
        interp_type=types.INTERP_LINEAR,
        antialias=True,
    )


def square_crop(image: DataNode, side: int, *, x: DataNode | float, y: DataNode | float) -> DataNode:
    """A square of `side` pixels, its corner at these fractions of the room there is for it."""
    return fn.crop(image, crop=(side, side), crop_pos_x=x, crop_pos_y=y)


def shift_and_rotate(image: DataNode, side: int, *, shift: DataNode, degrees: DataNode) -> DataNode:
    """A square image turned about its centre (positive: counter-clockwise as seen), then moved by `shift` (x, y).

    shift: fractions of the side. What comes into sight is black.
    """
    matrix = fn.transforms.rotation(angle=-degrees, center=[side / 2, side / 2])
    matrix = fn.transforms.translation(matrix, offset=shift * float(side))
    return fn.warp_affine(image, matrix=matrix, inverse_map=False, fill_value=0.0, interp_type=types.INTERP_LINEAR)


def normalise(image: DataNode, inputs: Inputs, *, mirror: DataNode | int = 0) -> DataNode:
    """Optional flip, then (x/255 - mean)/std of an image of image_size: [image_size, image_size, 3] float.

    Grey becomes three channels here and not before. HWC is kept so that the batch, seen as BCHW, is channels_last
    without a copy.
    """
    if inputs.is_grey:
        image = fn.cat(image, image, image, axis=2) if inputs.bits == 16 else colour.three_channels(image)
    return fn.crop_mirror_normalize(
        image,
        mirror=mirror,
        mean=[255 * m for m in inputs.mean],
        std=[255 * s for s in inputs.std],
        dtype=types.FLOAT,
        output_layout="HWC",
    )


def view(image: DataNode, resized: DataNode | None, inputs: Inputs) -> DataNode:
    """One augmented view of the decoded `image`; `resized` is its square resize where several views share that.

    image: where the recipe decodes its crop alone, that crop.
    """
    if inputs.decodes_crop:
        cut = _move(resize.square(image, inputs.image_size, bits=inputs.bits), inputs)
    elif inputs.crop == "area":
        cut = _move(area_crop(image, inputs.image_size, inputs.area_min, inputs.area_max), inputs)
    elif resized is None and not inputs.moves:
        x, y = _corner(inputs)
        cut = resize.part_of_square(image, inputs.resize, inputs.image_size, bits=inputs.bits, x=x, y=y)
    else:
        cut = _crop(
            _move(resize.square(image, inputs.resize, bits=inputs.bits) if resized is None else resized, inputs), inputs
        )
    return _finish(cut, inputs, flip=inputs.flip)


def region_view(image: DataNode, start: DataNode, end: DataNode, inputs: Inputs) -> DataNode:
    """One region of the decoded `image`, between two corners ([2] y, x as fractions), as a square of `resize` pixels.

    Cropped and augmented with its own randomness: as a view, but flipped only if asked.
    """
    x, y = _corner(inputs)
    cut = resize.part_of_window(image, start, end, inputs.resize, inputs.image_size, x=x, y=y)
    return _finish(cut, inputs, flip=inputs.flip if inputs.region_flip else 0.0)


def _crop(resized: DataNode, inputs: Inputs) -> DataNode:
    """The recipe's crop of an image of `resize` pixels square."""
    x, y = _corner(inputs)
    return square_crop(resized, inputs.image_size, x=x, y=y)


def _corner(inputs: Inputs) -> tuple[DataNode | float, DataNode | float]:
    """Where the recipe's crop begins, as fractions of the room there is for it; always at a whole pixel."""
    slack = inputs.resize - inputs.image_size
    if not slack:
        return 0.0, 0.0
    if inputs.crop == "centre":
        middle = round(slack / 2) / slack  # as torchvision rounds
        return middle, middle
    return _place(slack), _place(slack)


def _place(slack: int) -> DataNode:
    """Fractional position of a crop that may start at 0 … slack pixels, each equally often.

    Drawn from the whole pixels: of a continuous draw, rounded, the two ends would come half as often.
    """
    return fn.random.uniform(values=[pixel / slack for pixel in range(slack + 1)])


def _move(x: DataNode, inputs: Inputs) -> DataNode:
    """Translation and rotation of the recipe, each tossed for on its own."""
    if not inputs.moves:
        return x
    side = inputs.image_size if inputs.crop == "area" else inputs.resize
    shift = coin(inputs.geometry) * spread(inputs.translation, shape=[2])
    return shift_and_rotate(x, side, shift=shift, degrees=coin(inputs.geometry) * spread(inputs.rotation))


def _finish(x: DataNode, inputs: Inputs, *, flip: float) -> DataNode:
    """All that keeps pixels in their place, in the recipe's order, then the flip and `normalise`."""
    if inputs.geometry and inputs.intensity:
        x = _brightness(x, 1.0 + coin(inputs.geometry) * spread(inputs.intensity), inputs)
    x = _jitter(_grayscale(x, inputs), inputs) if inputs.grayscale_first else _grayscale(_jitter(x, inputs), inputs)
    return normalise(_blur(x, inputs), inputs, mirror=fn.random.coin_flip(probability=flip) if flip else 0)


def _jitter(x: DataNode, inputs: Inputs) -> DataNode:
    if not inputs.jitter:
        return x
    tossed = coin(inputs.jitter)
    if inputs.brightness:
        x = _brightness(x, 1.0 + tossed * spread(inputs.brightness), inputs)
    if inputs.contrast:
        x = colour.contrast(x, 1.0 + tossed * spread(inputs.contrast), grey=inputs.is_grey)
        x = colour.bounded(x) if inputs.bits == 16 else x
    if inputs.saturation and not inputs.is_grey:
        x = colour.saturation(x, 1.0 + tossed * spread(inputs.saturation))
    if inputs.hue and not inputs.is_grey:
        x = colour.hue(x, tossed * spread(inputs.hue))
    return x


def _brightness(x: DataNode, factor: DataNode, inputs: Inputs) -> DataNode:
    x = colour.brightness(x, factor)
    return colour.bounded(x) if inputs.bits == 16 else x


def _grayscale(x: DataNode, inputs: Inputs) -> DataNode:
    return colour.grayscale(x, coin(inputs.grayscale)) if inputs.grayscale and not inputs.is_grey else x


def _blur(x: DataNode, inputs: Inputs) -> DataNode:
    if not inputs.blur:
        return x
    tossed = coin(inputs.blur)
    drawn = fn.random.uniform(range=(inputs.blur_sigma_min, inputs.blur_sigma_max))
    sigma = tossed * drawn + (1.0 - tossed) * colour.NO_BLUR_SIGMA
    # Half of the window either side of a pixel, as SimCLR counts it.
    window = 2 * int(inputs.blur_window * inputs.image_size / 2) + 1 if inputs.blur_window else None
    return colour.blur(x, sigma, largest_window=window)
