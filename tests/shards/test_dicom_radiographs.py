"""Radiographs in DICOM made in code: windows, lookup tables and how they lie."""

import numpy as np
import pytest
from pydicom.dataset import Dataset
from scans import body, laid, listed, only_image, radiograph, saved, shown

from shards.errors import MstlError


def lut(values, first, bits):
    item = Dataset()
    item.add_new("LUTDescriptor", "US" if first >= 0 else "SS", [len(values), first, bits])
    item.add_new("LUTData", "OW", np.asarray(values, np.uint16).tobytes())
    return item


PIXELS = np.random.default_rng(5).integers(0, 1024, (6, 5)).astype(np.uint16)


def test_radiographs_without_a_window_use_all_their_values(tmp_path):
    low, high = int(PIXELS.min()), int(PIXELS.max())
    expected = np.floor((PIXELS.astype(float) - low) / (high - low) * 255 + 0.5)
    assert np.array_equal(only_image(tmp_path, radiograph(PIXELS)), expected)
    inverted = only_image(tmp_path, radiograph(PIXELS, PhotometricInterpretation="MONOCHROME1"))
    assert np.array_equal(inverted, np.floor((high - PIXELS.astype(float)) / (high - low) * 255 + 0.5))
    padded = PIXELS.copy()
    padded[0] = 60000
    ds = radiograph(padded, PixelPaddingValue=60000)
    found = only_image(tmp_path, ds)
    inside = padded[1:].astype(float)
    scaled = (inside - inside.min()) / (inside.max() - inside.min())
    assert not found[0].any() and np.array_equal(found[1:], np.floor(scaled * 255 + 0.5))
    assert not only_image(tmp_path, radiograph(np.full((2, 2), 7, np.uint16))).any()


def test_radiographs_use_their_window_unless_told_otherwise(tmp_path):
    ds = radiograph(PIXELS, WindowCenter=[500, 1], WindowWidth=[300, 2])
    assert np.array_equal(only_image(tmp_path, ds), shown(PIXELS, 500, 300))
    assert np.array_equal(only_image(tmp_path, ds, window="200,100"), shown(PIXELS, 200, 100))
    ds.VOILUTFunction = "SIGMOID"
    expected = np.floor(255 / (1 + np.exp(-4 * (PIXELS.astype(float) - 500) / 300)) + 0.5)
    assert np.array_equal(only_image(tmp_path, ds), expected)
    with pytest.raises(MstlError, match="radiographs have none"):
        only_image(tmp_path, ds, window="lung")


def test_radiographs_use_their_lookup_tables(tmp_path):
    table = np.random.default_rng(6).permutation(4096)[:512]
    expected = np.empty(PIXELS.shape)
    for place, value in np.ndenumerate(PIXELS):
        expected[place] = table[min(max(int(value) - 100, 0), 511)] / 4095
    ds = radiograph(PIXELS, VOILUTSequence=[lut(table, 100, 12)], WindowCenter=5, WindowWidth=5)
    assert np.array_equal(only_image(tmp_path, ds), np.floor(expected * 255 + 0.5))
    first = np.arange(1024)[::-1] * 3  # a modality table before the other
    ds = radiograph(PIXELS, ModalityLUTSequence=[lut(first, 0, 12)], WindowCenter=1500, WindowWidth=2000)
    assert np.array_equal(only_image(tmp_path, ds), shown(first[PIXELS], 1500, 2000))
    saved(tmp_path / "a/one.dcm", radiograph(PIXELS, VOILUTSequence=[lut(table, 100, 10)]))
    [item] = listed(tmp_path).items
    with pytest.raises(OSError, match="512 entries of 10 bits"):
        item.blob.read()


@pytest.mark.parametrize("letters", ["LF", "RF", "LH", "RH", "FL", "HR"])
def test_radiographs_that_say_how_they_lie_are_turned(tmp_path, letters):
    anatomy = body(low=0, high=1000)[0].astype(np.uint16)
    across, down = letters.replace("F", "P").replace("H", "A")
    stored = laid(anatomy[None], ["H", down, across])[0]
    ds = radiograph(stored, PatientOrientation=list(letters), WindowCenter=500, WindowWidth=1000)
    assert np.array_equal(only_image(tmp_path, ds), shown(anatomy, 500, 1000))
