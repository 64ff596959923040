"""The COVID sources: lists, patients and splits as published, and lists that do not fit refused."""

import os
import zipfile
from collections import Counter
from pathlib import Path

import pytest
from raw_data import encoded, put, zip_of

from shards.errors import MstlError
from shards.sources import read_source
from shards.sources.covidx import V4_COUNTS

REAL = os.environ.get("MSTL_TEST_DATA")
needs_real = pytest.mark.skipif(REAL is None, reason="MSTL_TEST_DATA names no folder of real data")


# COVIDx


def covidx(root, lines, names, *, split="train", folder="data/train"):
    put(root / f"{split}_COVIDx4.txt", "\n".join(lines).encode())
    for i, name in enumerate(names):
        put(root / folder / name, encoded(i))
    return root


@pytest.mark.parametrize(
    ("line", "patient", "name", "label"),
    [
        ("p1 a.png normal", "p1", "a.png", 0),
        ("p1 a.png pneumonia rsna", "p1", "a.png", 1),
        ("COVID 1 COVID(1).png COVID-19 figure1", "COVID 1", "COVID(1).png", 2),
        ("p1 COVID (1).png COVID-19 figure1", "p1", "COVID (1).png", 2),
        ("ANON 7 two  spaces here.png COVID-19", "ANON 7", "two  spaces here.png", 2),
        ("p1 a.png normal normal", "p1", "a.png", 0),  # a source named like a class
        ("normal normal a.png normal rsna", "normal normal", "a.png", 0),
    ],
)
def test_covidx_lines_are_read_by_the_file_that_exists(tmp_path, line, patient, name, label):
    listing = read_source("covidx", covidx(tmp_path, [line, ""], [name, "decoy.png"]))
    [item] = listing.items
    assert (item.patient, item.origin, item.label, item.split) == (patient, f"data/train/{name}", label, "train")
    assert listing.classes == ("normal", "pneumonia", "COVID-19") and listing.modality == "cxr" and listing.carve_val
    assert item.blob.read() == encoded(0)


def test_covidx_test_list_and_plain_folders(tmp_path):
    covidx(tmp_path, ["p1 a.png normal"], ["a.png"], folder="train")
    covidx(tmp_path, ["p2 a.png COVID-19 x"], ["a.png"], split="test", folder="test")
    listing = read_source("covidx", tmp_path)
    assert [(i.split, i.origin, i.label) for i in listing.items] == [
        ("train", "train/a.png", 0),
        ("test", "test/a.png", 2),
    ]
    assert listing.mismatches == (  # the list is named like that of V4
        "train has 1 images, the published split has 13,898", "test has 1 images, the published split has 300"
    )  # fmt: skip
    assert listing.notes[0].startswith("COVIDx has no validation list: ")
    assert len(listing.notes) == 2 and listing.notes[1].startswith("2 of 3 classes have no training image")


def test_covidx_repeated_lines_count_once(tmp_path):
    listing = read_source("covidx", covidx(tmp_path, ["p1 a.png normal"] * 3 + ["p2 b.png normal"], ["a.png", "b.png"]))
    assert [item.key for item in listing.items] == ["a", "b"]
    assert any("repeats 2 lines" in note for note in listing.notes)


@pytest.mark.parametrize(
    ("lines", "names", "message"),
    [
        (["p a.png normal", "p b.png mild"], ["a.png", "b.png"], r"line 2: .*negative or positive: 'p b.png mild'"),
        (["a.png normal"], ["a.png"], "line 1"),
        (["p a b.png normal"], ["a b.png", "b.png"], "line 1: it can be read in 2 ways"),
        (["p a.png normal", "p gone.png normal"], ["a.png"], "1 listed images are not in .*: gone.png"),
        (["p a.png normal", "p a.png COVID-19"], ["a.png"], "line 2: a.png is listed before with another class"),
    ],
)
def test_covidx_refuses(tmp_path, lines, names, message):
    with pytest.raises(MstlError, match=message):
        read_source("covidx", covidx(tmp_path, lines, names))


LISTS = {  # (line, patient, file, label) as they stand in lists of each kind; the last is the test list's
    "3 fields": [
        ("3 a.png normal", "3", "a.png", 0),
        ("8 b.jpeg pneumonia", "8", "b.jpeg", 1),
        ("9 c.JPG COVID-19", "9", "c.JPG", 2),
    ],
    "4 fields": [
        ("3 a.png normal rsna", "3", "a.png", 0),
        ("8 b.jpeg pneumonia cohen", "8", "b.jpeg", 1),
        ("COVID-00007 c.JPG COVID-19 fig1", "COVID-00007", "c.JPG", 2),
    ],
    "5 fields": [
        ("COVID 1 COVID(1).png COVID-19 sirm", "COVID 1", "COVID(1).png", 2),
        ("COVID 2 COVID(2).png COVID-19 sirm", "COVID 2", "COVID(2).png", 2),
        ("4 a.png normal rsna", "4", "a.png", 0),
    ],
    "two classes": [
        ("5 a.png negative cohen", "5", "a.png", 0),
        ("COVID 1 COVID(1).png positive sirm", "COVID 1", "COVID(1).png", 1),
        ("419639-003251 MIDRC-RICORD-1C-0.png positive ricord", "419639-003251", "MIDRC-RICORD-1C-0.png", 1),
    ],
    "two classes, a source named like one of three": [
        ("5 a.png negative normal", "5", "a.png", 0),
        ("6 b.png positive cohen", "6", "b.png", 1),
        ("7 c.png negative pneumonia", "7", "c.png", 0),
    ],
    "two classes, 3 fields": [
        ("5 a.png negative", "5", "a.png", 0),
        ("ANON191 b.png positive", "ANON191", "b.png", 1),
        ("ANON7 c.png positive", "ANON7", "c.png", 1),
    ],
}


@pytest.mark.parametrize("kind", LISTS)
def test_covidx_lists_of_every_version(tmp_path, kind):
    *train, test = LISTS[kind]
    for split, part in (("train", train), ("test", [test])):
        for _, _, name, _ in part:
            put(tmp_path / "data" / split / name, b"x")
        put(tmp_path / f"{split}_COVIDx9.txt", "\r\n".join([*(line for line, *_ in part), ""]).encode())
    listing = read_source("covidx", tmp_path)
    two = ("negative", "positive")
    assert listing.classes == (two if kind.startswith("two") else ("normal", "pneumonia", "COVID-19"))
    assert [(i.split, i.patient, i.origin, i.label) for i in listing.items] == [
        *(("train", patient, f"data/train/{name}", label) for _, patient, name, label in train),
        ("test", test[1], f"data/test/{test[2]}", test[3]),
    ]
    assert listing.mismatches == ()  # no counts are known but those of V4


def test_covidx_as_kaggle_packs_it_has_a_validation_list(tmp_path):
    for split, patient in (("train", "p1"), ("val", "p2"), ("test", "p3")):
        put(tmp_path / f"{split}.txt", f"{patient} {split}.png negative rsna\n".encode())
        put(tmp_path / split / f"{split}.png", b"x")
    listing = read_source("covidx", tmp_path)
    assert [(i.split, i.origin, i.patient) for i in listing.items] == [
        ("train", "train/train.png", "p1"), ("val", "val/val.png", "p2"), ("test", "test/test.png", "p3")
    ]  # fmt: skip
    assert not listing.carve_val and not any("no validation list" in note for note in listing.notes)


def test_covidx_v4_complete_has_no_mismatch_and_without_its_test_list_one(tmp_path, monkeypatch):
    monkeypatch.setitem(V4_COUNTS, "train", 6)
    for split, count in (("train", 6), ("test", 300)):
        names = [f"{split}{i}.png" for i in range(count)]
        lines = [f"{split}{i} {name} {('normal', 'pneumonia', 'COVID-19')[i % 3]}" for i, name in enumerate(names)]
        covidx(tmp_path, lines, names, split=split, folder=f"data/{split}")
    listing = read_source("covidx", tmp_path)
    assert listing.mismatches == () and len(listing.items) == 306
    (tmp_path / "test_COVIDx4.txt").unlink()
    listing = read_source("covidx", tmp_path)
    assert listing.mismatches == (
        "there is no test_COVIDx*.txt, so the shard set gets no test split; the published one has 300 images",
    )
    assert not any("no test" in note for note in listing.notes)


def test_covidx_without_a_test_list_of_another_version_only_notes_it(tmp_path):
    put(tmp_path / "train_COVIDx9A.txt", b"p a.png normal\n")
    put(tmp_path / "data/train/a.png", b"x")
    listing = read_source("covidx", tmp_path)
    assert listing.mismatches == ()
    assert "there is no test_COVIDx*.txt, so the shard set gets no test split" in listing.notes


def test_covidx_patients_in_both_lists_are_told(tmp_path):
    """As in lists 6 and 7B, which have patient ANON191 in train and in test."""
    put(tmp_path / "train_COVIDx7B.txt", b"ANON191 a.png negative actmed\nANON192 b.png positive actmed\n")
    put(tmp_path / "test_COVIDx7B.txt", b"ANON191 c.png positive actmed\nANON7 d.png positive actmed\n")
    for name in ("train/a.png", "train/b.png", "test/c.png", "test/d.png"):
        put(tmp_path / "data" / name, name.encode())
    listing = read_source("covidx", tmp_path)
    [told] = [note for note in listing.notes if "more than one split" in note]
    assert told.startswith("1 patients stand in more than one split (first: ANON191 in train and test)")
    assert {(i.patient, i.split, i.label) for i in listing.items if i.patient == "ANON191"} == {
        ("ANON191", "train", 0), ("ANON191", "test", 1)
    }  # fmt: skip


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (
            "p a.png normal\np b.png positive",
            "",
            r"train_COVIDx4\.txt, line 2: .*classes normal, pneumonia, COVID-19, not",
        ),
        (
            "p a.png negative\np b.png pneumonia",
            "",
            r"line 2: .*classes negative, positive, not so 'p b.png pneumonia'",
        ),
        ("p a.png normal\np b.png COVID-19", "p c.png positive", r"test_COVIDx4\.txt, line 1: .*not so"),
    ],
)
def test_covidx_lists_of_two_and_three_classes_do_not_mix(tmp_path, train, test, message):
    covidx(tmp_path, train.split("\n"), ["a.png", "b.png"])
    if test:
        covidx(tmp_path, test.split("\n"), ["c.png"], split="test", folder="data/test")
    with pytest.raises(MstlError, match=message):
        read_source("covidx", tmp_path)


def test_covidx_refuses_two_versions_and_none(tmp_path):
    covidx(tmp_path, ["p1 a.png normal"], ["a.png"])
    put(tmp_path / "train_COVIDx5.txt", b"")
    with pytest.raises(MstlError, match=r"2 train lists: train_COVIDx4\.txt, train_COVIDx5\.txt"):
        read_source("covidx", tmp_path)
    put(tmp_path / "train.txt", b"")
    with pytest.raises(MstlError, match="3 train lists"):
        read_source("covidx", tmp_path)
    (tmp_path / "train.txt").unlink()
    (tmp_path / "train_COVIDx4.txt").unlink()
    (tmp_path / "train_COVIDx5.txt").unlink()
    with pytest.raises(MstlError, match="no train_COVIDx"):
        read_source("covidx", tmp_path)


# COVID19-CT


def covid_ct(root, *, zipped=True, test=True):
    files = {
        "COVID": {f"c%{i}.png": encoded(i) for i in range(4)},
        "NonCOVID": {f"n{i}.jpg": encoded(9 + i) for i in range(4)},
    }
    for name, part in files.items():
        if zipped:
            members = {f"CT_{name}/{file}": data for file, data in part.items()}
            hidden = {f"__MACOSX/CT_{name}/._{file}": b"x" for file in part}
            put(root / f"Images-processed/CT_{name}.zip", zip_of(members | hidden | {f"CT_{name}/": b""}))
        else:
            for file, data in part.items():
                put(root / f"Images-processed/CT_{name}/{file}", data)
        names = list(part)
        for split, chosen in (("train", names[:2]), ("val", names[2:3]), ("test", names[3:])):
            if split != "test" or test:
                put(root / f"Data-split/{name}/{split}CT_{name}.txt", "\r\n".join([*chosen, ""]).encode())
    put(
        root / "Info/COVID-CT-MetaInfo.csv",
        '\ufeffFile name,Patient ID,Age\nc%0.png,Patient 1,"a, b"\nc%1.png,Patient 1,\n'.encode(),
    )
    put(
        root / "Info/NonCOVID-CT-MetaInfo.csv",
        b",image name,patient id\r\n0,n0.jpg,crawled_1\r\n1,n3.jpg,crawled_2\r\n",
    )
    return root


@pytest.mark.parametrize("zipped", [True, False])
def test_covid19_ct_lists_splits_labels_and_patients(tmp_path, zipped):
    listing = read_source("covid19-ct", covid_ct(tmp_path, zipped=zipped))
    assert listing.classes == ("NonCOVID", "COVID") and listing.modality == "ct" and not listing.carve_val
    assert {(i.key, i.split, i.label, i.patient) for i in listing.items} == {
        ("c%0", "train", 1, "Patient 1"), ("c%1", "train", 1, "Patient 1"), ("c%2", "val", 1, None),
        ("c%3", "test", 1, None), ("n0", "train", 0, "crawled_1"), ("n1", "train", 0, None), ("n2", "val", 0, None),
        ("n3", "test", 0, "crawled_2"),
    }  # fmt: skip
    assert {i.key: i.blob.read() for i in listing.items}["c%2"] == encoded(2)
    place = "CT_COVID.zip/CT_COVID" if zipped else "CT_COVID"
    assert f"Images-processed/{place}/c%0.png" in {i.origin for i in listing.items}
    notes = " ".join(listing.notes)
    assert "patient of 4 of 8 slices" in notes
    assert listing.mismatches == tuple(
        f"{split} has {there} images, the published split has {known}"
        for split, there, known in (("train", 4, 425), ("val", 2, 118), ("test", 2, 203))
    )


def test_covid19_ct_without_test_lists_or_tables(tmp_path):
    covid_ct(tmp_path, test=False)
    for table in (tmp_path / "Info").iterdir():
        table.unlink()
    listing = read_source("covid19-ct", tmp_path)
    assert Counter(item.split for item in listing.items) == {"train": 4, "val": 2}
    assert all(item.patient is None for item in listing.items)
    assert listing.mismatches[2:] == (
        "there is no testCT_NonCOVID.txt and no testCT_COVID.txt, so the shard set gets no test split; "
        "the published one has 203 images",
    )
    assert [note for note in listing.notes if "test" in note] == []
    assert "2 slices stand in no split list and were left out" in listing.notes


def test_covid19_ct_with_one_test_list(tmp_path):
    covid_ct(tmp_path)
    (tmp_path / "Data-split/COVID/testCT_COVID.txt").unlink()
    listing = read_source("covid19-ct", tmp_path)
    assert "there is no testCT_COVID.txt, so the shard set gets a test split of one class only" in listing.notes
    assert listing.mismatches[2] == "test has 1 images, the published split has 203"


@pytest.mark.parametrize(
    ("member", "mode", "message"),
    [
        ("../c.png", 0, r"CT_COVID\.zip: its member '\.\./c\.png' is named with `\.\.`"),
        ("/c.png", 0, "absolute path"),
        ("c.png", 0o120777, "a symbolic link"),
        ("other/c%0.png", 0, r"two have the name c%0\.png"),
    ],
)
def test_covid19_ct_refuses_zips_that_lead_outside_and_names_that_clash(tmp_path, member, mode, message):
    covid_ct(tmp_path)
    with zipfile.ZipFile(tmp_path / "Images-processed/CT_COVID.zip", "a") as archive:
        info = zipfile.ZipInfo(member)
        info.external_attr = mode << 16
        archive.writestr(info, b"x")
    with pytest.raises(MstlError, match=message):
        read_source("covid19-ct", tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "Data-split/COVID/trainCT_COVID.txt",
            "c%0.png\nx.png\ny.png",
            "2 of 3 listed slices are not .*: x.png, y.png",
        ),
        ("Data-split/COVID/valCT_COVID.txt", "c%0.png", "another split too: c%0.png"),
        ("Data-split/COVID/valCT_COVID.txt", "c%2.png\nc%2.png", "listed twice"),
        ("Data-split/COVID/valCT_COVID.txt", None, "no such file"),
        ("Images-processed/CT_COVID.zip", None, "neither Images-processed/CT_COVID.zip"),
        ("Images-processed/CT_COVID.zip", "no zip", "not a whole zip"),
        ("Info/COVID-CT-MetaInfo.csv", "File,Who\na,b", "no columns"),
        ("Info/COVID-CT-MetaInfo.csv", "", "no columns"),
        ("Info/COVID-CT-MetaInfo.csv", 'File name,Patient ID\n"' + "x" * 140_000, "cannot be read as a table"),
    ],
)
def test_covid19_ct_refuses(tmp_path, name, content, message):
    covid_ct(tmp_path)
    (tmp_path / name).unlink() if content is None else (tmp_path / name).write_text(content)
    with pytest.raises(MstlError, match=message):
        read_source("covid19-ct", tmp_path)


# Real data


@needs_real
def test_real_covid19_ct():
    listing = read_source("covid19-ct", Path(REAL) / "covid19-ct")
    counts = Counter((item.split, listing.classes[item.label]) for item in listing.items)
    assert counts == {
        ("train", "COVID"): 191, ("train", "NonCOVID"): 234, ("val", "COVID"): 60, ("val", "NonCOVID"): 58
    }  # fmt: skip
    assert all(item.patient for item in listing.items)
    assert listing.notes == ()
    assert len(listing.mismatches) == 1 and "no test split" in listing.mismatches[0]


@needs_real
def test_real_covidx_and_imagenet():
    xrays = read_source("covidx", Path(REAL) / "covidx")
    assert Counter(item.label for item in xrays.items) == {0: 400, 1: 400, 2: 100}
    assert xrays.mismatches == () and xrays.carve_val
    tiny = read_source("imagenet", Path(REAL) / "imagenet-tiny")
    assert Counter(item.split for item in tiny.items) == {"train": 3000, "val": 600} and len(tiny.classes) == 60
    assert all(item.key.startswith(tiny.classes[item.label]) for item in tiny.items)
    assert tuple(tiny.titles) == tiny.classes and tiny.notes == ()
    assert tiny.mismatches == (
        "train has 3,000 images, the published split has 1,281,167",
        "val has 600 images, the published split has 50,000",
    )
    assert tiny.items[0].blob.read()[:2] == b"\xff\xd8"
