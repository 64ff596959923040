"""Headers read without Pillow: the same answer as Pillow's, or none where there is anything to judge."""

import io
import struct
import zlib

import pytest
from PIL import Image
from raw_data import encoded, pixels

from shards.check import check_bytes
from shards.headers import plain_size


def saved(image, kind, **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def with_segment(jpeg, kind, data):
    """A JPEG with one more segment behind its first."""
    end = 4 + int.from_bytes(jpeg[4:6], "big")
    return jpeg[:end] + bytes([0xFF, kind]) + struct.pack(">H", len(data) + 2) + data + jpeg[end:]


RGB, GREY = Image.fromarray(pixels(1, (33, 17))), Image.fromarray(pixels(1, (33, 17), 1))
EXIF = Image.Exif()
EXIF[0x0112] = 6


@pytest.mark.parametrize(
    ("data", "mode", "kind"),
    [
        (saved(RGB, "JPEG"), "RGB", "JPEG"),
        (saved(GREY, "JPEG"), "L", "JPEG"),
        (saved(RGB, "JPEG", progressive=True, comment=b"by a camera", dpi=(72, 72)), "RGB", "JPEG"),
        (saved(RGB, "JPEG", subsampling=0, restart_marker_blocks=2), "RGB", "JPEG"),
        (saved(RGB, "JPEG", icc_profile=b"profile"), "RGB", "JPEG"),
        (with_segment(saved(RGB, "JPEG"), 0xEE, b"Adobe\0d\0\0\0\0\1"), "RGB", "JPEG"),
        (with_segment(saved(RGB, "JPEG"), 0xED, b"Photoshop 3.0\0"), "RGB", "JPEG"),
        (saved(RGB, "PNG"), "RGB", "PNG"),
        (saved(GREY, "PNG"), "L", "PNG"),
    ],
)
def test_plain_images_are_as_pillow_says(data, mode, kind):
    assert plain_size(data) == (33, 17, mode, kind)
    assert check_bytes(data, decode=False) == check_bytes(data)


@pytest.mark.parametrize(
    "data",
    [
        saved(RGB, "JPEG", exif=EXIF), with_segment(saved(RGB, "JPEG"), 0xEE, b"Adobe\0d\0\0\0\0\0"),
        saved(RGB.convert("CMYK"), "JPEG"),
        saved(RGB, "JPEG", keep_rgb=True), saved(RGB.convert("RGBA"), "PNG"), saved(RGB.convert("P"), "PNG"),
        saved(GREY.convert("1"), "PNG"), saved(GREY.convert("I;16"), "PNG"), saved(RGB, "PNG", exif=EXIF),
        saved(GREY, "PNG", transparency=3), saved(RGB, "BMP"), saved(RGB, "WEBP"), b"", b"\xff\xd8\xff",
    ],
)  # fmt: skip
def test_what_pillow_must_judge_is_left_to_it(data):
    assert plain_size(data) is None


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_no_cut_and_no_flipped_byte_ends_in_an_error(kind):
    data = encoded(1, kind)
    for at in range(min(len(data), 700)):
        assert plain_size(data[:at]) in (None, plain_size(data))
        plain_size(data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :])


def test_an_image_without_pixels_is_not_plain():
    header = struct.pack(">IIBBBBB", 0, 9, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    data = (
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + bytes(4) + b"IDAT"
    )
    assert plain_size(data) is None
