"""DICOM files made in code: pixels, places and what is left out."""

import hashlib
import io
import pickle
import zlib

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless
from raw_data import put
from scans import VECTORS, body, dicom, image_of, laid, listed, only_image, radiograph, saved, shown

from shards.errors import MstlError
from shards.sources import dicom as source
from shards.sources import dicom_file, read_source
from shards.sources.slices import TOO_LARGE, is_too_large


@pytest.mark.parametrize("letters", ["LP", "RP", "LA", "RA", "PL", "PR", "AL", "AR"])
def test_axial_slices_are_turned_however_they_lie(tmp_path, letters):
    anatomy = body()[1]
    across, down = letters
    ds = dicom(laid(anatomy[None], ["H", down, across])[0])
    # a tilted gantry, and numbers as scanners write them
    turn = np.array([[1, 0, 0], [0, np.cos(0.4), -np.sin(0.4)], [0, np.sin(0.4), np.cos(0.4)]])
    ds.ImageOrientationPatient = [f"{v:.6f}" for letter in letters for v in turn @ VECTORS[letter]]
    assert np.array_equal(only_image(tmp_path, ds), shown(anatomy, -600, 1500))


@pytest.mark.parametrize(
    ("dtype", "slope", "intercept", "stored"),
    [(np.uint16, 1, -1024, 16), (np.int16, 1, 0, 16), (np.uint16, 0.5, -1000, 12), (np.int16, 2.5, -10, 12),
     (np.uint8, 8, -1400, 8)],
)  # fmt: skip
@pytest.mark.parametrize(("window", "center", "width"), [(None, -600, 1500), ("mediastinum", 40, 400)])
def test_stored_values_become_hounsfield_units(tmp_path, dtype, slope, intercept, stored, window, center, width):
    low, high = (-800, 80) if dtype is np.int16 else (0, 200 if stored == 8 else 1500)
    pixels = np.random.default_rng(1).integers(low, high, (5, 6)).astype(dtype)
    ds = dicom(pixels, RescaleSlope=slope, RescaleIntercept=intercept, BitsStored=stored, HighBit=stored - 1)
    if stored == 12:  # an overlay in the bits that are not stored
        dirty = pixels.view(np.uint16) & 0x0FFF | 0x5000
        ds.PixelData = dirty.tobytes()
    values = pixels.astype(float) * slope + intercept
    assert np.array_equal(only_image(tmp_path, ds, window=window), shown(values, center, width))
    found = only_image(tmp_path, ds, window=window, bits=16)
    assert found.dtype == np.uint16 and np.array_equal(found, shown(values, center, width, 16))


def test_padding_is_black_and_monochrome1_is_inverted(tmp_path):
    pixels = np.array([[-2000, -600, 3000], [200, -2000, -1400]], np.int16)
    expected = 255 - shown(pixels, -600, 1500)
    expected[pixels == -2000] = 0
    for padding in (-2000, 63536):  # the latter: written as an unsigned number by mistake
        ds = dicom(pixels, PhotometricInterpretation="MONOCHROME1")
        ds.add_new("PixelPaddingValue", "SS" if padding < 0 else "US", padding)
        assert np.array_equal(only_image(tmp_path, ds), expected)
    ds.add_new("PixelPaddingValue", "SS", -2000)
    ds.add_new("PixelPaddingRangeLimit", "SS", -600)
    expected[pixels <= -600] = 0
    assert np.array_equal(only_image(tmp_path, ds), expected)


def test_padding_outside_the_stored_bits_is_no_pixel_value(tmp_path):
    pixels = np.array([[63536, 2096, 400]], np.uint16)  # 63536 is 2096 in 12 bits
    ds = dicom(pixels, BitsStored=12, HighBit=11, RescaleIntercept=-1024)
    ds.add_new("PixelPaddingValue", "US", 63536)
    assert only_image(tmp_path, ds).tolist() == [[0, 255, shown(np.array([[-624]]), -600, 1500)[0, 0]]]


def test_compressed_pixels_are_the_same(tmp_path):
    pixels = body(low=0, high=4000)[0].astype(np.uint16)
    expected = shown(pixels.astype(float) - 1024, -600, 1500)
    rle = dicom(pixels, RescaleIntercept=-1024)
    rle.compress(RLELossless)
    j2k = dicom(pixels, RescaleIntercept=-1024)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG2000", irreversible=False, no_jp2=True)
    j2k.file_meta.TransferSyntaxUID = JPEG2000Lossless
    j2k.PixelData = encapsulate([out.getvalue()])
    j2k["PixelData"].VR = "OB"
    for ds in (rle, j2k):
        assert np.array_equal(only_image(tmp_path, ds), expected)


def test_pixels_that_cannot_be_decoded_are_refused_when_read(tmp_path):
    pixels = body()[0]
    cut = dicom(pixels)
    cut.PixelData = cut.PixelData[:-8]
    broken = dicom(pixels)
    broken.file_meta.TransferSyntaxUID = JPEGLSLossless
    broken.PixelData = encapsulate([b"no picture" * 9])
    broken["PixelData"].VR = "OB"
    unknown = dicom(pixels)
    unknown.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.102"  # MPEG-4
    unknown.PixelData = encapsulate([b"no film" * 9])
    unknown["PixelData"].VR = "OB"
    empty = dicom(pixels)
    del empty.PixelData
    wide = dicom(pixels, WindowWidth=0)
    for at, ds in enumerate((cut, broken, unknown, empty, wide)):
        saved(tmp_path / f"{at}.dcm", ds)
    *bad, good = listed(tmp_path).items
    for item in bad:
        with pytest.raises(OSError, match="the DICOM pixels cannot be shown"):
            item.blob.read()
    assert np.array_equal(image_of(good), shown(pixels, -600, 1500))  # the file's window plays no part in CT


def test_frames_of_one_file_are_items(tmp_path):
    anatomy = body()
    saved(tmp_path / "many.dcm", dicom(anatomy))
    listing = listed(tmp_path)
    assert [(item.origin, item.key) for item in listing.items] == [
        (f"many.dcm/frame-000{i}", f"many-frame-000{i}") for i in (1, 2, 3)
    ]
    for item, expected in zip(listing.items, anatomy, strict=True):
        assert np.array_equal(image_of(pickle.loads(pickle.dumps(item))), shown(expected, -600, 1500))
    assert listing.items[1].blob.name.endswith("many.dcm, frame 2")
    assert sum(item.blob.size for item in listing.items) <= (tmp_path / "many.dcm").stat().st_size


def group(**sequences):
    ds = Dataset()
    for name, fields in sequences.items():
        inner = Dataset()
        for keyword, value in fields.items():
            setattr(inner, keyword, value)
        setattr(ds, name, [inner])
    return ds


def enhanced(anatomy, orientations, kinds):
    """CT as scanners write it today: all that differs by frame stands in functional groups."""
    ds = dicom(anatomy, RescaleSlope=None, RescaleIntercept=None, ImageOrientationPatient=None)
    ds.SharedFunctionalGroupsSequence = [
        group(PixelValueTransformationSequence={"RescaleSlope": 2, "RescaleIntercept": -5, "RescaleType": "HU"})
    ]
    ds.PerFrameFunctionalGroupsSequence = [
        group(
            PlaneOrientationSequence={"ImageOrientationPatient": orientation},
            CTImageFrameTypeSequence={"FrameType": ["ORIGINAL", "PRIMARY", kind, "NONE"]},
        )
        for orientation, kind in zip(orientations, kinds, strict=True)
    ]
    return ds


def test_functional_groups_of_enhanced_ct_are_obeyed(tmp_path):
    anatomy = body(low=-700, high=100)
    orientations = ([1, 0, 0, 0, 1, 0], [-1, 0, 0, 0, 1, 0], [1, 0, 0, 0, -1, 0])
    saved(tmp_path / "e.dcm", enhanced(anatomy, orientations, ["VOLUME"] * 3))
    expected = (anatomy[0], anatomy[1][:, ::-1], anatomy[2][::-1])
    for item, values in zip(listed(tmp_path).items, expected, strict=True):
        assert np.array_equal(image_of(item), shown(values * 2.0 - 5, -600, 1500))
    saved(tmp_path / "scout.dcm", enhanced(anatomy, orientations, ["VOLUME", "LOCALIZER", "VOLUME"]))
    listing = listed(tmp_path)
    assert len(listing.items) == 3 and "1 files are localizers (scout views) and were left out: scout.dcm" in (
        listing.notes
    )


LEFT_OUT = {
    "are not axial": dicom(body()[0], ImageOrientationPatient=[1, 0, 0, 0, 0, -1]),
    "not axial (sagittal": dicom(body()[0], ImageOrientationPatient=[0, 1, 0, 0, 0, -1]),
    "are localizers": dicom(body()[0], ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER ", "A"]),
    "localizers (scout": dicom(body()[0], ImageType="LOCALIZER"),
    "no rescale slope": dicom(body()[0], RescaleSlope=None),
    "in units of MGML": dicom(body()[0], RescaleType="MGML"),
    "do not say how they lie": dicom(body()[0], ImageOrientationPatient=None),
    "ImageOrientationPatient that is none": dicom(body()[0], ImageOrientationPatient=[1, 0, 0, 1, 0, 0]),
    "modality MR": dicom(body()[0], Modality="MR"),
    "have RGB pixels": dicom(body()[0], PhotometricInterpretation="RGB", SamplesPerPixel=3),
    "have PALETTE COLOR pixels": dicom(body()[0], PhotometricInterpretation="PALETTE COLOR"),
    "have 32 bits": dicom(body()[0].astype(np.int32)),
    "hold no image": dicom(body()[0], Rows=None),
    "raw detector data": radiograph(body()[0], PresentationIntentType="FOR PROCESSING"),
    "lateral views": radiograph(body()[0], ViewPosition="LL"),
    "are lateral": radiograph(body()[0], PatientOrientation=["P", "F"]),
}


@pytest.mark.parametrize("reason", LEFT_OUT)
def test_what_cannot_be_shown_rightly_is_left_out_with_a_note(tmp_path, reason):
    saved(tmp_path / "odd.dcm", LEFT_OUT[reason])
    with pytest.raises(MstlError, match="nothing that can be used") as refused:
        listed(tmp_path)
    assert reason in refused.value.why and "odd.dcm" in refused.value.why
    saved(tmp_path / "good", dicom(body()[0]))
    listing = listed(tmp_path)
    assert [item.origin for item in listing.items] == ["good"]
    [note] = [note for note in listing.notes if reason in note]
    assert note.startswith("1 files ") and note.endswith("and were left out: odd.dcm")


def test_other_files_are_left_out(tmp_path):
    saved(tmp_path / "IM0001", dicom(body()[0]))
    put(tmp_path / "fake.dcm", b"x" * 500)
    put(tmp_path / "short.dcm", b"x")
    put(tmp_path / "broken.dcm", bytes(128) + b"DICM" + b"\x02\x00\x00\x00UL\x04\x00")
    listing = listed(tmp_path)
    assert [item.origin for item in listing.items] == ["IM0001"]
    assert "2 files are no DICOM files and were left out: fake.dcm, short.dcm" in listing.notes
    assert any("broken.dcm" in note for note in listing.notes)


# Patients, classes, kinds


def test_only_a_pseudonym_of_the_patient_goes_on(tmp_path):
    for at, patient in enumerate((" ID-7 ", "ID-7", "ID-8", "")):
        saved(tmp_path / f"{'ab'[at % 2]}/{at}.dcm", dicom(body(at)[0], PatientID=patient))
    listing = listed(tmp_path)
    known = hashlib.sha256(b"ID-7").hexdigest()[:16]
    other = hashlib.sha256(b"ID-8").hexdigest()[:16]
    assert {item.origin: item.patient for item in listing.items} == {
        "a/0.dcm": known, "b/1.dcm": known, "a/2.dcm": other, "b/3.dcm": None,
    }  # fmt: skip
    assert "1 of 4 files have no PatientID, so their patient is unknown" in listing.notes
    for item in listing.items:
        png = Image.open(io.BytesIO(item.blob.read()))
        assert not png.info and b"DOE" not in item.blob.read()
    assert listing.classes == ("a", "b") and listing.modality == "ct" and listing.carve_val


def test_one_word_over_all_patient_ids_is_told(tmp_path):
    for at in range(3):
        saved(tmp_path / f"{at}.dcm", dicom(body(at)[0], PatientID="ANON", StudyInstanceUID=f"1.2.{at}"))
    assert any("all 3 studies carry the same PatientID" in note for note in listed(tmp_path).notes)


def test_a_table_names_series_and_patients(tmp_path):
    for at in range(4):
        saved(tmp_path / f"s{at // 2}/{at}.dcm", dicom(body(at)[0]))
    table = put(tmp_path / "t.csv", b"path,label,patient,split\ns0,well,p1,train\ns1,sick,,val\n")
    listing = listed(tmp_path, labels=table)
    assert listing.classes == ("sick", "well")
    assert [(item.origin, item.split, item.label, item.patient) for item in listing.items] == [
        ("s0/0.dcm", "train", 1, "p1"), ("s0/1.dcm", "train", 1, "p1"),
        ("s1/2.dcm", "val", 0, source.pseudonym("ID-1")), ("s1/3.dcm", "val", 0, source.pseudonym("ID-1")),
    ]  # fmt: skip


def test_ct_and_radiographs_are_not_mixed(tmp_path):
    saved(tmp_path / "ct.dcm", dicom(body()[0]))
    saved(tmp_path / "dx.dcm", radiograph(body()[0]))
    with pytest.raises(MstlError, match=r"1 CT and 1 radiography files.*--modality"):
        listed(tmp_path)
    for modality, name in (("ct", "ct.dcm"), ("cxr", "dx.dcm")):
        listing = listed(tmp_path, modality=modality)
        assert listing.modality == modality and [item.origin for item in listing.items] == [name]
        assert any("1 files are not" in note for note in listing.notes)
    with pytest.raises(MstlError, match="nothing that can be used"):
        listed(tmp_path, modality="natural")


def test_many_headers_are_read_by_processes_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "_FEW", 3)
    monkeypatch.setattr(source, "_CHUNK", 2)
    for at in range(5):
        saved(tmp_path / f"{at}.dcm", dicom(body()[0], PatientID=f"{at}"))
    assert [item.patient for item in listed(tmp_path).items] == [source.pseudonym(f"{at}") for at in range(5)]


def test_a_missing_library_is_named_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name, module in (("dicom", "pydicom"), ("nifti", "nibabel")):
        with pytest.raises(MstlError, match=rf"needs {module}.*pip install 'mstl\[medical\]'"):
            read_source(name, tmp_path)


def deflated(ds):
    ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    return ds


def test_deflated_files_are_the_same(tmp_path):
    anatomy = body()
    saved(tmp_path / "many.dcm", deflated(dicom(anatomy)))
    assert b"ORIGINAL" not in (tmp_path / "many.dcm").read_bytes()
    items = listed(tmp_path).items
    assert len(items) == 3 and items[0].patient == source.pseudonym("ID-1")
    for item, expected in zip(items, anatomy, strict=True):
        assert np.array_equal(image_of(item), shown(expected, -600, 1500))


def test_deflated_bombs_and_cut_files_are_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(dicom_file, "MAX_BYTES", 20_000)
    saved(tmp_path / "bomb.dcm", deflated(dicom(np.zeros((100, 120), np.int16))))
    path = saved(tmp_path / "cut.dcm", deflated(dicom(body()[0])))
    path.write_bytes(path.read_bytes()[:-40])
    saved(tmp_path / "good.dcm", deflated(dicom(body()[0])))
    assert (tmp_path / "bomb.dcm").stat().st_size < 1500
    inflated = []
    real = zlib.decompress
    monkeypatch.setattr(zlib, "decompress", lambda *args, **options: inflated.append(args) or real(*args, **options))
    listing = listed(tmp_path)
    assert [item.origin for item in listing.items] == ["good.dcm"] and not inflated
    assert "2 files have a damaged header and were left out: bomb.dcm, cut.dcm" in listing.notes


def test_headers_that_promise_too_much_are_left_out_before_any_pixel_is_read(tmp_path):
    saved(tmp_path / "large.dcm", dicom(body()[0], Rows=65_000, Columns=65_000))
    saved(tmp_path / "frames.dcm", dicom(body()[0], NumberOfFrames=2_000_000_000))
    saved(tmp_path / "minus.dcm", dicom(body()[0], NumberOfFrames=-3))
    saved(tmp_path / "good.dcm", dicom(body()[0]))
    listing = listed(tmp_path)
    assert [item.origin for item in listing.items] == ["good.dcm"]
    assert {note for note in listing.notes if "left out" in note} == {
        f"1 files {TOO_LARGE} and were left out: large.dcm",
        "2 files say that they have no frames, or more than bytes and were left out: frames.dcm, minus.dcm",
    }


def test_the_largest_slice_is_one_pillow_reads(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 35)
    assert not is_too_large(5, 7) and is_too_large(6, 6)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert not is_too_large(10**5, 10**5)
