"""Sources: raw layouts are listed as they are, and a wrong one is refused with what was expected."""

import os
import pickle
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from raw_data import encoded, listing_of, put, zip_of

from shards.errors import MstlError
from shards.sample import MARK_NAME
from shards.sources import SOURCES, Blob, read_source
from shards.sources.dicom_frame import DicomFrame
from shards.sources.listing import make_listing
from shards.sources.nifti_slice import NiftiSlice
from shards.sources.slices import WINDOWS


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_blobs_read_files_zip_members_and_spans(tmp_path, compression):
    data = encoded(1)
    file = put(tmp_path / "a.png", data)
    archive = put(tmp_path / "a.zip", zip_of({"x/a.png": data, "b": b"other"}, compression))
    span = put(tmp_path / "a.tar", b"before" + data + b"after")
    blobs = [
        Blob(str(file), len(data)),
        Blob(str(archive), len(data), "x/a.png"),
        Blob(str(span), len(data), "a.png", 6),
    ]
    for blob in blobs:
        assert pickle.loads(pickle.dumps(blob)).read() == data
    assert [Path(blob.name).name for blob in blobs] == ["a.png", "a.png", "a.png"]


def test_blobs_that_cannot_be_read_in_full_raise_oserror(tmp_path):
    data = encoded(1)
    good = zip_of({"a.png": data}, zipfile.ZIP_STORED)
    archive = put(tmp_path / "bad.zip", good.replace(data[40:60], bytes(20)))
    whole = put(tmp_path / "whole.zip", good)
    for blob in (
        Blob(str(put(tmp_path / "short.png", data[:-1])), len(data)),
        Blob(str(put(tmp_path / "grown.png", data + b"x")), len(data)),
        Blob(str(put(tmp_path / "short.tar", data[:-1])), len(data), "a", 0),
        Blob(str(archive), len(data), "a.png"),
        Blob(str(whole), len(data), "b.png"),
        Blob(str(put(tmp_path / "no.zip", b"no zip")), 3, "a.png"),
        Blob(str(tmp_path / "gone.png"), 3),
    ):
        with pytest.raises(OSError):
            blob.read()


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_every_damaged_byte_of_a_zip_member_raises_oserror_or_is_harmless(tmp_path, compression):
    data = b"some text that packs well, " * 9
    good = zip_of({"\u00e4.png": data}, compression)
    for at in range(good.index(b"PK\1\2")):  # the member itself: its header, name and data
        path = put(tmp_path / f"{at}.zip", good[:at] + bytes([good[at] ^ 0xFF]) + good[at + 1 :])
        try:
            assert Blob(str(path), len(data), "\u00e4.png").read() == data
        except OSError:
            continue


def test_what_is_larger_than_any_image_is_not_read(tmp_path):
    path = put(tmp_path / "bomb.zip", zip_of({"a.png": b"x"}))
    with (tmp_path / "sparse.png").open("wb") as file:
        file.truncate(2**30 + 1)
    for blob in (
        Blob(str(path), 2**30 + 1, "a.png"),
        Blob(str(tmp_path / "sparse.png"), 2**30 + 1),
        Blob(str(tmp_path / "sparse.png"), 2**30 + 1, "a.png", 0),
    ):
        with pytest.raises(OSError, match="it has 1,073,741,825 bytes, no image should"):
            blob.read()


def test_a_replaced_zip_is_opened_anew(tmp_path):
    path = put(tmp_path / "a.zip", zip_of({"a": b"old"}))
    assert Blob(str(path), 3, "a").read() == b"old"
    path.write_bytes(zip_of({"first": b"some more", "a": b"new"}))
    assert Blob(str(path), 3, "a").read() == b"new"


# Folder


def test_folder_of_classes_is_one_training_set(tmp_path):
    for name in ("cat/a.png", "cat/b.JPG", "dog/a.png", "dog/notes.txt", ".hidden/a.png"):
        put(tmp_path / name, b"x")
    listing = read_source("folder", tmp_path)
    assert listing.classes == ("cat", "dog") and listing.carve_val
    assert [(i.origin, i.split, i.label) for i in listing.items] == [
        ("cat/a.png", "train", 0), ("cat/b.JPG", "train", 0), ("dog/a.png", "train", 1)
    ]  # fmt: skip
    assert any("1 files or folders" in note for note in listing.notes)


def test_folder_with_splits_keeps_them(tmp_path):
    for name in ("train/b/1.png", "train/a/1.png", "val/b/2.png", "test/a/3.png", "old/a/4.png"):
        put(tmp_path / name, b"x")
    listing = read_source("folder", tmp_path)
    assert listing.classes == ("a", "b") and not listing.carve_val
    assert {(i.origin, i.split, i.label) for i in listing.items} == {
        ("train/b/1.png", "train", 1), ("train/a/1.png", "train", 0), ("val/b/2.png", "val", 1),
        ("test/a/3.png", "test", 0),
    }  # fmt: skip
    assert any("left out: old" in note for note in listing.notes)


def test_folder_refuses_a_class_train_does_not_have(tmp_path):
    for name in ("train/a/1.png", "test/z/3.png"):
        put(tmp_path / name, b"x")
    with pytest.raises(MstlError, match="train does not have z"):
        read_source("folder", tmp_path)


# Any source


def test_unknown_source_names_the_known_ones(tmp_path):
    with pytest.raises(MstlError, match="imagenet, covidx, covid19-ct, folder"):
        read_source("covid", tmp_path)


@pytest.mark.parametrize("name", SOURCES)
def test_missing_and_empty_roots_show_the_layout(tmp_path, name):
    with pytest.raises(MstlError, match="no such folder") as missing:
        read_source(name, tmp_path / "gone")
    assert "expected there: " in missing.value.remedy
    with pytest.raises(MstlError, match="empty"):
        read_source(name, tmp_path)
    put(tmp_path / "file.txt", b"x")
    with pytest.raises(MstlError):
        read_source(name, tmp_path)
    with pytest.raises(MstlError, match="not a folder"):
        read_source(name, tmp_path / "file.txt")


def test_digest_sees_content_and_not_order(tmp_path):
    listing = listing_of(tmp_path, {f"train/{i % 2}/{i}.png": b"x" * (i + 1) for i in range(5)})
    assert replace(listing, items=listing.items[::-1]).digest == listing.digest
    for change in ({"label": 1}, {"split": "val"}, {"patient": "p"}, {"key": "k"}, {"blob": Blob("x", 99)}):
        assert (
            replace(listing, items=(replace(listing.items[0], **change), *listing.items[1:])).digest != listing.digest
        )
    assert replace(listing, classes=("yes", "no")).digest != listing.digest


def test_patients_in_more_than_one_split_are_told(tmp_path):
    images = {
        f"{name}.png": encoded(i)
        for i, name in enumerate(
            ("train/0/a@p2", "val/1/b@p2", "train/1/c@p1", "test/1/d@p1", "test/0/e@p3", "val/0/f")
        )
    }
    items = listing_of(tmp_path / "raw", images).items
    made = make_listing(source="s", root=tmp_path, layout="", modality="ct", classes=("no", "yes"), items=items)
    [note] = made.notes
    assert note.startswith("2 patients stand in more than one split (first: p1 in train and test)")
    apart = [item for item in items if item.patient == "p3" or item.split == "train"]
    made = make_listing(source="s", root=tmp_path, layout="", modality="ct", classes=("no", "yes"), items=apart)
    assert made.notes == ()


def listing_with(tmp_path, images, **changes):
    items = listing_of(tmp_path, images).items
    return make_listing(
        source="s", root=tmp_path, layout="", modality="ct", classes=("no", "yes"), items=items, **changes
    )


def test_counts_that_are_not_the_published_ones_are_mismatches(tmp_path):
    images = {f"train/{i % 2}/{i}.png": b"x" for i in range(4)} | {"val/0/v.png": b"x"}
    made = listing_with(tmp_path, images, expected={"train": 4, "val": 1500, "test": 7})
    assert made.mismatches == (
        "val has 1 images, the published split has 1,500", "test has 0 images, the published split has 7"
    )  # fmt: skip
    assert made.notes == ()
    assert listing_with(tmp_path, images, expected={"train": 4, "val": 1}).mismatches == ()


def test_an_absent_split_is_told_once_and_strictly_where_it_was_expected(tmp_path):
    images = {f"train/{i}/{i}.png": b"x" for i in range(2)}
    absent = {"test": "there is no list", "train": "no word of this, for there are images"}
    told = "there is no list, so the shard set gets no test split"
    made = listing_with(tmp_path, images, absent=absent)
    assert (made.notes, made.mismatches) == ((told,), ())
    made = listing_with(tmp_path, images, absent=absent, expected={"train": 2, "test": 7})
    assert (made.notes, made.mismatches) == ((), (f"{told}; the published one has 7 images",))
    put(tmp_path / MARK_NAME, b"")  # generated data: no published counts apply
    made = listing_with(tmp_path, images, absent=absent, expected={"train": 2, "test": 7})
    assert (made.source, made.notes, made.mismatches) == ("s (sample)", (told,), ())


def test_a_folder_without_val_says_how_to_keep_patients_apart(tmp_path):
    put(tmp_path / "cat/a.png", encoded(1))
    [note] = read_source("folder", tmp_path).notes
    assert "no val part" in note and "make train/ and val/ folders" in note and "patient by patient" in note


@pytest.mark.parametrize(
    ("change", "what"), [({"patient": "p\0q"}, "patient"), ({"origin": "train/0/a\nb.png"}, "path")]
)
def test_unprintable_names_are_refused_whatever_the_source(tmp_path, change, what):
    [item] = listing_of(tmp_path, {"train/0/a.png": b"x"}).items
    made = {"source": "s", "root": tmp_path, "layout": "", "modality": "ct"}
    with pytest.raises(MstlError, match=f"its {what} ") as refused:
        make_listing(**made, classes=("no",), items=[replace(item, **change)])
    assert str(refused.value).isprintable()
    with pytest.raises(MstlError, match="its class "):
        make_listing(**made, classes=("n\x1bo",), items=[item])
    undecodable = replace(item, origin="train/0/\udcff.png")  # a file name of bytes that are not UTF-8
    assert make_listing(**made, classes=("no",), items=[undecodable]).items == (undecodable,)


def test_a_stamp_changes_when_the_file_is_written_again_and_is_in_no_digest(tmp_path):
    listing = listing_of(tmp_path, {"train/0/a.png": b"x"})
    archive = put(tmp_path / "a.zip", zip_of({"a.png": b"x"}))
    for blob, path in (
        (listing.items[0].blob, tmp_path / "train/0/a.png"), (Blob(str(archive), 1, "a.png"), archive),
        (DicomFrame(str(archive), 0, 1, "ct", None, 8), archive),
        (NiftiSlice(str(archive), 0, 1, WINDOWS["lung"], 8), archive),
    ):  # fmt: skip
        digest = replace(listing).digest
        os.utime(path, ns=(5, 1_234_567_890_123_456_789))
        assert blob.stamp() == 1_234_567_890_123_456_789
        os.utime(path, ns=(5, 1_234_567_890_123_456_790))
        assert blob.stamp() == 1_234_567_890_123_456_790
        assert replace(listing).digest == digest
    archive.unlink()
    with pytest.raises(FileNotFoundError):
        blob.stamp()
