"""Windows, orientation and PNGs of slices."""

import io
import math

import numpy as np
import pytest
from PIL import Image
from scans import VECTORS, body, dicom, laid, nifti, saved, shown

from shards.errors import MstlError
from shards.sources import SourceOptions, read_source
from shards.sources.slices import Window, checked_bits, direction, is_axial, parse_window, to_png, upright, windowed


@pytest.mark.parametrize(("center", "width"), [(-600, 1500), (40, 400), (2048, 4096), (0, 100), (3.5, 2), (0, 1)])
@pytest.mark.parametrize("bits", [8, 16])
def test_the_linear_window_is_the_standards(center, width, bits):
    values = np.concatenate([np.arange(-1400, 300, 7), np.arange(-5, 8), [center - width, center + width, 3.5]])
    png = Image.open(io.BytesIO(to_png(windowed(values[None], Window(center, width)), bits)))
    assert png.mode == ("L" if bits == 8 else "I;16") and not png.info
    expected = shown(values, center, width, bits) if width > 1 else (values > center - 0.5) * (2**bits - 1)
    assert np.array_equal(np.asarray(png)[0], expected)


def test_the_standards_own_examples():
    # PS3.3 C.11.2.1.2.1: c=2048, w=4096: 0 and below are black, 4095 and above white; c=0, w=1: below 0 black
    unit = windowed(np.array([-1, 0, 1, 4094, 4095, 5000]), Window(2048, 4096))
    assert unit[0] == unit[1] == 0 < unit[2] and unit[3] < 1 == unit[4] == unit[5]
    assert windowed(np.array([-1, -0.5, 0, 1]), Window(0, 1)).tolist() == [0, 0, 1, 1]
    # c=0, w=100: black at and below -50, white above 49
    assert windowed(np.array([-50, 49]), Window(0, 100)).tolist() == [0, 1]


def test_exact_and_sigmoid_windows():
    x = np.array([-10.0, 0, 20, 40, 1e6])
    assert windowed(x, Window(20, 40, "LINEAR_EXACT")).tolist() == [0, 0, 0.5, 1, 1]
    expected = [1 / (1 + math.exp(-4 * (v - 20) / 40)) for v in x]
    assert np.allclose(windowed(x, Window(20, 40, "SIGMOID")), expected)
    for bad in (Window(0, 0.5), Window(0, 0, "LINEAR_EXACT"), Window(0, 9, "CUBIC"), Window(math.nan, 9)):
        with pytest.raises(ValueError, match="not in the standard"):
            windowed(x, bad)


def test_named_and_own_windows():
    assert parse_window("lung") == Window(-600, 1500) and parse_window("mediastinum") == Window(40, 400)
    assert parse_window("-500,1400.5") == Window(-500, 1400.5)
    for text in ("bone", "1", "1,2,3", "1,0", "1,nan", "inf,2", ""):
        with pytest.raises(MstlError, match="CENTER,WIDTH"):
            parse_window(text)
    assert checked_bits(None) == 8 and checked_bits(16) == 16
    with pytest.raises(MstlError, match="8 or 16"):
        checked_bits(12)


IN_PLANE = ["LP", "RP", "LA", "RA", "PL", "PR", "AL", "AR"]


@pytest.mark.parametrize("letters", IN_PLANE)
def test_every_way_to_lie_becomes_upright(letters):
    anatomy = body()[1]
    across, down = letters
    stored = laid(anatomy[None], ["H", down, across])[0]
    assert np.array_equal(upright(stored, across, down, to="P"), anatomy)
    frontal = letters.replace("P", "F").replace("A", "H")
    assert np.array_equal(upright(stored, *frontal, to="F"), anatomy)


@pytest.mark.parametrize(("across", "down"), [("L", "H"), ("L", "R"), ("H", "P"), ("P", "A")])
def test_what_does_not_lie_in_the_plane_is_refused(across, down):
    with pytest.raises(ValueError, match="cannot be turned"):
        upright(np.zeros((2, 3)), across, down, to="P")


def test_directions_and_planes():
    for letter, vector in VECTORS.items():
        assert direction(np.array(vector) + np.array([0.1, -0.2, 0.15])) == letter
    for degrees, axial in ((0, True), (39, True), (41, False), (90, False), (180, True)):
        tilt = math.radians(degrees)
        assert is_axial(3 * np.array([0, math.sin(tilt), math.cos(tilt)])) == axial


@pytest.mark.parametrize("source", ["dicom", "nifti"])
def test_window_and_depth_are_part_of_what_a_set_is_built_from(tmp_path, source):
    if source == "dicom":
        saved(tmp_path / "a.dcm", dicom(body()[0]))
    else:
        nifti(tmp_path / "a.nii", body())
    ways = ({}, {"window": "mediastinum"}, {"bits": 16}, {"window": "-600,1501"})
    listings = [read_source(source, tmp_path, SourceOptions(**way)) for way in ways]
    assert len({listing.digest for listing in listings}) == 4
    assert listings[2].rendering == "window -600,1500, 16 bits"
    assert read_source(source, tmp_path, SourceOptions(window="lung", bits=8)).digest == listings[0].digest
