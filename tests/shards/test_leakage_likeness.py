"""The same picture is found whatever was done to its file, another one is not; the search misses no pair."""

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from pictures import copies, picture, saved
from PIL import Image

from shards import likeness
from shards.likeness import LEAST_CORRELATION, MOST_BITS, correlation, find_candidates, hash_image, thumbnail


def bits_between(a: bytes, b: bytes) -> int:
    one, other = hash_image(a), hash_image(b)
    assert one is not None and other is not None
    return sum(int(x ^ y).bit_count() for x, y in zip(one, other, strict=True))


def same(a: bytes, b: bytes) -> bool:
    return bits_between(a, b) <= MOST_BITS and correlation(thumbnail(a), thumbnail(b)) >= LEAST_CORRELATION


@pytest.mark.parametrize("seed", range(4))
def test_a_copy_is_the_same_picture(seed: int) -> None:
    image = picture(seed)
    assert [name for name, data in copies(image) if not same(saved(image), data)] == []


def test_other_pictures_are_not_the_same() -> None:
    files = [saved(picture(seed)) for seed in range(8)]
    pairs = [(a, b) for i, a in enumerate(files) for b in files[i + 1 :]]
    assert not any(same(a, b) for a, b in pairs)
    # Each of the two measures tells them apart by itself.
    assert min(bits_between(a, b) for a, b in pairs) > MOST_BITS
    assert max(correlation(thumbnail(a), thumbnail(b)) for a, b in pairs) < LEAST_CORRELATION


def test_correlation_takes_no_notice_of_what_is_coarse() -> None:
    ramp = np.add.outer(np.arange(128), np.arange(128)) / 2
    random = np.random.default_rng(3)
    one, other = (np.clip(ramp + random.normal(60, 4, ramp.shape), 0, 255).astype(np.uint8) for _ in range(2))
    assert np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.97
    assert correlation(one, other) < 0.5


def test_correlation_of_a_picture_with_itself_is_one_and_of_two_the_same_both_ways() -> None:
    one, other = thumbnail(saved(picture(1))), thumbnail(saved(picture(2)))
    assert correlation(one, one) == pytest.approx(1)
    assert correlation(one, other) == correlation(other, one)


@pytest.mark.parametrize("box", [(2, 0, 200, 200), (0, 0, 200, 198), (2, 2, 198, 198)])
def test_a_hundredth_off_a_border_costs_nothing(box: tuple[int, int, int, int]) -> None:
    image = picture(8, (200, 200))
    whole, cropped = thumbnail(saved(image)), thumbnail(saved(image.crop(box)))
    assert min(correlation(whole, cropped), correlation(cropped, whole)) > 0.995


def test_more_than_eight_bits_hash_like_eight() -> None:
    image = picture(5)
    deep = Image.fromarray(np.asarray(image).astype(np.uint16) * 16 + 900)
    assert same(saved(image), saved(deep))


def test_alpha_is_dropped_as_in_training() -> None:
    image = picture(6).convert("RGBA")
    clear = image.copy()
    clear.putalpha(0)
    assert bits_between(saved(image), saved(clear)) == 0


def test_an_image_is_turned_as_its_exif_says() -> None:
    image, out, exif = picture(7), io.BytesIO(), Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    image.transpose(Image.Transpose.ROTATE_90).save(out, "JPEG", quality=95, exif=exif)
    assert same(saved(image), out.getvalue())
    assert not same(saved(image), saved(image.transpose(Image.Transpose.ROTATE_90)))


@pytest.mark.parametrize("level", [0, 128, 255])
def test_a_blank_image_has_no_hash(level: int) -> None:
    grey = np.full((40, 50), level, dtype=np.uint8)
    grey[0, 0] ^= 8
    assert hash_image(saved(Image.fromarray(grey))) is None


def test_a_hash_is_256_bits_of_which_half_are_set() -> None:
    bits = hash_image(saved(picture(1)))
    assert bits is not None and bits.dtype == np.uint64 and bits.shape == (4,)
    assert int(np.bitwise_count(bits).sum()) == 128  # the median splits the coefficients


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks each way, with a rest."""
    monkeypatch.setattr(likeness, "_ROWS", 4)
    monkeypatch.setattr(likeness, "_COLUMNS", 7)


def flipped(bits: np.ndarray, places: np.ndarray) -> np.ndarray:
    text = np.unpackbits(bits.view(np.uint8))
    text[places] ^= 1
    return np.packbits(text).view(np.uint64)


@pytest.mark.usefixtures("small_blocks")
def test_the_search_finds_what_comparing_all_finds() -> None:
    random = np.random.default_rng(0)
    a = random.integers(0, 2**64, (23, 4), dtype=np.uint64)
    changes = enumerate((0, 40, 41, 12, 39, 90, 40, 1, 41))
    b = np.stack([flipped(a[i], random.choice(256, count, replace=False)) for i, count in changes])
    expected = [
        (i, j, distance)
        for j in range(len(b))
        for i in range(len(a))
        if (distance := sum(int(x ^ y).bit_count() for x, y in zip(a[i], b[j], strict=True))) <= MOST_BITS
    ]
    found = find_candidates(a, b)
    assert list(zip(found.a.tolist(), found.b.tolist(), found.bits.tolist(), strict=True)) == expected
    assert [j for _, j, _ in expected] == [0, 1, 3, 4, 6, 7]


@pytest.mark.usefixtures("small_blocks")
def test_of_many_near_ones_the_nearest_few_are_kept() -> None:
    base = np.arange(1, 5, dtype=np.uint64)
    a = np.stack([flipped(base, np.arange(count)) for count in (9, 3, 7, 1, 5, 0, 8, 2, 6, 4)])
    found = find_candidates(a, base[None])
    assert (found.a.tolist(), found.bits.tolist()) == ([5, 3, 7, 1], [0, 1, 2, 3])
    assert found.cut.tolist() == [0]


@pytest.mark.usefixtures("small_blocks")
def test_images_with_more_near_ones_than_are_kept_are_told() -> None:
    random = np.random.default_rng(1)
    crowded, lonely, four = random.integers(0, 2**64, (3, 4), dtype=np.uint64)
    near = [flipped(crowded, np.arange(count)) for count in range(5)]
    a = np.stack([*near, lonely, *(flipped(four, np.arange(count)) for count in range(4))])
    found = find_candidates(a, np.stack([lonely, four, lonely, four, four, crowded, lonely]))
    assert found.cut.tolist() == [5]
    assert (found.b == 4).sum() == 4


def test_nothing_is_near_nothing() -> None:
    none = np.empty((0, 4), dtype=np.uint64)
    some = np.ones((3, 4), dtype=np.uint64)
    assert len(find_candidates(none, some).a) == len(find_candidates(some, none).b) == 0


def real_images(root: Path, source: str, count: int) -> list[Image.Image]:
    if source == "covidx":
        paths = sorted((root / "covidx/data/train").iterdir())
        return [Image.open(path).convert("L") for path in paths[:: len(paths) // count]]
    archive = zipfile.ZipFile(root / "covid19-ct/Images-processed/CT_NonCOVID.zip")
    names = sorted(name for name in archive.namelist() if name.endswith(("png", "jpg")) and "__" not in name)
    return [Image.open(io.BytesIO(archive.read(name))).convert("L") for name in names[:: len(names) // count]]


@pytest.mark.parametrize("source", ["covidx", "covid19-ct"])
def test_real_images(source: str) -> None:
    place = os.environ.get("MSTL_TEST_DATA")
    if not place:
        pytest.skip("MSTL_TEST_DATA names no folder of real images")
    images = real_images(Path(place), source, 8)
    files = [saved(image) for image in images]
    missed = [
        (at, name) for at, (image, data) in enumerate(zip(images, files, strict=True))
        for name, copy in copies(image) if not same(data, copy)
    ]  # fmt: skip
    assert missed == []
    assert not any(same(a, b) for i, a in enumerate(files) for b in files[i + 1 :])
