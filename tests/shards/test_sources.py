"""Sources: raw layouts are listed as they are, and a wrong one is refused with what was expected."""

import pickle
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from raw_data import encoded, listing_of, put, tar_of, zip_of

from shards.errors import MstlError
from shards.sources import SOURCES, Blob, read_source
from shards.sources.listing import make_listing


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
        Blob(str(put(tmp_path / "short.tar", data[:-1])), len(data), "a", 0),
        Blob(str(archive), len(data), "a.png"),
        Blob(str(whole), len(data), "b.png"),
        Blob(str(put(tmp_path / "no.zip", b"no zip")), 3, "a.png"),
        Blob(str(tmp_path / "gone.png"), 3),
    ):
        with pytest.raises(OSError):
            blob.read()


def test_a_replaced_zip_is_opened_anew(tmp_path):
    path = put(tmp_path / "a.zip", zip_of({"a": b"old"}))
    assert Blob(str(path), 3, "a").read() == b"old"
    path.write_bytes(zip_of({"first": b"some more", "a": b"new"}))
    assert Blob(str(path), 3, "a").read() == b"new"


# ImageNet

WNIDS = {"n02": {"n02_1.JPEG": 1, "n02_2.JPEG": 2}, "n01": {"n01_1.JPEG": 3}, "n03": {"n03_9.JPEG": 4}}


def imagenet(root, *, as_tar):
    files = {w: {name: encoded(seed, "JPEG") for name, seed in part.items()} for w, part in WNIDS.items()}
    if as_tar:
        inner = {f"{w}.tar": tar_of(part) for w, part in files.items()}
        put(root / "ILSVRC2012_img_train.tar", tar_of(inner))
    else:
        for w, part in files.items():
            for name, data in part.items():
                put(root / "train" / w / name, data)
    put(root / "val/n02/ILSVRC2012_val_1.JPEG", encoded(9, "JPEG"))
    put(root / "val/n02/.DS_Store", b"x")
    return root


def test_imagenet_reads_tar_of_tars_in_place_and_class_folders_alike(tmp_path):
    listings = [read_source("imagenet", imagenet(tmp_path / str(i), as_tar=bool(i))) for i in range(2)]
    for listing in listings:
        assert listing.classes == ("n01", "n02", "n03")
        assert listing.modality == "natural" and not listing.carve_val
        found = {(item.key, item.split, item.label): item.blob.read() for item in listing.items}
        assert found == {
            ("n01_1", "train", 0): encoded(3, "JPEG"),
            ("n02_1", "train", 1): encoded(1, "JPEG"),
            ("n02_2", "train", 1): encoded(2, "JPEG"),
            ("n03_9", "train", 2): encoded(4, "JPEG"),
            ("ILSVRC2012_val_1", "val", 1): encoded(9, "JPEG"),
        }
    assert "ILSVRC2012_img_train.tar/n01.tar/n01_1.JPEG" in {item.origin for item in listings[1].items}


def test_imagenet_without_val_says_so(tmp_path):
    put(tmp_path / "train/n01/a.JPEG", encoded(1))
    listing = read_source("imagenet", tmp_path)
    assert [item.split for item in listing.items] == ["train"]
    assert "no val/" in listing.notes[0]


def test_imagenet_class_tar_without_end_blocks_does_not_run_into_the_next(tmp_path):
    image = encoded(1)
    inner = tar_of({"n01_1.JPEG": image})
    bare = inner[: 512 + -(-len(image) // 512) * 512]
    put(tmp_path / "ILSVRC2012_img_train.tar", tar_of({"n01.tar": bare, "n02.tar": tar_of({"n02_1.JPEG": image})}))
    listing = read_source("imagenet", tmp_path)
    assert [(item.key, item.label) for item in listing.items] == [("n01_1", 0), ("n02_1", 1)]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"val/n01/a.JPEG": b"x"}, "neither ILSVRC2012_img_train.tar nor train/"),
        ({"train/n01/a.JPEG": b"x", "val/n07/a.JPEG": b"x"}, "1 of 1 are not in train: n07"),
        ({"train/n01/a.JPEG": b"x", "val/a.JPEG": b"x"}, r"without class folders.*val/<wnid>"),
        ({"train/n01/a.JPEG": b"x", "ILSVRC2012_img_val.tar": b"x"}, r"without their classes.*val/<wnid>"),
        ({"train/n01/readme.txt": b"x"}, "no training images"),
        ({"ILSVRC2012_img_train.tar": b"x" * 2000}, "not a whole uncompressed tar"),
    ],
)
def test_imagenet_refuses(tmp_path, files, message):
    for name, data in files.items():
        put(tmp_path / name, data)
    with pytest.raises(MstlError, match=message):
        read_source("imagenet", tmp_path)


def test_imagenet_refuses_a_truncated_tar(tmp_path):
    imagenet(tmp_path, as_tar=True)
    tar = tmp_path / "ILSVRC2012_img_train.tar"
    tar.write_bytes(tar.read_bytes()[:-14000])
    with pytest.raises(MstlError, match="not a whole uncompressed tar"):
        read_source("imagenet", tmp_path)


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
    assert replace(listing, items=listing.items[::-1]).digest() == listing.digest()
    for change in ({"label": 1}, {"split": "val"}, {"patient": "p"}, {"key": "k"}, {"blob": Blob("x", 99)}):
        assert (
            replace(listing, items=(replace(listing.items[0], **change), *listing.items[1:])).digest()
            != listing.digest()
        )
    assert replace(listing, classes=("yes", "no")).digest() != listing.digest()


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


def test_a_folder_without_val_says_how_to_keep_patients_apart(tmp_path):
    put(tmp_path / "cat/a.png", encoded(1))
    [note] = read_source("folder", tmp_path).notes
    assert "no val part" in note and "make train/ and val/ folders" in note and "patient by patient" in note
