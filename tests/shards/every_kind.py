"""A file of every kind that sources bring, with what becomes of it."""

import io
import struct
import zlib

import numpy as np
from image_files import (
    HEIGHT,
    TURNS,
    WIDTH,
    Kind,
    adam7,
    after_header,
    chunk,
    exif,
    packed,
    png,
    saved,
    tiff,
    with_segments,
    without_adobe,
)
from PIL import Image

_Y, _X = np.mgrid[0:HEIGHT, 0:WIDTH]
RGB = np.stack([_X * 255 / (WIDTH - 1), _Y * 255 / (HEIGHT - 1), 255 - _X * 4], axis=-1).round().astype(np.uint8)
RGB[:16, :16] = (200, 30, 60)
GREY = RGB[..., 0].copy()
GREYS = np.repeat(GREY[..., None], 3, axis=2)
DEEP = (GREY.astype(np.uint16) << 8) + np.arange(WIDTH, dtype=np.uint16)
ALPHA = np.tile(np.linspace(0, 255, WIDTH).astype(np.uint8), (HEIGHT, 1))
ON_BLACK = np.round(RGB * (ALPHA[..., None] / 255)).astype(np.uint8)
GREY_ON_BLACK = np.round(GREYS * (ALPHA[..., None] / 255)).astype(np.uint8)
DEEP_SHOWN = np.repeat(np.round(DEEP / 257).astype(np.uint8)[..., None], 3, axis=2)

_rgb, _grey = Image.fromarray(RGB), Image.fromarray(GREY)
_rgba, _la = Image.fromarray(np.dstack([RGB, ALPHA])), Image.merge("LA", [_grey, Image.fromarray(ALPHA)])
_two = _rgb.convert("1")
_pal = _rgb.quantize(16)
_PAL, _TWO = (np.asarray(image.convert("RGB")) for image in (_pal, _two))
_HOLED, _GREY_HOLED, _PAL_HOLED, _DEEP_HOLED = RGB.copy(), GREYS.copy(), _PAL.copy(), DEEP.copy()
_HOLED[np.all(RGB == (200, 30, 60), axis=-1)] = 0
_GREY_HOLED[GREY == 200] = 0
_PAL_HOLED[np.asarray(_pal) == 3] = 0
_CLEAR = int(DEEP[-1, 5])
_DEEP_HOLED[_CLEAR == DEEP] = 0
_WIDE = (np.dstack([RGB, ALPHA]).astype(np.uint16) * 257).astype(">u2")
_mirrored = Image.fromarray(RGB[:, ::-1])


def _decoded(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


_JPEG, _PNG = saved(_rgb, "JPEG", quality=95), saved(_rgb, "PNG")
_SHOWN = _decoded(_JPEG)
_CMYK = saved(_rgb.convert("CMYK"), "JPEG", quality=98, subsampling=0)
# Inverted ink as YCbCr beside K (none here), marked so: what Adobe's programs write.
_ink = np.dstack([np.asarray(_rgb.convert("YCbCr")), np.zeros_like(GREY)])
_ycck = saved(Image.frombytes("CMYK", (WIDTH, HEIGHT), _ink.tobytes()), "JPEG", quality=98, subsampling=0)
_AT = _ycck.index(b"Adobe") + 11
_YCCK = _ycck[:_AT] + b"\2" + _ycck[_AT + 1 :]
_XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
_XMP_JPEG = b"http://ns.adobe.com/xap/1.0/\0" + _XMP
_EXIF_TEXT = b"\nexif\n%8d\n%s\n" % (len(exif(6)) + 6, (b"Exif\0\0" + exif(6)).hex().encode())


KINDS = {
    "jpeg grey": Kind(saved(_grey, "JPEG"), "jpg", _decoded(saved(_grey, "JPEG")), 2),
    "jpeg": Kind(_JPEG, "jpg", _SHOWN, 2),
    "jpeg progressive": Kind(saved(_rgb, "JPEG", quality=95, progressive=True), "jpg", _SHOWN, 2),
    "jpeg of RGB": Kind(saved(_rgb, "JPEG", quality=98, keep_rgb=True), "jpg", RGB, 8),
    "jpeg with trailing bytes": Kind(_JPEG + b"trailing bytes", "jpg", _SHOWN, 2),
    "jpeg cmyk": Kind(_CMYK, "anew", RGB, 8),
    "jpeg ycck": Kind(_YCCK, "anew", RGB, 8),
    # Without Adobe's mark ink is not inverted; Pillow still reads these samples as written.
    "jpeg cmyk without adobe": Kind(without_adobe(_CMYK), "anew", _decoded(without_adobe(_CMYK))),
    "mpo": Kind(saved(_rgb, "MPO", save_all=True, append_images=[_mirrored.copy()], quality=95), "jpg", _SHOWN, 2),
    "jpeg exif 6 big-endian": Kind(
        with_segments(_JPEG, b"Exif\0\0" + exif(6, order=">")), "jpg", TURNS[6](_SHOWN), 2
    ),
    "jpeg xmp before exif": Kind(
        with_segments(_JPEG, _XMP_JPEG, b"Exif\0\0" + exif(3)), "jpg", TURNS[3](_SHOWN), 2
    ),
    "jpeg exif without meaning": Kind(with_segments(_JPEG, b"Exif\0\0" + exif(9)), "jpg", _SHOWN, 2),
    "jpeg exif long": Kind(
        with_segments(_JPEG, b"Exif\0\0" + exif(6, order=">", kind=4)), "anew", TURNS[6](_SHOWN)
    ),
    "jpeg exif byte": Kind(with_segments(_JPEG, b"Exif\0\0" + exif(6, kind=1)), "anew", _SHOWN),
    "jpeg exif twice": Kind(
        with_segments(_JPEG, b"Exif\0\0" + exif(3), b"Exif\0\0" + exif(6)), "anew", TURNS[3](_SHOWN)
    ),
    "jpeg xmp alone": Kind(with_segments(_JPEG, _XMP_JPEG), "anew", TURNS[6](_SHOWN)),
    "png": Kind(_PNG, "png", RGB),
    "png grey": Kind(saved(_grey, "PNG"), "png", GREYS),
    "png 1 bit": Kind(saved(_two, "PNG"), "png", _TWO),
    "png 2 bits": Kind(png(packed(GREY, 2), 2, 0), "png", (GREYS >> 6) * 85),
    "png 4 bits": Kind(png(packed(GREY, 4), 4, 0), "png", (GREYS >> 4) * 17),
    "png palette": Kind(saved(_pal, "PNG"), "png", _PAL),
    "png palette of 4 bits": Kind(saved(_pal, "PNG", bits=4), "png", _PAL),
    "png interlaced": Kind(png(adam7(RGB), 8, 2, interlaced=True), "png", RGB),
    "png interlaced grey": Kind(png(adam7(GREY), 8, 0, interlaced=True), "png", GREYS),
    "png opaque rgba": Kind(saved(Image.fromarray(np.dstack([RGB, np.full_like(GREY, 255)])), "PNG"), "png", RGB),
    "png unused key": Kind(saved(_rgb, "PNG", transparency=(1, 2, 3)), "png", RGB),
    "png animated": Kind(saved(_rgb, "PNG", save_all=True, append_images=[_mirrored.copy()]), "png", RGB),
    "png with gamma": Kind(after_header(_PNG, chunk(b"gAMA", struct.pack(">I", 100000))), "png", RGB),
    "png rgba": Kind(saved(_rgba, "PNG"), "anew", ON_BLACK, 1),
    "png la": Kind(saved(_la, "PNG"), "anew", GREY_ON_BLACK, 1),
    "png rgb key": Kind(saved(_rgb, "PNG", transparency=(200, 30, 60)), "anew", _HOLED),
    "png grey key": Kind(saved(_grey, "PNG", transparency=200), "anew", _GREY_HOLED),
    "png palette key": Kind(saved(_pal, "PNG", transparency=3), "anew", _PAL_HOLED),
    "png palette alphas": Kind(saved(_pal, "PNG", transparency=b"\xff\xff\xff\0"), "anew", _PAL_HOLED),
    "png 16 bits": Kind(saved(Image.fromarray(DEEP), "PNG"), "png", DEEP_SHOWN, deep=DEEP),
    "png 16 bits key": Kind(
        png([row.astype(">u2").tobytes() for row in DEEP], 16, 0, before=chunk(b"tRNS", struct.pack(">H", _CLEAR))),
        "anew", np.repeat(np.round(_DEEP_HOLED / 257).astype(np.uint8)[..., None], 3, axis=2), deep=_DEEP_HOLED,
    ),
    "png rgb 16 bits": Kind(png([row[:, :3].tobytes() for row in _WIDE], 16, 2), "png", RGB),
    "png rgba 16 bits": Kind(png([row.tobytes() for row in _WIDE], 16, 6), "transparent PNG of 16 bits a colour"),
    "png la 16 bits": Kind(png([row[:, [0, 3]].tobytes() for row in _WIDE], 16, 4), "transparent PNG of 16 bits"),
    "png rgb 16 bits key": Kind(
        png([row[:, :3].tobytes() for row in _WIDE], 16, 2, before=chunk(b"tRNS", bytes(6))), "transparent PNG of 16"
    ),
    "png exif late": Kind(_PNG[:-12] + chunk(b"eXIf", exif(6)) + _PNG[-12:], "png", TURNS[6](RGB)),
    "png exif long": Kind(after_header(_PNG, chunk(b"eXIf", exif(6, order=">", kind=4))), "anew", TURNS[6](RGB)),
    "png exif with the mark of a JPEG": Kind(
        after_header(_PNG, chunk(b"eXIf", b"Exif\0\0" + exif(6))), "anew", TURNS[6](RGB)
    ),
    "png exif as text": Kind(
        after_header(_PNG, chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(_EXIF_TEXT))),
        "anew", TURNS[6](RGB),
    ),
    "png xmp alone": Kind(
        after_header(_PNG, chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + _XMP)), "anew", TURNS[6](RGB)
    ),
    "bmp": Kind(saved(_rgb, "BMP"), "anew", RGB),
    "bmp grey": Kind(saved(_grey, "BMP"), "anew", GREYS),
    "bmp palette": Kind(saved(_pal, "BMP"), "anew", _PAL),
    "tiff": Kind(saved(_rgb, "TIFF", compression="tiff_lzw"), "anew", RGB),
    "tiff grey": Kind(saved(_grey, "TIFF"), "anew", GREYS),
    "tiff white is zero": Kind(tiff(255 - GREY, 0), "anew", GREYS),
    "tiff 1 bit": Kind(saved(_two, "TIFF"), "anew", _TWO),
    "tiff palette": Kind(saved(_pal, "TIFF"), "anew", _PAL),
    "tiff cmyk": Kind(saved(_rgb.convert("CMYK"), "TIFF"), "anew", RGB),
    "tiff ycbcr": Kind(saved(_rgb.convert("YCbCr"), "TIFF"), "anew", RGB, 3),
    "tiff palette and alpha": Kind(saved(_pal.convert("PA"), "TIFF"), "anew", _PAL),
    "tiff rgba": Kind(saved(_rgba, "TIFF"), "anew", ON_BLACK, 1),
    "tiff rgb and a fourth": Kind(tiff(np.dstack([RGB, ALPHA]), 2, extra=0), "anew", RGB),
    "tiff 16 bits": Kind(saved(Image.fromarray(DEEP), "TIFF"), "anew", DEEP_SHOWN, deep=DEEP),
    "tiff 16 bits white is zero": Kind(tiff(65535 - DEEP, 0), "anew", DEEP_SHOWN, deep=DEEP),
    "tiff 16 bits exif 6": Kind(
        saved(Image.fromarray(DEEP), "TIFF", tiffinfo={0x0112: 6}), "anew", TURNS[6](DEEP_SHOWN), deep=TURNS[6](DEEP)
    ),
    "tiff of two sizes": Kind(
        saved(_rgb, "TIFF", save_all=True, append_images=[_rgb.resize((8, 6))]), "TIFF of 2 pages"
    ),
    "tiff of two pages": Kind(saved(_rgb, "TIFF", save_all=True, append_images=[_mirrored.copy()]), "TIFF of 2 pages"),
    "tiff rgb 16 bits": Kind(tiff(_WIDE[..., :3].astype("<u2"), 2), "TIFF of 16 bits a colour"),
    "tiff 16 bits with sign": Kind(tiff(DEEP.astype("<i2"), 1, sample_format=2), "cannot hold the pixels of this TIFF"),
    "tiff float": Kind(saved(Image.fromarray(GREY / np.float32(255)), "TIFF"), "TIFF .mode F. without loss"),
    "tiff 32 bits": Kind(saved(Image.fromarray(GREY.astype(np.int32)), "TIFF"), "TIFF .mode I. without loss"),
    "tiff lab": Kind(saved(Image.new("LAB", (WIDTH, HEIGHT)), "TIFF"), "TIFF .mode LAB. without loss"),
    "gif": Kind(saved(_pal, "GIF"), "anew", _PAL),
    "gif animated": Kind(saved(_pal, "GIF", save_all=True, append_images=[Image.new("P", _pal.size)]), "anew", _PAL),
    "webp": Kind(saved(_rgb, "WEBP", quality=90), "anew", _decoded(saved(_rgb, "WEBP", quality=90))),
    "webp lossless": Kind(saved(_rgb, "WEBP", lossless=True), "anew", RGB),
    "webp alpha": Kind(saved(_rgba, "WEBP", lossless=True, exact=True), "anew", ON_BLACK, 1),
    "webp animated": Kind(
        saved(_rgb, "WEBP", save_all=True, append_images=[_mirrored.copy()], lossless=True), "anew", RGB
    ),
}  # fmt: skip
for _value, _turn in TURNS.items():
    _exif = Image.Exif()
    _exif[0x0112] = _value
    KINDS[f"jpeg exif {_value}"] = Kind(saved(_rgb, "JPEG", quality=95, exif=_exif), "jpg", _turn(_SHOWN), 2)
    KINDS[f"png exif {_value}"] = Kind(saved(_rgb, "PNG", exif=_exif), "png", _turn(RGB))
    KINDS[f"tiff exif {_value}"] = Kind(saved(_rgb, "TIFF", exif=_exif), "anew", _turn(RGB))
    KINDS[f"webp exif {_value}"] = Kind(saved(_rgb, "WEBP", lossless=True, exif=_exif), "anew", _turn(RGB))
