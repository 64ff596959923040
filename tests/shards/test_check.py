"""Checking: whole images pass, anything else is refused with a reason, and an interrupted check goes on."""

import hashlib
import io
import json

import numpy as np
import pytest
from PIL import Image
from raw_data import encoded, pixels, put, zip_of

from shards import check
from shards.check import Checked, Refused, check_all, check_blob, check_bytes
from shards.errors import MstlError
from shards.sources import Blob


class Counts:
    """Progress that remembers what it was told."""

    def __init__(self, stop_after=None):
        self.said, self.stop_after = [], stop_after

    def start(self, total, what):
        self.said.append((what, total))

    def advance(self, n=1):
        self.said.append(n)
        if self.stop_after is not None and sum(s for s in self.said if isinstance(s, int)) >= self.stop_after:
            raise KeyboardInterrupt


def blobs(tmp_path, images):
    return [Blob(str(put(tmp_path / f"{i}.img", data)), len(data)) for i, data in enumerate(images)]


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


def test_blobs_that_cannot_be_read_are_refused(tmp_path):
    archive = put(tmp_path / "a.zip", zip_of({"a.png": b"x"}))
    for blob in (Blob(str(tmp_path / "gone"), 3), Blob(str(archive), 3, "b.png")):
        found = check_blob(blob)
        assert isinstance(found, Refused) and found.reason.startswith("it cannot be read")


def test_check_all_keeps_the_order_and_counts(tmp_path):
    images = [encoded(i) for i in range(70)]
    images[40] = b"broken"
    progress = Counts()
    results = check_all(blobs(tmp_path, images), log=tmp_path / "log", max_bad=0.01, progress=progress)
    assert [getattr(r, "sha256", None) for r in results] == [
        None if i == 40 else hashlib.sha256(data).hexdigest() for i, data in enumerate(images)
    ]
    assert progress.said == [("checking images", 70), 0, 32, 32, 6]


def test_two_workers_find_the_same(tmp_path):
    places = blobs(tmp_path, [*(encoded(i) for i in range(80)), b"broken"])
    one = check_all(places, log=tmp_path / "one", max_bad=0.1)
    assert check_all(places, log=tmp_path / "two", max_bad=0.1, workers=2) == one
    assert (tmp_path / "two").read_bytes() == (tmp_path / "one").read_bytes()


@pytest.mark.parametrize(("max_bad", "allowed"), [(0.0, 0), (0.01, 3), (0.1, 4)])
def test_the_budget(tmp_path, max_bad, allowed):
    images = [encoded(0)] * 40
    images[:allowed] = [b"bad"] * allowed
    results = check_all(blobs(tmp_path, images), log=tmp_path / "good.log", max_bad=max_bad)
    assert sum(isinstance(r, Refused) for r in results) == allowed
    images[35] = b""
    for _ in range(2):  # the second time from the log
        with pytest.raises(
            MstlError, match=rf"{allowed + 1} of the first \d+ \(of 40\).*{allowed} are allowed"
        ) as error:
            check_all(blobs(tmp_path, images), log=tmp_path / "bad.log", max_bad=max_bad)
    assert (".img: it is none of" if allowed else "35.img: the file is empty") in error.value.why
    assert "--max-bad" in error.value.remedy


def test_an_interrupted_check_goes_on_from_its_log(tmp_path, monkeypatch):
    places = blobs(tmp_path, [encoded(i) if i != 5 else b"" for i in range(100)])
    whole = check_all(places, log=tmp_path / "whole", max_bad=0.1)
    log = tmp_path / "log"
    with pytest.raises(KeyboardInterrupt):
        check_all(places, log=log, max_bad=0.1, progress=Counts(stop_after=33))
    lines = log.read_bytes().splitlines(keepends=True)
    assert len(lines) == 64
    log.write_bytes(b"".join(lines[:50]) + lines[50][:20])  # torn by a crash
    read = []
    monkeypatch.setattr(check, "check_blob", lambda blob: read.append(blob) or check_bytes(blob.read()))
    assert check_all(places, log=log, max_bad=0.1) == whole
    assert read == [places[5], *places[50:]]  # the refused one again
    assert log.read_bytes() == (tmp_path / "whole").read_bytes()
    assert all(json.loads(line) for line in log.read_text().splitlines())


@pytest.mark.parametrize("workers", [1, 2])
def test_refused_images_are_checked_again_and_sound_ones_are_not(tmp_path, workers):
    places = blobs(tmp_path, [b"bad!" if i in (3, 40) else encoded(i) for i in range(50)])
    first = check_all(places, log=tmp_path / "log", max_bad=0.1)
    assert [i for i, r in enumerate(first) if isinstance(r, Refused)] == [3, 40]
    mended = encoded(3)
    places[3] = Blob(str(put(tmp_path / "3.img", mended)), len(mended))
    put(tmp_path / "7.img", b"broken later")
    progress = Counts()
    second = check_all(places, log=tmp_path / "log", max_bad=0.1, progress=progress, workers=workers)
    assert second[3].sha256 == hashlib.sha256(mended).hexdigest()
    assert isinstance(second[40], Refused) and second[7] == first[7]
    assert progress.said == [("checking images", 50), 48, 2]


@pytest.mark.parametrize("line", ["5", "null", "[1]", '"reason"', '{"reason": "x", "more": 1}', '{"width": 3}'])
def test_a_log_line_that_is_not_ours_ends_what_is_believed(tmp_path, line):
    places = blobs(tmp_path, [encoded(i) for i in range(3)])
    whole = check_all(places, log=tmp_path / "log", max_bad=0)
    lines = (tmp_path / "log").read_text().splitlines()
    (tmp_path / "log").write_text("\n".join([lines[0], line, lines[2]]) + "\n")
    assert check_all(places, log=tmp_path / "log", max_bad=0) == whole
    assert (tmp_path / "log").read_text().splitlines() == lines
