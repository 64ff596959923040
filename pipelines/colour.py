"""Colour and sharpness as DALI nodes, each defined as torchvision and the published baselines define it.

Images are HWC with values 0 … 255: uint8, where every operation rounds and keeps within that range; or, of one channel
only, float, for which `bounded` does so. Factors are CPU scalars per image; a factor that changes nothing is how an
operation with a probability is left out, for a graph has no branches.
"""

from __future__ import annotations

from nvidia.dali import fn, math, types
from nvidia.dali.data_node import DataNode

NO_BLUR_SIGMA = 0.01
"""A Gaussian so narrow that its neighbours weigh exactly 0: the image stays as it is."""


def three_channels(grey: DataNode) -> DataNode:
    """[H, W, 1] uint8 repeated to [H, W, 3]."""
    return fn.color_space_conversion(grey, image_type=types.GRAY, output_type=types.RGB)


def luminance(image: DataNode) -> DataNode:
    """[H, W, 1] of a uint8 RGB image: .299 R + .587 G + .114 B, rounded."""
    return fn.color_space_conversion(image, image_type=types.RGB, output_type=types.GRAY)


def bounded(image: DataNode) -> DataNode:
    """A float image kept within 0 … 255, as uint8 is of itself."""
    return math.min(math.max(image, 0.0), 255.0)


def brightness(image: DataNode, factor: DataNode) -> DataNode:
    """All values times a factor."""
    return fn.brightness_contrast(image, brightness=factor)


def contrast(image: DataNode, factor: DataNode, *, grey: bool) -> DataNode:
    """Distance from the mean luminance of this image times a factor; grey: the image has one channel."""
    mean = fn.reductions.mean(image if grey else luminance(image))
    # A named argument stands on the CPU; it is 4 bytes an image.
    return fn.brightness_contrast(image, contrast=factor, contrast_center=mean.cpu())


def saturation(image: DataNode, factor: DataNode) -> DataNode:
    """Distance from the pixel's luminance times a factor, of an RGB image; 0 leaves no colour.

    Written out: DALI's own goes through rounded YIQ matrices, which tint images without colour.
    """
    grey = three_channels(luminance(image))
    own = fn.brightness_contrast(image, brightness=factor, dtype=types.FLOAT)
    return fn.cast(own + fn.brightness_contrast(grey, brightness=1.0 - factor, dtype=types.FLOAT), dtype=types.UINT8)


def grayscale(image: DataNode, chosen: DataNode) -> DataNode:
    """The luminance in all three channels of an RGB image where `chosen` is 1, the image itself where it is 0."""
    grey = three_channels(luminance(image))
    return brightness(image, 1.0 - chosen) + brightness(grey, chosen)  # one of the two is black


def hue(image: DataNode, turn: DataNode) -> DataNode:
    """Hue of an RGB image moved by a share of the colour circle, -½ … ½, with HSV's saturation and value kept.

    Written out: DALI's own turns the plane of YIQ, which is another circle.
    """
    red, green, blue = (fn.cast(image[:, :, i : i + 1], dtype=types.FLOAT) for i in range(3))
    value = math.max(math.max(red, green), blue)
    chroma = value - math.min(math.min(red, green), blue)
    is_red = fn.cast(value == red, dtype=types.FLOAT)
    is_green = (1.0 - is_red) * fn.cast(value == green, dtype=types.FLOAT)
    is_blue = 1.0 - is_red - is_green
    along = is_red * (green - blue) + is_green * (blue - red) + is_blue * (red - green)
    sextant = along / math.max(chroma, 1e-6) + 2.0 * is_green + 4.0 * is_blue
    # Adds the turn: as an arithmetic operand a scalar per image is far slower on the CPU.
    sextant = fn.brightness_contrast(sextant, brightness_shift=6.0 * turn)

    def channel(start: float) -> DataNode:
        place = sextant + start
        place = place - 6.0 * math.floor(place / 6.0)
        return value - chroma * math.max(math.min(math.min(place, 4.0 - place), 1.0), 0.0)

    return fn.cast(fn.cat(channel(5.0), channel(3.0), channel(1.0), axis=2), dtype=types.UINT8)


def blur(image: DataNode, sigma: DataNode, *, largest_window: int | None) -> DataNode:
    """Gaussian blur of `sigma` pixels, cut off at three sigma and at a window of `largest_window` pixels (odd)."""
    if largest_window is None:
        return fn.gaussian_blur(image, sigma=sigma)
    reach = math.min(math.ceil(3.0 * sigma), largest_window // 2)
    return fn.gaussian_blur(image, sigma=sigma, window_size=fn.cast(2.0 * reach + 1.0, dtype=types.INT32))
