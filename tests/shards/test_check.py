"""Checking: whole images pass, anything else is refused with a reason."""

import errno
import hashlib
import io
import os

import numpy as np
import pytest
from PIL import Image
from raw_data import encoded, pixels, put, zip_of

from shards import check
from shards.check import Checked, Refused, check_bytes, read_and_check
from shards.errors import MstlError
from shards.sources import Blob


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "TIFF", "GIF", "WEBP"])
@pytest.mark.parametrize("channels", [1, 3])
def test_whole_images_pass_with_their_facts(kind, channels):
    data = encoded(1, kind, (13, 7), channels)
    found = check_bytes(data)
    assert isinstance(found, Checked)
    assert (found.width, found.height, found.format) == (13, 7, kind)
    assert (found.bytes, found.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    if kind in ("JPEG", "PNG"):
        assert found.mode == ("L" if channels == 1 else "RGB")


def saved(image, kind="PNG", **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def test_unusual_pixels_that_can_be_kept_pass():
    deep = Image.fromarray(np.arange(60000, 60012, dtype=np.uint16).reshape(3, 4))
    modes = [check_bytes(saved(deep)), check_bytes(saved(Image.new("CMYK", (4, 3)), "JPEG")),
             check_bytes(saved(Image.new("RGBA", (4, 3)))), check_bytes(saved(Image.new("1", (4, 3))))]  # fmt: skip
    assert [found.mode for found in modes] == ["I;16", "CMYK", "RGBA", "1"]


def test_pixels_png_cannot_hold_are_refused():
    found = check_bytes(saved(Image.fromarray(np.zeros((3, 4), np.float32)), "TIFF"))
    assert found == Refused("PNG cannot hold the pixels of this TIFF (mode F) without loss")


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_a_jpeg_truncated_anywhere_is_refused(options):
    data = encoded(1, "JPEG", (24, 17), **options)
    assert isinstance(check_bytes(data), Checked)
    assert [cut for cut in range(len(data)) if not isinstance(check_bytes(data[:cut]), Refused)] == []


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_other_formats_truncated_anywhere_are_refused(kind):
    data = encoded(1, kind)
    assert isinstance(check_bytes(data), Checked)
    assert [cut for cut in range(len(data)) if not isinstance(check_bytes(data[:cut]), Refused)] == []


def test_the_end_of_a_thumbnail_is_not_the_end_of_the_jpeg():
    data = encoded(1, "JPEG", (24, 17))
    thumbnail = b"\xff\xe1" + (2 + 4).to_bytes(2, "big") + b"\xff\xd9\xff\xd9"
    with_thumbnail = data[:2] + thumbnail + data[2:]
    assert isinstance(check_bytes(with_thumbnail), Checked)
    found = check_bytes(with_thumbnail[:-2])
    assert isinstance(found, Refused) and "truncated" in found.reason
    assert isinstance(check_bytes(data + b"trailing bytes"), Checked)


@pytest.mark.parametrize("at", [100, -14])  # pixels, and the checksum of the pixels
def test_a_png_with_a_flipped_byte_is_refused(at):
    data = bytearray(encoded(1))
    data[at] ^= 0xFF
    assert isinstance(check_bytes(bytes(data)), Refused)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"<html>not found</html>", "none of JPEG, PNG, BMP, TIFF, GIF, WEBP"),
        (bytes(500), "none of"),
        (b"\x89PNG\r\n\x1a\n", ""),
        (saved(Image.new("L", (4, 3)), "PPM"), "none of"),
    ],
)
def test_what_is_no_image_is_refused(data, reason):
    found = check_bytes(data)
    assert isinstance(found, Refused) and found.reason and reason in found.reason
    assert "0x" not in found.reason  # reasons are the same in every run


def test_decompression_bombs_are_refused(monkeypatch):
    data = encoded(1, size=(20, 20))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)
    found = check_bytes(data)
    assert isinstance(found, Refused) and "decompression bomb" in found.reason


@pytest.mark.parametrize("kind", ["JPEG", "TIFF", "PNG", "WEBP"])
def test_sizes_are_those_shown(kind):
    exif = Image.Exif()
    exif[0x0112] = 6
    found = check_bytes(saved(Image.fromarray(pixels(1, (12, 9))), kind, exif=exif))
    assert (found.width, found.height) == (9, 12)


def test_what_an_archive_does_not_hold_is_refused(tmp_path):
    archive = put(tmp_path / "a.zip", zip_of({"a.png": b"x"}))
    data, found = read_and_check(Blob(str(archive), 3, "b.png"))
    assert data == b"" and isinstance(found, Refused) and found.reason.startswith("it cannot be read")


class Failing:
    """A blob that the system fails to read some times."""

    name, size = "scan.png", 3

    def __init__(self, number, times):
        self.number, self.times = number, times

    def read(self):
        self.times -= 1
        if self.times >= 0:
            raise OSError(self.number, os.strerror(self.number))
        return encoded(1)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EMFILE, errno.ETIMEDOUT])
def test_an_image_is_not_lost_to_a_failing_disk(monkeypatch, number):
    waited = []
    monkeypatch.setattr(check.time, "sleep", waited.append)
    assert isinstance(read_and_check(Failing(number, 3))[1], Checked)
    assert waited == list(check.RETRY_SECONDS)
    with pytest.raises(MstlError, match=rf"image scan\.png: it cannot be read \({os.strerror(number)}\)"):
        read_and_check(Failing(number, 4))


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES])
def test_what_waiting_cannot_mend_ends_the_build_at_once(monkeypatch, number):
    monkeypatch.setattr(check.time, "sleep", lambda seconds: pytest.fail("it waited"))
    with pytest.raises(MstlError, match="image scan"):
        read_and_check(Failing(number, 1))


@pytest.mark.parametrize("harm", ["zeros", "end", "garbled"])
def test_a_jpeg_that_decodes_only_in_part_is_refused(harm):
    """What Pillow takes without a word: libjpeg only warns."""
    data = encoded(1, "JPEG", (200, 200))
    third = len(data) // 3
    harmed = {
        "zeros": data[:third] + bytes(third) + data[2 * third :],
        "end": data[: len(data) // 2] + b"\xff\xd9",
        "garbled": data[: 2 * third] + bytes(range(1, 65)) + data[2 * third + 64 :],
    }[harm]
    assert isinstance(check_bytes(data), Checked)
    found = check_bytes(harmed)
    assert isinstance(found, Refused) and found.reason.startswith("the JPEG is damaged or truncated: ")


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_without_decoding_the_header_is_believed(kind):
    data = encoded(1, kind, (33, 17))
    assert check_bytes(data, decode=False) == check_bytes(data)
    cut = data[:-20]
    assert isinstance(check_bytes(cut), Refused) and isinstance(check_bytes(cut, decode=False), Checked)
    assert isinstance(check_bytes(b"<html>", decode=False), Refused)
