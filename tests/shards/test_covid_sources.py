"""The COVID sources: lists, patients and splits as published, and lists that do not fit refused."""

import os
from collections import Counter
from pathlib import Path

import pytest
from raw_data import encoded, put, zip_of

from shards.errors import MstlError
from shards.sources import read_source

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
    notes = " ".join(listing.notes)
    assert "train has 1 images, the published split has 13898" in notes  # the list is named like that of V4
    assert "no test_COVIDx" not in notes and "no validation list" in notes


def test_covidx_repeated_lines_count_once(tmp_path):
    listing = read_source("covidx", covidx(tmp_path, ["p1 a.png normal"] * 3 + ["p2 b.png normal"], ["a.png", "b.png"]))
    assert [item.key for item in listing.items] == ["a", "b"]
    assert any("repeats 2 lines" in note for note in listing.notes)


@pytest.mark.parametrize(
    ("lines", "names", "message"),
    [
        (["p a.png normal", "p b.png positive"], ["a.png", "b.png"], r"line 2: .*'p b.png positive'"),
        (["a.png normal"], ["a.png"], "line 1"),
        (["p a b.png normal"], ["a b.png", "b.png"], "line 1: it can be read in 2 ways"),
        (["p a.png normal", "p gone.png normal"], ["a.png"], "1 listed images are not in .*: gone.png"),
        (["p a.png normal", "p a.png COVID-19"], ["a.png"], "line 2: a.png is listed before with another class"),
    ],
)
def test_covidx_refuses(tmp_path, lines, names, message):
    with pytest.raises(MstlError, match=message):
        read_source("covidx", covidx(tmp_path, lines, names))


def test_covidx_refuses_two_versions_and_none(tmp_path):
    covidx(tmp_path, ["p1 a.png normal"], ["a.png"])
    put(tmp_path / "train_COVIDx5.txt", b"")
    with pytest.raises(MstlError, match=r"2 train lists: train_COVIDx4\.txt, train_COVIDx5\.txt"):
        read_source("covidx", tmp_path)
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
    assert "train has 4 images, the published split has 425" in notes
    assert "val has 2 images, the published split has 118" in notes
    assert "test has 2 images, the published split has 203" in notes


def test_covid19_ct_without_test_lists_or_tables(tmp_path):
    covid_ct(tmp_path, test=False)
    for table in (tmp_path / "Info").iterdir():
        table.unlink()
    listing = read_source("covid19-ct", tmp_path)
    assert Counter(item.split for item in listing.items) == {"train": 4, "val": 2}
    assert all(item.patient is None for item in listing.items)
    notes = " ".join(listing.notes)
    assert "testCT_NonCOVID.txt and no testCT_COVID.txt, so the shard set gets no test split" in notes
    assert "2 slices stand in no split list" in notes


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
    assert len(listing.notes) == 1 and "no test split" in listing.notes[0]


@needs_real
def test_real_covidx_and_imagenet():
    xrays = read_source("covidx", Path(REAL) / "covidx")
    assert Counter(item.label for item in xrays.items) == {0: 400, 1: 400, 2: 100}
    tiny = read_source("imagenet", Path(REAL) / "imagenet-tiny")
    assert Counter(item.split for item in tiny.items) == {"train": 3000, "val": 600} and len(tiny.classes) == 60
    assert all(item.key.startswith(tiny.classes[item.label]) for item in tiny.items)
    assert tiny.items[0].blob.read()[:2] == b"\xff\xd8"
