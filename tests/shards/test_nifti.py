"""NIfTI volumes made in code: however they are stored, the same slices come out, before and after unpacking."""

import gzip
import io
import itertools
import os
import pickle
import struct
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import nibabel
import numpy as np
import pytest
from PIL import Image
from raw_data import put
from scans import body, nifti, shown

from shards.errors import MstlError
from shards.progress import QUIET
from shards.sources import Blob, SourceOptions, nifti_unpack, read_source
from shards.sources.nifti_slice import NiftiSlice
from shards.sources.slices import TOO_LARGE


def listed(root, **options):
    return read_source("nifti", root, SourceOptions(**options))


def image_of(item):
    return np.asarray(Image.open(io.BytesIO(item.blob.read())))


def unpacked(listing, folder, workers=1):
    return listing.unpack(folder, workers, QUIET)


ORDERS = ["LPH", "RAH", "RPH", "LAF", "PHL", "HLA", "AFR", "FRP"]  # RAH: what nibabel calls RAS+; PHL: sagittal


@pytest.mark.parametrize("letters", ORDERS)
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_slices_are_turned_however_a_volume_is_stored(tmp_path, letters, ending):
    anatomy = body()
    nifti(tmp_path / f"p1{ending}", anatomy, letters)
    listing = listed(tmp_path)
    assert [(item.key, item.origin) for item in listing.items] == [
        (f"p1-000{i}", f"p1{ending}/slice-000{i}") for i in (1, 2, 3)
    ]
    for item, expected in zip(listing.items, anatomy, strict=True):
        assert np.array_equal(image_of(pickle.loads(pickle.dumps(item))), shown(expected, -600, 1500))
        assert item.blob.size == expected.nbytes
    assert (listing.unpack is None) == (ending == ".nii")


@pytest.mark.parametrize("seed", range(4))
def test_oblique_volumes_lie_as_nibabel_says(tmp_path, seed):
    rng = np.random.default_rng(seed)
    letters = "".join(rng.permutation([rng.choice(list(pair)) for pair in ("LR", "AP", "HF")]))
    path = nifti(tmp_path / "v.nii", body(seed), letters)
    turn, _ = np.linalg.qr(np.eye(3) + 0.15 * rng.standard_normal((3, 3)))
    turn *= np.sign(np.diag(turn))  # a small turn, not a mirror
    image = nibabel.load(path)
    affine = image.affine.copy()
    affine[:3, :3] = turn @ affine[:3, :3]
    nibabel.save(nibabel.Nifti1Image(np.array(image.get_fdata(), np.int16), affine), path)
    canonical = np.asarray(nibabel.as_closest_canonical(nibabel.load(path)).dataobj)  # to the right, front and head
    items = listed(tmp_path).items
    assert len(items) == canonical.shape[2]
    for height, item in enumerate(items):
        assert np.array_equal(image_of(item), shown(canonical[::-1, ::-1, height].T, -600, 1500))


def test_slope_intercept_window_and_bits(tmp_path):
    anatomy = body(low=-700, high=700)
    nifti(tmp_path / "v.nii", anatomy, slope=1.5, inter=-24)
    for bits in (8, 16):
        for at, item in enumerate(listed(tmp_path, window="40,400", bits=bits).items):
            assert np.array_equal(image_of(item), shown(anatomy[at] * 1.5 - 24, 40, 400, bits))


def test_patients_are_volumes_unless_a_table_tells(tmp_path):
    for name in ("a/p1.nii.gz", "b/p2.nii", "b/p.3.nii"):
        nifti(tmp_path / name, body(heads=2))
    listing = listed(tmp_path)
    assert listing.classes == ("a", "b") and listing.modality == "ct" and listing.carve_val
    assert {(item.origin.split("/")[1], item.label, item.patient) for item in listing.items} == {
        ("p1.nii.gz", 0, "p1"), ("p2.nii", 1, "p2"), ("p.3.nii", 1, "p.3")
    }  # fmt: skip
    table = put(
        tmp_path / "t.csv", b"path,label,patient,split\na/p1.nii.gz,x,q,train\nb/p2.nii,x,q,train\nb/p.3.nii,y,,val\n"
    )
    listing = listed(tmp_path, labels=table)
    assert {(item.origin.split("/")[1], item.label, item.patient, item.split) for item in listing.items} == {
        ("p1.nii.gz", 0, "q", "train"), ("p2.nii", 0, "q", "train"), ("p.3.nii", 1, "p.3", "val")
    }  # fmt: skip


def test_volumes_of_the_same_name_are_told(tmp_path):
    for name in ("a/v.nii", "b/v.nii"):
        nifti(tmp_path / name, body(heads=1))
    assert any(note.startswith("1 names are those of several volumes") for note in listed(tmp_path).notes)


def odd_volume(path, data, affine=None, coded=True):
    image = nibabel.Nifti1Image(data, np.eye(4) if affine is None else affine)
    if not coded:
        image.header["sform_code"] = image.header["qform_code"] = 0
        image = nibabel.Nifti1Image(data, None, image.header)
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)


TILT = np.array([[1, 0, 0, 0], [0, 0.7071, -0.7071, 0], [0, 0.7071, 0.7071, 0], [0, 0, 0, 1]])
RGB = np.zeros((2, 3, 4), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
ODD = {
    "have not three dimensions": {"data": np.zeros((2, 3, 4, 5), np.int16)},
    "not three dimensions": {"data": np.zeros((2, 3), np.int16)},
    "are in colour or complex": {"data": RGB},
    "in colour or complex": {"data": np.zeros((2, 3, 4), np.complex64)},
    "sform and qform are unset": {"data": np.zeros((2, 3, 4), np.int16), "coded": False},
    "oblique by 40°": {"data": np.zeros((2, 3, 4), np.int16), "affine": TILT},
}


@pytest.mark.parametrize("reason", ODD)
def test_what_cannot_be_shown_rightly_is_left_out_with_a_note(tmp_path, reason):
    odd_volume(tmp_path / "odd.nii", **ODD[reason])
    put(tmp_path / "read.me", b"x")
    put(tmp_path / "damaged.nii.gz", gzip.compress(b"no volume" * 100))
    with pytest.raises(MstlError, match="nothing that can be used") as refused:
        listed(tmp_path)
    assert reason in refused.value.why
    nifti(tmp_path / "good.nii", body())
    listing = listed(tmp_path)
    assert {item.patient for item in listing.items} == {"good"}
    assert any(reason in note and note.endswith("left out: odd.nii") for note in listing.notes)
    assert "1 files are no NIfTI volumes and were left out: read.me" in listing.notes
    assert "1 files have a damaged header and were left out: damaged.nii.gz" in listing.notes


def test_a_fourth_dimension_of_one_is_none(tmp_path):
    anatomy = body()
    path = nifti(tmp_path / "v.nii", anatomy)
    image = nibabel.load(path)
    odd_volume(path, np.array(image.get_fdata(), np.int16)[..., None], image.affine)
    items = listed(tmp_path).items
    assert len(items) == 3 and np.array_equal(image_of(items[1]), shown(anatomy[1], -600, 1500))


def test_only_ct_is_listed(tmp_path):
    with pytest.raises(MstlError, match="--modality cxr"):
        listed(tmp_path, modality="cxr")


# Unpacking


def packed_set(root):
    """Two compressed volumes and a plain one between them."""
    for at, name in enumerate(("a/p1.nii.gz", "a/p2.nii", "b/p3.nii.gz")):
        nifti(root / name, body(at), ORDERS[at])
    return listed(root)


@pytest.mark.parametrize("workers", [1, 2])
def test_unpacked_slices_are_plain_files_with_the_same_images(tmp_path, workers):
    listing = packed_set(tmp_path / "raw")
    items = unpacked(listing, tmp_path / "work", workers)
    assert [replace(item, blob=None) for item in items] == [replace(item, blob=None) for item in listing.items]
    for before, after in zip(listing.items, items, strict=True):
        packed = ".nii.gz/" in before.origin
        assert isinstance(after.blob, Blob if packed else NiftiSlice)
        assert after.blob.read() == before.blob.read()
    assert sorted(path.suffix for path in (tmp_path / "work").rglob("[!.]*.*")) == [".json"] * 2 + [".png"] * 6


def test_unpacking_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    listing = packed_set(tmp_path / "raw")
    real, calls = NiftiSlice.read, itertools.count()

    def stop(self):
        if next(calls) == 4:  # in the middle of the second volume
            raise KeyboardInterrupt
        return real(self)

    monkeypatch.setattr(NiftiSlice, "read", stop)
    with pytest.raises(KeyboardInterrupt):
        unpacked(listing, tmp_path / "work")
    monkeypatch.setattr(NiftiSlice, "read", real)
    [done] = [path for path in (tmp_path / "work").iterdir() if not path.name.startswith(".")]
    before = {path: path.stat().st_mtime_ns for path in done.iterdir()}
    items = unpacked(listing, tmp_path / "work")
    assert {path: path.stat().st_mtime_ns for path in done.iterdir()} == before
    assert [item.blob.read() for item in items] == [item.blob.read() for item in listing.items]
    assert not list((tmp_path / "work").glob(".*.tmp"))


def test_calls_that_share_a_folder_share_the_work(tmp_path, monkeypatch):
    listing = packed_set(tmp_path / "raw")
    written = []
    real = nifti_unpack._write_folder
    monkeypatch.setattr(nifti_unpack, "_write_folder", lambda job, target: written.append(target) or real(job, target))
    with ThreadPoolExecutor(3) as pool:
        several = list(pool.map(lambda _: unpacked(listing, tmp_path / "work"), range(3)))
    assert several[0] == several[1] == several[2] and len(written) == len(set(written)) == 2
    assert not list((tmp_path / "work").glob(".*.tmp"))


def test_another_window_or_volume_is_unpacked_anew(tmp_path):
    listing = packed_set(tmp_path / "raw")
    first = unpacked(listing, tmp_path / "work")
    other = unpacked(listed(tmp_path / "raw", window="mediastinum"), tmp_path / "work")
    assert first[0].blob.read() != other[0].blob.read()
    deep = unpacked(listed(tmp_path / "raw", bits=16), tmp_path / "work")
    assert image_of(deep[0]).dtype == np.uint16
    nifti(tmp_path / "raw/a/p1.nii.gz", body(9))
    changed = unpacked(listed(tmp_path / "raw"), tmp_path / "work")
    assert np.array_equal(image_of(changed[0]), shown(body(9)[0], -600, 1500))


def test_a_damaged_volume_costs_its_own_slices_only(tmp_path):
    listing = packed_set(tmp_path / "raw")
    path = tmp_path / "raw/a/p1.nii.gz"
    path.write_bytes(path.read_bytes()[:-60])
    items = unpacked(listing, tmp_path / "work")
    for item in items:
        if "p1" in item.origin:
            with pytest.raises(OSError, match="the volume cannot be unpacked"):
                item.blob.read()
            assert "p1.nii.gz, slice" in item.blob.name and item.blob.size == 70
        else:
            assert item.blob.read()
    assert not list((tmp_path / "work").rglob("*volume.nii"))


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_slices_with_values_that_are_not_finite_are_refused(tmp_path, ending):
    anatomy = body().astype(np.float32)
    anatomy[1, 2, 3] = np.nan
    nifti(tmp_path / f"raw/v{ending}", anatomy)
    listing = listed(tmp_path / "raw")
    for _ in range(2):  # the second time from what the first has unpacked
        items = listing.items if listing.unpack is None else unpacked(listing, tmp_path / "work")
        with pytest.raises(OSError, match="not finite"):
            items[1].blob.read()
        for at in (0, 2):
            assert np.array_equal(image_of(items[at]), shown(anatomy[at], -600, 1500))


def test_a_folder_that_cannot_be_written_is_told_and_a_volume_that_is_gone(tmp_path):
    listing = packed_set(tmp_path / "raw")
    put(tmp_path / "work", b"a file")
    with pytest.raises(MstlError, match=r"unpacking volumes into .*work.*finished volumes are kept"):
        unpacked(listing, tmp_path / "work")
    (tmp_path / "work").unlink()
    (tmp_path / "raw/b/p3.nii.gz").unlink()
    items = unpacked(listing, tmp_path / "work")
    with pytest.raises(OSError, match=r"the volume cannot be unpacked .*p3\.nii\.gz"):
        items[-1].blob.read()


def test_a_volume_is_unpacked_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(nifti_unpack, "_PIECE_BYTES", 100)
    nifti(tmp_path / "raw/v.nii.gz", body())
    items = unpacked(listed(tmp_path / "raw"), tmp_path / "work")
    assert [image_of(item).tolist() for item in items] == [shown(part, -600, 1500).tolist() for part in body()]


# Volumes that promise too much, or too little


def with_header(path, *, extension=0, **fields):
    """Change fields of a volume's header alone, so that its data are not what it says."""
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    header = nibabel.Nifti1Header(data[:348])
    for name, value in fields.items():
        header[name] = value
    rest = data[352:]
    if extension:  # NIfTI-1: four bytes, the first 1; then size, code and content
        rest = struct.pack("<ii", extension, 6) + bytes(extension - 8) + rest
    data = header.binaryblock + bytes([extension > 0, 0, 0, 0]) + rest
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def test_what_cannot_be_or_should_not_be_is_left_out_at_listing(tmp_path):
    nifti(tmp_path / "good.nii.gz", body())
    with_header(nifti(tmp_path / "short.nii", body()), dim=[3, 7, 5, 4, 1, 1, 1, 1])
    with_header(nifti(tmp_path / "thin.nii.gz", body()), dim=[3, 7, 5, 32_000, 1, 1, 1, 1])
    with_header(nifti(tmp_path / "wide.nii.gz", body()), dim=[3, 10_000, 10_000, 3, 1, 1, 1, 1])
    with_header(nifti(tmp_path / "minus.nii", body()), dim=[3, 7, -5, 3, 1, 1, 1, 1])
    with_header(nifti(tmp_path / "before.nii.gz", body()), extension=2**25, vox_offset=352 + 2**25)
    listing = listed(tmp_path)
    assert {item.patient for item in listing.items} == {"good"}
    assert {note for note in listing.notes if "left out" in note} == {
        "2 files are shorter than their header says and were left out: short.nii, thin.nii.gz",
        f"1 files {TOO_LARGE} and were left out: wide.nii.gz",
        "1 files have not three dimensions and were left out: minus.nii",
        "1 files say that there are more than 16,777,216 bytes before their data and were left out: before.nii.gz",
    }


def test_a_volume_that_the_system_cannot_read_is_not_left_out(tmp_path):
    nifti(tmp_path / "good.nii", body())
    (tmp_path / "gone.nii.gz").symlink_to(tmp_path / "elsewhere.nii.gz")
    with pytest.raises(MstlError, match=r"source nifti in .*: it cannot be read .*gone\.nii\.gz"):
        listed(tmp_path)


def test_extensions_of_a_header_do_no_harm(tmp_path):
    with_header(nifti(tmp_path / "v.nii.gz", body()), extension=2**12, vox_offset=352 + 2**12)
    items = unpacked(listed(tmp_path), tmp_path / "work")
    assert [image_of(item).tolist() for item in items] == [shown(part, -600, 1500).tolist() for part in body()]


@pytest.mark.parametrize(("behind", "fits"), [(0, True), (1, False)])
def test_unpacking_stops_behind_what_the_header_declares(tmp_path, monkeypatch, behind, fits):
    monkeypatch.setattr(nifti_unpack, "_PIECE_BYTES", 64)
    monkeypatch.setattr(nifti_unpack, "_MOST_BEHIND_BYTES", 100)
    path = nifti(tmp_path / "raw/v.nii.gz", body())
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + bytes(100 + behind)))
    items = unpacked(listed(tmp_path / "raw"), tmp_path / "work")
    if fits:
        assert np.array_equal(image_of(items[2]), shown(body()[2], -600, 1500))
    else:
        for item in items:
            with pytest.raises(OSError, match="it unpacks to more than its header declares"):
                item.blob.read()
    assert not list((tmp_path / "work").glob(".*.tmp"))


def test_a_bomb_takes_no_room(tmp_path, monkeypatch):
    path = nifti(tmp_path / "raw/v.nii.gz", body())
    with gzip.open(path, "ab") as file:
        file.write(bytes(2**26))
    [first, *_] = nifti_unpack._jobs(listed(tmp_path / "raw").items, tmp_path)
    written = [len(piece) for piece in nifti_unpack._pieces(path) if isinstance(piece, bytes)]
    assert first.slices[0].path == str(path) and sum(written) <= 2**20 + 352 + 3 * 70


def test_stamps_of_slices_are_those_of_their_volume(tmp_path):
    listing = packed_set(tmp_path / "raw")
    os.utime(tmp_path / "raw/a/p1.nii.gz", ns=(5, 1_234_567_890_000_000_000))
    for folder in ("work", "again"):
        items = unpacked(listing, tmp_path / folder)
        assert [item.blob.stamp() for item in items] == [item.blob.stamp() for item in listing.items]
    assert items[0].blob.stamp() == 1_234_567_890_000_000_000
    path = tmp_path / "raw/b/p3.nii.gz"
    path.write_bytes(path.read_bytes()[:-60])
    items = unpacked(listing, tmp_path / "work")
    assert items[-1].blob.stamp() == path.stat().st_mtime_ns
    path.unlink()
    with pytest.raises(FileNotFoundError):
        items[-1].blob.stamp()
