"""Which bytes of an image are stored: the original ones, or a smaller or lossless version of them."""

from __future__ import annotations

import warnings
from io import BytesIO

import numpy as np
from PIL import Image, ImageOps

from shards.check import PASSED_ON, Checked

# Resampling wants plain pixels; alpha is dropped as the decoder of the pipelines drops it.
_PLAIN = {"1": "L", "LA": "L", "P": "RGB", "PA": "RGB", "RGBA": "RGB", "CMYK": "RGB", "YCbCr": "RGB"}
# What PNG has no name for, in a conversion that loses nothing an RGB decoder would show.
_FOR_PNG = {"PA": "RGBA", "CMYK": "RGB", "YCbCr": "RGB"}


def stored_image(data: bytes, checked: Checked, *, resize: int | None, quality: int, lossy: bool) -> tuple[str, bytes]:
    """Extension and bytes to store.

    JPEG and PNG are stored as they came unless their shorter side exceeds `resize` pixels; then it is brought down to
    that (Lanczos; nothing is ever enlarged) and written as JPEG of this quality when it was JPEG and `lossy` is set,
    otherwise as PNG. Other formats become PNG without loss.
    """
    shrink = resize is not None and min(checked.width, checked.height) > resize
    if checked.format in PASSED_ON and not shrink:
        return PASSED_ON[checked.format], data
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd metadata, which is not kept anyway
        with Image.open(BytesIO(data)) as opened:
            image = ImageOps.exif_transpose(opened)
            if resize is not None and shrink:
                image = _shrunk(image, resize)
            elif image.mode in _FOR_PNG:
                image = image.convert(_FOR_PNG[image.mode])
    image.info.clear()  # no colour profile or transparency left over from another mode
    out = BytesIO()
    if shrink and lossy and PASSED_ON.get(checked.format) == "jpg":
        image.save(out, "JPEG", quality=quality)
        return "jpg", out.getvalue()
    image.save(out, "PNG")
    return "png", out.getvalue()


def _shrunk(image: Image.Image, shorter: int) -> Image.Image:
    if image.mode == "I;16B":  # Pillow's own conversion clips at 255
        image = Image.fromarray(np.asarray(image).astype(np.uint16))
    elif image.mode in _PLAIN:
        image = image.convert(_PLAIN[image.mode])
    scale = shorter / min(image.size)
    size = (max(shorter, round(image.width * scale)), max(shorter, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS)
