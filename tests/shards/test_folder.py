"""Folders with a table of labels, and places of scans by folders."""

import os
from pathlib import Path

import pytest
from raw_data import encoded, put

from shards.errors import MstlError
from shards.sources import SourceOptions, carve_validation, read_source
from shards.sources.placing import place, visible_files


def labelled(root, text, **options):
    return read_source("folder", root, SourceOptions(labels=put(root / "labels.csv", text.encode()), **options))


def test_a_table_gives_labels_patients_and_splits(tmp_path):
    for at, name in enumerate(("x/1.png", "x/y/2.jpg", "3.png", "z/spare.png", "z/.hidden.png", "z/read.me")):
        put(tmp_path / name, encoded(at))
    listing = labelled(
        tmp_path, "path,label,patient,split\nx/1.png,b,p,train\nx/y/2.jpg,a,q,val\n3.png,a,q,train\n", modality="cxr"
    )
    assert listing.classes == ("a", "b") and listing.modality == "cxr" and not listing.carve_val
    assert [(i.origin, i.key, i.label, i.patient, i.split) for i in listing.items] == [
        ("x/1.png", "1", 1, "p", "train"), ("x/y/2.jpg", "2", 0, "q", "val"), ("3.png", "3", 0, "q", "train")
    ]  # fmt: skip
    assert [i.blob.read() for i in listing.items] == [encoded(0), encoded(1), encoded(2)]
    assert listing.notes[0] == "1 images stand in no line of --labels and were left out"
    assert "1 patients stand in more than one split (first: q in train and val)" in listing.notes[1]


def test_without_splits_val_is_carved_by_patient(tmp_path):
    lines = ["path,label,patient"]
    for at in range(40):
        put(tmp_path / f"{at}.png", b"x")
        lines.append(f"{at}.png,{at % 2},p{at // 4}")
    listing = labelled(tmp_path, "\n".join(lines))
    assert listing.carve_val and {item.split for item in listing.items} == {"train"}
    carved = carve_validation(listing, fraction=0.3, seed=0).items
    patients = {split: {i.patient for i in carved if i.split == split} for split in ("train", "val")}
    assert patients["val"] and not patients["train"] & patients["val"]


def test_unknown_patients_are_told_where_val_is_carved(tmp_path):
    for name in ("a.png", "b.png"):
        put(tmp_path / name, b"x")
    [note] = labelled(tmp_path, "path,label,patient\na.png,1,p\nb.png,1,\n").notes
    assert "1 of 2 lines name no patient" in note


def test_a_listed_file_that_is_not_there_is_refused(tmp_path):
    for name in ("a.png", "d/b.png"):
        put(tmp_path / name, b"x")
    with pytest.raises(MstlError, match=r"4 of 5 paths are no files in .*: b\.png, d, e\.png, \.\.\."):
        labelled(tmp_path, "path,label\na.png,1\nb.png,1\nd,1\ne.png,2\nf.png,2\n")


def test_folder_takes_a_modality_and_refuses_a_window(tmp_path):
    put(tmp_path / "cat/a.png", b"x")
    assert read_source("folder", tmp_path, SourceOptions(modality="ct")).modality == "ct"
    with pytest.raises(MstlError, match="--window: source folder has no use for it"):
        read_source("folder", tmp_path, SourceOptions(window="lung"))


def test_files_below_links_are_found_and_loops_end(tmp_path):
    put(tmp_path / "elsewhere/a.png", b"x")
    (tmp_path / "root/in").mkdir(parents=True)
    (tmp_path / "root/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root/in/loop").symlink_to(tmp_path / "root")
    put(tmp_path / "root/.git/b.png", b"x")
    files, notes = visible_files(tmp_path / "root")
    assert [origin for origin, _ in files] == ["link/a.png"]
    assert notes == ["1 links to folders that are listed already were left out: in/loop (it is the root)"]


def test_a_second_way_into_a_folder_is_told(tmp_path):
    put(tmp_path / "a/x/1.png", b"x")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    files, notes = visible_files(tmp_path)
    assert [origin for origin, _ in files] == ["a/x/1.png"]
    assert notes == ["1 links to folders that are listed already were left out: b (it is a)"]
    listing = labelled(tmp_path, "path,label\na/x/1.png,1\n")
    assert notes[0] in listing.notes


def test_a_folder_that_cannot_be_read_is_not_dropped(tmp_path, monkeypatch):
    put(tmp_path / "shut/a.png", b"x")
    put(tmp_path / "b.png", b"x")
    real = os.scandir

    def scandir(path):
        if Path(path).name == "shut":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(MstlError, match=r"source folder in .*: it cannot be read .*Permission denied.*shut"):
        labelled(tmp_path, "path,label\nb.png,1\n")


def test_folders_without_images_are_no_classes(tmp_path):
    for name in ("cat/a.png", "dog/b.png", "shards-folder/train-000000.tar", "cat/more/c.png"):
        put(tmp_path / name, b"x")
    listing = read_source("folder", tmp_path)
    assert listing.classes == ("cat", "dog") and [item.origin for item in listing.items] == ["cat/a.png", "dog/b.png"]
    assert "1 folders without images are no classes and were left out: shards-folder" in listing.notes
    assert "1 files or folders not named like images were left out: cat/more" in listing.notes
    assert any(note.startswith("1 images lie a folder deeper than <class>/*") for note in listing.notes)


def test_images_by_patient_in_a_class_are_pointed_to_the_table(tmp_path):
    for name in ("cat/p1/a.png", "cat/p1/b.png", "dog/p2/c.png"):
        put(tmp_path / name, b"x")
    with pytest.raises(MstlError, match=r"no training images; .*3 images lie a folder deeper.*--labels"):
        read_source("folder", tmp_path)


def test_split_folders_without_images_are_no_classes_either(tmp_path):
    for name in ("train/a/1.png", "train/notes/x.txt", "val/a/2.png", "val/logs/x.txt"):
        put(tmp_path / name, b"x")
    listing = read_source("folder", tmp_path)
    assert listing.classes == ("a",)
    assert {(item.origin, item.split) for item in listing.items} == {("train/a/1.png", "train"), ("val/a/2.png", "val")}
    assert listing.notes == ("2 folders without images are no classes and were left out: train/notes, val/logs",)
    put(tmp_path / "val/notes/3.png", b"x")  # train has such a folder, and nothing in it
    with pytest.raises(MstlError, match="train does not have notes, or nothing in them"):
        read_source("folder", tmp_path)


def test_a_train_folder_without_images_below_is_no_split(tmp_path):
    for name in ("train/1.png", "train/logs/x.txt", "plane/2.png"):
        put(tmp_path / name, b"x")
    assert read_source("folder", tmp_path).classes == ("plane", "train")
    (tmp_path / "train/1.png").rename(tmp_path / "train/logs/1.png")
    listing = read_source("folder", tmp_path)
    assert listing.classes == ("logs",) and [item.origin for item in listing.items] == ["train/logs/1.png"]


def test_images_too_deep_do_not_turn_other_folders_into_classes(tmp_path):
    for name in ("train/cat/patient/1.png", "old/2.png"):
        put(tmp_path / name, b"x")
    with pytest.raises(MstlError, match="it has no training images"):
        read_source("folder", tmp_path)


# Places of scans


def rows(places):
    return {origin: (places.classes[row.label], row.split) for origin, row in places.rows.items()}


def test_scans_in_class_folders_however_deep(tmp_path):
    places = place(tmp_path, ["b/p1/s1/1", "a/2"], None, ())
    assert rows(places) == {"b/p1/s1/1": ("b", "train"), "a/2": ("a", "train")} and places.carve_val
    assert places.classes == ("a", "b") and "2 folders a, b were taken for classes" in places.notes[0]


def test_scans_in_split_folders(tmp_path):
    places = place(tmp_path, ["train/b/1", "train/a/p/1", "val/a/2", "test/b/3", "old/b/1"], None, ())
    assert rows(places) == {
        "train/b/1": ("b", "train"), "train/a/p/1": ("a", "train"), "val/a/2": ("a", "val"), "test/b/3": ("b", "test"),
    }  # fmt: skip
    assert not places.carve_val and "1 files beside train, val and test were left out: old/b/1" in places.notes
    with pytest.raises(MstlError, match=r"val classes in .*: train does not have z"):
        place(tmp_path, ["train/b/1", "val/z/2"], None, ())


@pytest.mark.parametrize("origins", [["1", "a/2"], ["train/1", "train/a/2", "val/3"]])
def test_scans_outside_class_folders_are_unlabelled(tmp_path, origins):
    places = place(tmp_path, origins, None, ())
    assert {name for name, _ in rows(places).values()} == {"unlabelled"} and len(places.rows) == len(origins)
    assert "unlabelled" in places.notes[0]


def test_scans_by_a_table_of_folders(tmp_path):
    table = put(tmp_path / "t.csv", b"path,label,patient,split\ns1,well,p,train\ns1/odd.dcm,sick,,val\n")
    origins = ["s1/a.dcm", "s1/odd.dcm", "s2/b.dcm"]
    places = place(tmp_path, origins, table, origins)
    assert rows(places) == {"s1/a.dcm": ("well", "train"), "s1/odd.dcm": ("sick", "val")}
    assert places.rows["s1/a.dcm"].patient == "p" and places.rows["s1/odd.dcm"].patient is None
    assert places.notes == ("1 usable files stand in no line of --labels and were left out",)
    with pytest.raises(MstlError, match=r"1 of 2 paths are no files or folders of files in .*: s1/odd\.dcm"):
        place(tmp_path, ["s1/a.dcm"], table, ["s1/a.dcm"])
    assert place(tmp_path, ["s1/a.dcm"], table, origins).notes == (
        "1 lines of --labels hold for no file that can be used: s1/odd.dcm",
    )
