"""Adopting WebDataset tars: what is in them is found, and what is not is said."""

import io
import json
import tarfile

import pytest
from raw_data import encoded, listing_of, put, tar_of, toy_images

from shards.errors import MstlError
from shards.sources import SourceOptions, read_source
from shards.sources.adopt import split_of
from shards.writer import WriteOptions, write_shards


def about(**fields):
    return json.dumps(fields).encode()


def found(listing):
    return {i.origin: (i.key, i.split, listing.classes[i.label], i.patient, i.blob.read()) for i in listing.items}


def test_numbers_texts_and_json_label_samples(tmp_path):
    a, b, c, d = (encoded(i) for i in range(4))
    put(
        tmp_path / "x.tar",
        tar_of({
            "dir/a.jpg": a, "dir/a.cls": b"cat\n", "dir/a.json": about(patient="p1", label="dog"),
            "b.PNG": b, "b.json": about(label="dog", patient=7, modality="ct"),
            "c.d.webp": c, "c.json": about(cls="cat", patient=""),
            "e.tif": d, "e.json": about(class_name="bird"),
        }),
    )  # fmt: skip
    listing = read_source("webdataset", tmp_path)
    assert listing.classes == ("bird", "cat", "dog") and listing.carve_val and listing.modality == "natural"
    assert found(listing) == {
        "x.tar/dir/a.jpg": ("a", "train", "cat", "p1", a),
        "x.tar/b.PNG": ("b", "train", "dog", "7", b),
        "x.tar/c.d.webp": ("c", "train", "cat", None, c),
        "x.tar/e.tif": ("e", "train", "bird", None, d),
    }


def samples(labels, names=None, first=0):
    files = {}
    for at, label in enumerate(labels, start=first):
        files[f"s{at}.jpg"] = encoded(at, "JPEG")
        files[f"s{at}.cls"] = str(label).encode()
        if names:
            files[f"s{at}.json"] = about(class_name=names[at - first])
    return tar_of(files)


def test_names_of_numbers_come_from_a_list_the_samples_or_the_numbers(tmp_path):
    put(tmp_path / "a.tar", samples([10, 2, "02"]))
    listing = read_source("webdataset", tmp_path)
    assert listing.classes == ("2", "10") and [item.label for item in listing.items] == [1, 0, 0]

    put(tmp_path / "a.tar", samples([10, 2, 10], ["z", "y", "z"]))
    assert read_source("webdataset", tmp_path).classes == ("y", "z")
    put(tmp_path / "a.tar", samples([10, 2, 10], ["z", "y", "x"]))
    assert read_source("webdataset", tmp_path).classes == ("2", "10")
    put(tmp_path / "a.tar", samples([10, 2], ["z", "z"]))
    assert read_source("webdataset", tmp_path).classes == ("2", "10")

    put(tmp_path / "classnames.txt", b"zero\none\ntwo\n")
    put(tmp_path / "a.tar", samples(["02", 0]))
    listing = read_source("webdataset", tmp_path)
    assert listing.classes == ("zero", "one", "two") and [item.label for item in listing.items] == [2, 0]
    put(tmp_path / "a.tar", samples(["two", "zero"]))
    assert [item.label for item in read_source("webdataset", tmp_path).items] == [2, 0]
    (tmp_path / "classnames.txt").write_text("crane\ncrane\nowl\n")
    put(tmp_path / "a.tar", samples([1, 0]))
    assert [item.label for item in read_source("webdataset", tmp_path).items] == [1, 0]
    put(tmp_path / "a.tar", samples(["owl", "crane"]))
    with pytest.raises(MstlError, match="the samples have also crane"):
        read_source("webdataset", tmp_path)
    put(tmp_path / "a.tar", samples([2, 3]))
    with pytest.raises(MstlError, match=r"classnames\.txt has 3 names, counted from 0, and the samples have also 3"):
        read_source("webdataset", tmp_path)


def test_splits_come_from_folders_and_file_names(tmp_path):
    for at, name in enumerate(("train/a.tar", "imagenet-validation-000000.tar", "x_test_1.tar", "rest.tar")):
        put(tmp_path / name, samples([1], first=at))
    listing = read_source("webdataset", tmp_path)
    assert {item.origin.split("/s")[0]: item.split for item in listing.items} == {
        "train/a.tar": "train", "imagenet-validation-000000.tar": "val", "x_test_1.tar": "test", "rest.tar": "train",
    }  # fmt: skip
    assert not listing.carve_val and "1 tars name no split and count as train: rest.tar" in listing.notes


@pytest.mark.parametrize(
    ("origin", "split"),
    [
        ("imagenet-train-000000.tar", "train"), ("VALID/0.tar", "val"), ("train/old/val/0.tar", "val"),
        ("test/train-0.tar", "test"), ("trained/retest-0.tar", None), ("0.tar", None),
    ],
)  # fmt: skip
def test_the_nearest_folder_names_the_split_before_the_file_does(origin, split):
    assert split_of(origin) == split


def test_incomplete_samples_are_told_and_refused_when_all_are(tmp_path):
    image = encoded(1)
    files = {
        "a.jpg": image, "b.cls": b"1", "c.jpg": image, "c.png": image, "c.cls": b"1", "d.jpg": image,
        "d.json": b"no json", "e.jpg": image, "e.json": b"[1]", "__meta__.jpg": image, "f.jpg": image, "f.cls": b" ",
    }  # fmt: skip
    put(tmp_path / "x.tar", tar_of(files))
    with pytest.raises(MstlError, match="no sample with both") as refused:
        read_source("webdataset", tmp_path)
    assert "2 samples without an image were left out: x.tar/b, x.tar/c" in refused.value.why
    assert "4 samples without a label were left out: x.tar/a, x.tar/d, x.tar/e, ..." in refused.value.why

    files |= {"g.jpg": image, "g.mask.png": image, "g.cls": b"3"}
    put(tmp_path / "x.tar", tar_of(files))
    listing = read_source("webdataset", tmp_path)
    assert [item.origin for item in listing.items] == ["x.tar/g.jpg"]
    assert sum("were left out" in note for note in listing.notes) == 2


def test_a_name_that_stands_twice_is_refused(tmp_path):
    twice = io.BytesIO()
    with tarfile.open(fileobj=twice, mode="w") as tar:
        for _ in range(2):
            tar.addfile(tarfile.TarInfo("a.jpg"))
    put(tmp_path / "x.tar", twice.getvalue())
    with pytest.raises(MstlError, match=r"a\.jpg stands in it twice"):
        read_source("webdataset", tmp_path)


def test_compressed_and_unsafe_tars_are_refused(tmp_path):
    put(tmp_path / "good.tar", samples([1]))
    put(tmp_path / "b/bad.tar.gz", b"x")
    with pytest.raises(MstlError, match=r"1 tars are compressed, first b/bad\.tar\.gz.*gunzip"):
        read_source("webdataset", tmp_path)
    (tmp_path / "b/bad.tar.gz").unlink()
    put(tmp_path / "bad.tar", b"\x1f\x8b" + bytes(600))
    with pytest.raises(MstlError, match="gunzip"):
        read_source("webdataset", tmp_path)
    put(tmp_path / "bad.tar", tar_of({"../a.jpg": b"x"}))
    with pytest.raises(MstlError, match=r"\.\./a\.jpg"):
        read_source("webdataset", tmp_path)


def test_modality_is_what_all_samples_say_unless_the_user_does(tmp_path):
    files = {f"{at}.{ext}": data for at in range(2) for ext, data in (("png", encoded(at)), ("cls", b"1"))}
    put(tmp_path / "x.tar", tar_of({**files, **{f"{at}.json": about(modality="ct") for at in range(2)}}))
    assert read_source("webdataset", tmp_path).modality == "ct"
    assert read_source("webdataset", tmp_path, SourceOptions(modality="cxr")).modality == "cxr"
    put(tmp_path / "x.tar", tar_of({**files, "0.json": about(modality="ct")}))
    assert read_source("webdataset", tmp_path).modality == "natural"
    put(tmp_path / "x.tar", tar_of({**files, **{f"{at}.json": about(modality="spect") for at in range(2)}}))
    assert read_source("webdataset", tmp_path).modality == "natural"


def test_a_shard_set_of_our_own_comes_back_as_it_was(tmp_path):
    listing = listing_of(tmp_path / "raw", toy_images(), modality="cxr", classes=("no", "yes", "never"))
    out = tmp_path / "set"
    write_shards(listing, out, WriteOptions(samples_per_shard=10))
    again = read_source("webdataset", out)
    assert again.classes == listing.classes and again.modality == "cxr" and not again.carve_val
    assert len(again.items) == len(listing.items) == 35

    def content(items):
        return {item.key: (item.split, item.label, item.patient, item.blob.read()) for item in items}

    assert content(again.items) == content(listing.items)


def test_unfinished_shard_sets_are_left_out(tmp_path):
    put(tmp_path / "train/a.tar", samples([1]))
    put(tmp_path / "set.building/train/b.tar", samples([2], first=1))
    put(tmp_path / "set.building/half.tar", b"half a tar")
    listing = read_source("webdataset", tmp_path)
    assert [item.origin for item in listing.items] == ["train/a.tar/s0.jpg"]
    assert listing.notes == ("2 files of unfinished shard sets (*.building) were left out",)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"label": "1", "patient": "\ud800"}, r"sample x\.tar/a: its patient '\\ud800' holds '\\ud800'"),
        ({"label": "1", "patient": "p\nq"}, r"sample x\.tar/a: its patient 'p\\nq' holds '\\n'"),
        ({"label": "1\t2"}, r"sample x\.tar/a: its label '1\\t2' holds '\\t'"),
        ({"label": "1", "class_name": "a\x85"}, r"sample x\.tar/a: its class_name 'a\\x85' holds '\\x85'"),
    ],
)
def test_texts_that_cannot_be_written_are_refused(tmp_path, fields, message):
    put(tmp_path / "x.tar", tar_of({"a.jpg": encoded(1), "a.json": about(**fields)}))
    with pytest.raises(MstlError, match=message):
        read_source("webdataset", tmp_path)


def test_spaces_and_letters_of_any_script_are_well(tmp_path):
    put(
        tmp_path / "x.tar",
        tar_of({"a.jpg": encoded(1), "a.json": about(label="\u732b\u00a0\u3000\u00e9", patient="\U0001f600")}),
    )
    listing = read_source("webdataset", tmp_path)
    assert listing.classes == ("\u732b\u00a0\u3000\u00e9",) and listing.items[0].patient == "\U0001f600"


def test_a_blank_line_in_a_class_list_is_refused(tmp_path):
    put(tmp_path / "x.tar", samples([1, 0]))
    put(tmp_path / "classes.txt", b"zero\n \none\n")
    with pytest.raises(MstlError, match=r"classes\.txt, line 2: it is blank"):
        read_source("webdataset", tmp_path)
    put(tmp_path / "classes.txt", b"\xef\xbb\xbfze\x0cro\r\none\r\n\n \n")  # a form feed ends no line
    with pytest.raises(MstlError, match=r"its class 'ze\\x0cro'"):
        read_source("webdataset", tmp_path)
    put(tmp_path / "classes.txt", b"\xef\xbb\xbfzero\r\none\r\n\n \n")
    assert read_source("webdataset", tmp_path).classes == ("zero", "one")
    put(tmp_path / "classes.txt", b"\n")
    assert read_source("webdataset", tmp_path).classes == ("0", "1")
