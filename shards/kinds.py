"""Images of every kind: which are stored as they came, which are written anew, and which are refused.

What is stored must look the same to every reader of a shard set: to Pillow and to the decoders of the pipelines. All
rules are ours.

=====================================================  =================================================================
JPEG: grey, RGB, progressive, bytes behind its end     as it came; of an MPO only the first picture is ever shown
JPEG: CMYK, YCCK                                       RGB PNG (readers differ on inverted ink); no colour profile used
PNG: 1 to 16 bits, palette, interlaced, opaque alpha   as it came; of an animated PNG only the still image is ever shown
orientation as EXIF writes it                          as it came; readers turn it
orientation some readers miss (XMP, odd EXIF)          turned, PNG
transparent pixels                                     laid on black, PNG; see below
BMP, WebP, GIF                                         PNG of the same pixels, of an animation its first frame
TIFF: grey to 16 bits, RGB of 8, palette, CMYK, YCbCr  PNG of the same pixels (CMYK and YCbCr as RGB), white zero
                                                       turned into black zero
TIFF: several pages (smaller copies of one are none)   refused: which of them is meant, only the user knows
TIFF: float, 32 bits, signed 16 bits, Lab              refused: PNG cannot hold it
TIFF: RGB of 16 bits; transparent PNG of 16-bit RGB    refused: Pillow would keep 8 bits
=====================================================  =================================================================

Under transparent pixels may stand any colour, which a reader that drops the alpha channel would show. They are laid on
black, the colour of air and of nothing measured in radiographs and CT, and what most programs leave there themselves.
"""

from __future__ import annotations

import struct

import numpy as np
from PIL import Image, JpegImagePlugin, TiffImagePlugin

_ORIENTATION = 0x0112  # EXIF and TIFF tag
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ON_ITS_SIDE = (5, 6, 7, 8)  # orientations that swap width and height
_SUBFILE, _BITS, _PHOTOMETRIC = 254, 258, 262  # TIFF tags
_EXIF_STARTS = (b"Exif\0\0II*\0", b"Exif\0\0MM\0*")
PNG_ORIENTED = (b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp")  # no orientation in a PNG without one of them
_PNG_DEPTH_AT = 24  # of its bits a channel, in the header
# Without alpha, and with channels that resampling and every reader know.
_PLAIN = {"LA": "L", "PA": "RGB", "RGBA": "RGB", "CMYK": "RGB", "YCbCr": "RGB"}


def unsupported(data: bytes, image: Image.Image) -> str | None:
    """Why an image that Pillow has opened is refused for its kind, None when it is not; data: the file."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        if image.mode in ("RGB", "RGBA", "CMYK") and max(image.tag_v2.get(_BITS, (8,))) > 8:
            return "it is a TIFF of 16 bits a colour, of which 8 would be lost; save it as a 16-bit PNG"
        pages = 1 + sum(_is_picture(image, page) for page in range(1, image.n_frames))
        return f"it is a TIFF of {pages} pages; save the pages as images of their own" if pages > 1 else None
    deep_colour = image.format == "PNG" and data[_PNG_DEPTH_AT] == 16 and image.mode in ("RGB", "RGBA")
    if deep_colour and ("transparency" in image.info or (image.mode == "RGBA" and _is_transparent(image))):
        return "it is a transparent PNG of 16 bits a colour, of which 8 would be lost; save it without transparency"
    return None


def shown_alike(data: bytes, image: Image.Image) -> bool:
    """Whether every reader shows a JPEG or PNG file alike, so that it may be stored as it came."""
    if image.mode == "CMYK" or (image.has_transparency_data and _is_transparent(image)):
        return False
    if isinstance(image, JpegImagePlugin.JpegImageFile) and sum(map(_is_exif, image.applist)) > 1:
        return False  # one reader takes the first block, another the last
    orientation = _orientation(data, image)
    if orientation not in _TURNS:
        return orientation is None or isinstance(orientation, int)
    exif = image.info.get("exif", b"")
    plain = any(struct.pack(f"{order}HHIH", _ORIENTATION, 3, 1, orientation) in exif for order in "<>")
    return plain and exif.startswith(_EXIF_STARTS)


def is_on_its_side(data: bytes, image: Image.Image) -> bool:
    """Whether width and height of an image as shown are the other way round than in its file."""
    return _orientation(data, image) in _ON_ITS_SIDE


def plain_image(opened: Image.Image) -> Image.Image:
    """The first picture of a file, upright and without transparency: mode 1, L, P, RGB or I;16, with no metadata."""
    opened.load()
    turn = _TURNS.get(opened.getexif().get(_ORIENTATION, 1))
    image = _black_is_zero(opened.copy() if turn is None else opened.transpose(turn), opened)
    if image.has_transparency_data and _is_transparent(image):
        image = _on_black(image)
    elif image.mode in _PLAIN:
        image = image.convert(_PLAIN[image.mode])
    image.info.clear()  # no colour profile or transparency left over from another mode
    return image


def _is_exif(segment: tuple[str, bytes]) -> bool:
    return segment[0] == "APP1" and segment[1].startswith(b"Exif\0\0")


def _orientation(data: bytes, image: Image.Image) -> object:
    """What Pillow finds: mostly one of 1 to 8, None without any."""
    if image.format == "PNG" and not any(mark in data for mark in PNG_ORIENTED):
        return None  # looking for it would decode the pixels
    return image.getexif().get(_ORIENTATION)


def _is_picture(image: TiffImagePlugin.TiffImageFile, page: int) -> bool:
    """Whether a page of a TIFF is more than a smaller copy of another."""
    image.seek(page)
    return not int(image.tag_v2.get(_SUBFILE, 0)) & 1


def _is_transparent(image: Image.Image) -> bool:
    """Whether any pixel lets something through, of an image that has transparency data."""
    if image.mode == "I;16":
        return bool(np.any(np.asarray(image) == image.info["transparency"]))
    return image.convert("RGBA").getchannel("A").histogram()[255] < image.width * image.height


def _on_black(image: Image.Image) -> Image.Image:
    if image.mode == "I;16":
        values = np.array(image)
        values[values == image.info["transparency"]] = 0
        return Image.fromarray(values)
    black = Image.new("RGBA", image.size, (0, 0, 0, 255))
    flat = Image.alpha_composite(black, image.convert("RGBA"))
    return flat.getchannel("R") if image.mode in ("1", "L", "LA") else flat.convert("RGB")


def _black_is_zero(image: Image.Image, opened: Image.Image) -> Image.Image:
    """Greys of more than 8 bits with zero as black, in the machine's byte order; any other image as it is.

    Pillow turns greys of 8 bits round itself when a TIFF (`opened`) writes white as zero, and leaves deeper ones.
    """
    if image.mode not in ("I;16", "I;16B"):
        return image
    values = np.asarray(image).astype(np.uint16)
    if isinstance(opened, TiffImagePlugin.TiffImageFile) and opened.tag_v2.get(_PHOTOMETRIC) == 0:
        values = np.uint16((1 << opened.tag_v2[_BITS][0]) - 1) - values
    deep = Image.fromarray(values)
    deep.info = dict(image.info)
    return deep
