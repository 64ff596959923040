"""Images of every kind: what is stored, that the pipelines and Pillow show it alike and right, and what is refused."""

import io
import os
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from every_kind import KINDS, RGB
from image_files import chunk, exif, png, saved, tiff
from nvidia.dali import fn, pipeline_def
from PIL import Image, ImageOps

from pipelines.inputs import decode
from pipelines.recipe import evaluation
from shards.check import Checked, Refused, check_bytes
from shards.encode import stored_image

STORED = [name for name, kind in KINDS.items() if kind.shown is not None]
REFUSED = [name for name, kind in KINDS.items() if kind.shown is None]


def store(data, resize=None, **check):
    found = check_bytes(data, **check)
    assert isinstance(found, Checked), found
    return found, *stored_image(data, found, resize=resize, quality=90, lossy=True)


def decoded(files):
    """What the pipelines see."""

    @pipeline_def(batch_size=len(files), num_threads=2, device_id=None)
    def graph():
        return decode(
            fn.external_source(lambda: [np.frombuffer(file, np.uint8) for file in files]), evaluation(32), "cpu"
        )

    images = graph().run()[0]
    return [np.asarray(images[place]) for place in range(len(files))]


@pytest.fixture(scope="module")
def by_dali():
    return dict(zip(STORED, decoded([store(KINDS[name].data)[2] for name in STORED]), strict=True))


@pytest.mark.parametrize("name", STORED)
@pytest.mark.parametrize("decode_all", [True, False])
def test_what_is_stored(name, decode_all):
    kind = KINDS[name]
    found, ext, stored = store(kind.data, decode=decode_all)
    assert (ext, found.as_is) == ({"anew": "png"}.get(kind.fate, kind.fate), kind.fate != "anew")
    assert (stored == kind.data) == found.as_is
    assert (found.height, found.width) == kind.shown.shape[:2]
    if not found.as_is:
        again = Image.open(io.BytesIO(stored))
        assert again.format == "PNG" and not again.info and not again.has_transparency_data


@pytest.mark.parametrize("name", STORED)
def test_the_pipelines_show_it(name, by_dali):
    kind = KINDS[name]
    assert by_dali[name].dtype == np.uint8 and by_dali[name].shape == kind.shown.shape
    assert np.abs(by_dali[name].astype(int) - kind.shown).max() <= kind.tolerance


@pytest.mark.parametrize("name", STORED)
def test_pillow_shows_it(name):
    kind = KINDS[name]
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(store(kind.data)[2])))
    if kind.deep is not None:
        assert image.mode == "I;16" and np.array_equal(np.asarray(image), kind.deep)
    else:
        assert np.abs(np.asarray(image.convert("RGB")).astype(int) - kind.shown).max() <= kind.tolerance


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("decode_all", [True, False])
def test_what_is_refused(name, decode_all):
    found = check_bytes(KINDS[name].data, decode=decode_all)
    assert isinstance(found, Refused)
    with pytest.raises(AssertionError, match=KINDS[name].fate):
        raise AssertionError(found.reason)


def test_what_stands_under_transparent_pixels_is_not_seen():
    hidden = np.random.default_rng(0).integers(1, 256, (8, 8, 4), dtype=np.uint8)
    hidden[..., 3] = 0
    for kind in ("PNG", "TIFF"):
        assert not decoded([store(saved(Image.fromarray(hidden), kind))[2]])[0].any()
        assert not decoded([store(saved(Image.fromarray(hidden), kind), resize=4)[2]])[0].any()


def test_grey_stays_grey_without_its_transparency():
    assert Image.open(io.BytesIO(store(KINDS["png la"].data)[2])).mode == "L"
    assert Image.open(io.BytesIO(store(KINDS["png la"].data, resize=16)[2])).mode == "L"


def test_a_jpeg_made_smaller_is_upright_whatever_told_its_orientation():
    for name in ("jpeg exif 6", "jpeg xmp alone"):
        _, ext, stored = store(KINDS[name].data, resize=20)
        image = Image.open(io.BytesIO(stored))
        assert (ext, image.size) == ("jpg", (20, 27)) and not image.getexif()
        wanted = np.asarray(Image.fromarray(KINDS[name].shown).resize((20, 27), Image.Resampling.LANCZOS))
        assert np.abs(np.asarray(image).astype(int) - wanted).mean() < 8


def test_a_thumbnail_in_a_tiff_is_no_second_page():
    first, second = tiff(RGB, 2), tiff(RGB[::3, ::3].copy(), 2)
    at, count = len(first), struct.unpack("<H", second[8:10])[0]
    # The second page behind the first, its offsets moved and marked as a smaller copy in place of its first field
    # (width and height are those of the tags that follow).
    fields = [second[10 + 12 * i : 22 + 12 * i] for i in range(count)]
    moved = [struct.pack("<HHII", 254, 4, 1, 1)]
    for field in fields:
        tag, kind, number, value = struct.unpack("<HHII", field)
        far = tag == 273 or (kind == 3 and number > 2)
        moved.append(struct.pack("<HHII", tag, kind, number, value + at + 12) if far else field)
    page = struct.pack("<H", count + 1) + b"".join(moved) + bytes(4) + second[14 + 12 * count :]
    whole = bytearray(first + bytes(8) + page)
    end = 10 + 12 * struct.unpack("<H", first[8:10])[0]
    whole[end : end + 4] = struct.pack("<I", at + 8)
    with Image.open(io.BytesIO(whole)) as image:
        assert image.n_frames == 2
        image.seek(1)
        assert image.size == (11, 8)
    assert np.array_equal(decoded([store(bytes(whole))[2]])[0], RGB)


@pytest.mark.parametrize(
    ("size", "reason"),
    [((30_000, 30_000), "decompression bomb"), ((9_500, 9_500), "decompression bomb"), ((3000, 3000), "")],
)
@pytest.mark.parametrize("decode_all", [True, False])
def test_a_png_whose_header_lies_is_refused(size, reason, decode_all):
    data = png([bytes(96)] * 24, 8, 2, size=size)
    found = check_bytes(data, decode=decode_all)
    if not reason and not decode_all:  # a header is believed
        return
    assert isinstance(found, Refused) and reason in found.reason


def test_a_png_whose_text_unpacks_to_a_bomb_is_refused():
    bomb = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(80_000_000)))
    found = check_bytes(png([bytes(96)] * 24, 8, 2, before=bomb))
    assert isinstance(found, Refused) and "large" in found.reason


def test_broken_metadata_is_no_reason_to_refuse():
    broken = b"Exif\0\0" + exif(6)[:15]
    data = KINDS["jpeg"].data
    data = data[:2] + b"\xff\xe1" + struct.pack(">H", len(broken) + 2) + broken + data[2:]
    assert np.abs(decoded([store(data)[2]])[0].astype(int) - KINDS["jpeg"].shown).max() <= 2


REAL = os.environ.get("MSTL_TEST_DATA")


@pytest.mark.skipif(REAL is None, reason="MSTL_TEST_DATA names no folder of real data")
@pytest.mark.parametrize("place", ["covid19-ct/Images-processed/CT_COVID.zip", "imagenet-sample/train"])
def test_real_images_are_stored_as_they_came_and_shown_alike(place):
    found = Path(REAL) / place
    if found.suffix == ".zip":
        with zipfile.ZipFile(found) as archive:
            names = [
                info.filename for info in archive.infolist() if not info.is_dir() and "__MACOSX" not in info.filename
            ]
            files = [archive.read(name) for name in names[::4]]
    else:
        files = [path.read_bytes() for path in sorted(found.glob("*/*"))[::8]]
    checked = [check_bytes(data) for data in files]
    assert all(check.as_is for check in checked)
    modes = {check.mode for check in checked}
    assert "RGB" in modes and ("RGBA" in modes) == (found.suffix == ".zip")
    for data, shown in zip(files, decoded(files), strict=True):
        wanted = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
        assert shown.shape == wanted.shape and np.abs(shown.astype(int) - wanted).max() <= 2
