"""Which bytes of an image are stored: the original ones, or a smaller or lossless version of them."""

from __future__ import annotations

import warnings
from io import BytesIO

from PIL import Image

from shards.check import FORMATS, PASSED_ON, Checked
from shards.kinds import plain_image


def stored_image(data: bytes, checked: Checked, *, resize: int | None, quality: int, lossy: bool) -> tuple[str, bytes]:
    """Extension and bytes to store.

    JPEG and PNG that every reader shows alike are stored as they came unless their shorter side exceeds `resize`
    pixels. Then they are brought down to that (Lanczos; nothing is ever enlarged; colours of 16 bits become 8), and
    written as JPEG of this quality where they were JPEG and `lossy` is set, otherwise as PNG. All else becomes PNG
    without loss: see `shards.kinds`.
    """
    shrink = resize is not None and min(checked.width, checked.height) > resize
    if checked.as_is and not shrink:
        return PASSED_ON[checked.format], data
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd metadata, which is not kept anyway
        with Image.open(BytesIO(data), formats=FORMATS) as opened:
            image = plain_image(opened)
    out = BytesIO()
    if resize is not None and shrink:
        image = _shrunk(image, resize)
        if lossy and PASSED_ON.get(checked.format) == "jpg":
            image.save(out, "JPEG", quality=quality)
            return "jpg", out.getvalue()
    image.save(out, "PNG")
    return "png", out.getvalue()


def _shrunk(image: Image.Image, shorter: int) -> Image.Image:
    if image.mode in ("1", "P"):  # resampling mixes values, not places in a palette
        image = image.convert("L" if image.mode == "1" else "RGB")
    scale = shorter / min(image.size)
    size = (max(shorter, round(image.width * scale)), max(shorter, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS)
