"""Stored images: original bytes where they may stay, otherwise what Pillow makes of the pixels."""

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageOps
from raw_data import encoded, pixels

from shards.check import check_bytes
from shards.encode import stored_image


def store(data, resize=None, quality=90, lossy=True):
    return stored_image(data, check_bytes(data), resize=resize, quality=quality, lossy=lossy)


def opened(data):
    return Image.open(io.BytesIO(data))


def saved(image, kind, **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def reference(image, size):
    return np.asarray(image.resize(size, Image.Resampling.LANCZOS))


@pytest.mark.parametrize(("kind", "ext"), [("JPEG", "jpg"), ("PNG", "png")])
@pytest.mark.parametrize("resize", [None, 20, 21])
def test_jpeg_and_png_keep_their_bytes_unless_too_large(kind, ext, resize):
    data = encoded(1, kind, (30, 20))
    assert store(data, resize) == (ext, data)
    assert store(data, 19)[1] != data


@pytest.mark.parametrize("kind", ["BMP", "TIFF", "WEBP", "GIF"])
@pytest.mark.parametrize("channels", [1, 3])
def test_other_formats_become_png_of_the_same_pixels(kind, channels):
    data = encoded(2, kind, channels=channels)
    ext, stored = store(data)
    assert ext == "png" and opened(stored).format == "PNG"
    assert np.array_equal(np.asarray(opened(stored).convert("RGB")), np.asarray(opened(data).convert("RGB")))


def big_endian_tiff(value, side=30):
    entries = [(256, 3, side), (257, 3, side), (258, 3, 16), (259, 3, 1), (262, 3, 1), (273, 4, 110), (278, 3, side),
               (279, 4, side * side * 2)]  # fmt: skip
    fields = b"".join(
        struct.pack(">HHII", tag, kind, 1, number << 16 if kind == 3 else number) for tag, kind, number in entries
    )
    head = b"MM\x00*" + struct.pack(">IH", 8, len(entries)) + fields + bytes(4)
    return head + np.full((side, side), value, ">u2").tobytes()


@pytest.mark.parametrize("resize", [None, 20])
def test_a_big_endian_deep_tiff_keeps_its_values(resize):
    data = big_endian_tiff(40000)
    assert check_bytes(data).mode == "I;16B"
    image = opened(store(data, resize)[1])
    assert image.size == ((resize or 30), (resize or 30)) and np.all(np.asarray(image) == 40000)


def test_a_deep_tiff_keeps_sixteen_bits():
    deep = np.arange(60000, 60108, dtype=np.uint16).reshape(9, 12)
    ext, stored = store(saved(Image.fromarray(deep), "TIFF"))
    assert ext == "png" and np.array_equal(np.asarray(opened(stored)), deep)


@pytest.mark.parametrize(("size", "expected"), [((64, 48), (27, 20)), ((48, 64), (20, 27)), ((50, 50), (20, 20))])
def test_the_shorter_side_is_brought_down(size, expected):
    ext, stored = store(encoded(3, "PNG", size), 20)
    assert ext == "png" and opened(stored).size == expected
    assert np.array_equal(np.asarray(opened(stored)), reference(Image.fromarray(pixels(3, size)), expected))


def test_natural_jpeg_stays_jpeg_of_the_quality_and_medical_becomes_png():
    data = encoded(4, "JPEG", (64, 48))
    wanted = opened(data).resize((27, 20), Image.Resampling.LANCZOS)
    for quality in (60, 95):
        assert store(data, 20, quality) == ("jpg", saved(wanted, "JPEG", quality=quality))
    ext, stored = store(data, 20, lossy=False)
    assert ext == "png" and np.array_equal(np.asarray(opened(stored)), np.asarray(wanted))


def test_natural_png_stays_lossless():
    assert store(encoded(4, "PNG", (64, 48)), 20)[0] == "png"


def test_grey_stays_grey_and_deep_stays_deep():
    assert opened(store(encoded(5, "PNG", (30, 30), 1), 20)[1]).mode == "L"
    assert opened(store(encoded(5, "JPEG", (30, 30), 1), 20)[1]).mode == "L"
    deep = Image.fromarray(np.full((30, 30), 40000, np.uint16))
    small = opened(store(saved(deep, "PNG"), 20)[1])
    assert small.size == (20, 20) and small.mode == "I;16" and np.all(np.asarray(small) == 40000)


@pytest.mark.parametrize(("mode", "plain"), [("RGBA", "RGB"), ("LA", "L")])
def test_transparency_is_laid_on_black_before_resampling(mode, plain):
    image = Image.fromarray(pixels(6, (30, 30))).convert(plain)
    alpha = pixels(7, (30, 30), 1)
    colours = np.asarray(image).astype(float)
    on_black = colours * (alpha if mode == "LA" else alpha[..., None]) / 255
    image.putalpha(Image.fromarray(alpha))
    found = opened(store(saved(image, "PNG"), 20)[1])
    wanted = reference(Image.fromarray(on_black.round().astype(np.uint8)), (20, 20))
    assert found.mode == plain and np.abs(np.asarray(found).astype(int) - wanted).max() <= 2


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "1", "CMYK"])
def test_other_modes_are_made_plain_before_resampling(mode):
    image = Image.fromarray(pixels(6, (30, 30))).convert(mode)  # all opaque
    data = saved(image, "JPEG" if mode == "CMYK" else "PNG")
    plain = opened(data).convert("L" if mode in ("LA", "1") else "RGB")
    _, stored = store(data, 20, lossy=False)
    assert opened(stored).mode == plain.mode
    assert np.array_equal(np.asarray(opened(stored)), reference(plain, (20, 20)))


def test_rotation_is_applied_when_the_image_is_written_anew():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(Image.fromarray(pixels(8, (40, 30))), "JPEG", exif=exif)
    stored = opened(store(data, 20, lossy=False)[1])
    assert stored.size == (20, 27) and not stored.getexif()
    assert np.array_equal(np.asarray(stored), reference(ImageOps.exif_transpose(opened(data)), (20, 27)))


def test_colour_profiles_and_transparency_of_the_old_pixels_are_dropped():
    old = saved(Image.fromarray(pixels(9, (30, 30))).convert("CMYK"), "JPEG", icc_profile=b"a profile for ink")
    assert opened(old).info["icc_profile"]
    assert "icc_profile" not in opened(store(old, 20, lossy=False)[1]).info
    clear = saved(Image.fromarray(pixels(9, (30, 30))).convert("P"), "PNG", transparency=3)
    assert "transparency" not in opened(store(clear, 20)[1]).info
