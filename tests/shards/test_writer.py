"""Shard sets: the right samples in tars any reader understands, bad images left out."""

import hashlib
import io
import json
import os
import struct
import zlib
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image
from raw_data import content, encoded, listing_of, members, toy_images
from wds2idx import IndexCreator

from shards.check import check_bytes
from shards.errors import MstlError
from shards.index import read_index
from shards.schema import load_manifest
from shards.sources import read_source
from shards.writer import WriteOptions, write_shards

REAL = os.environ.get("MSTL_TEST_DATA")
OPTIONS = WriteOptions(seed=3, samples_per_shard=10)


@pytest.fixture
def toy(tmp_path):
    return listing_of(tmp_path / "raw", toy_images())


def key_order(folder, split):
    return [
        Path(m.name).stem
        for tar in sorted((folder / split).glob("*.tar"))
        for m, _ in members(tar)
        if m.name.endswith(".cls")
    ]


def test_every_sample_is_there_once_with_its_components(tmp_path, toy):
    manifest = write_shards(toy, tmp_path / "set", OPTIONS)
    assert manifest == load_manifest(tmp_path / "set")
    assert list(load_manifest(tmp_path / "set").splits) == ["train", "val", "test"]
    assert [(name, [s.samples for s in shards]) for name, shards in manifest.splits.items()] == [
        ("train", [10, 10, 3]), ("val", [7]), ("test", [5])
    ]  # fmt: skip
    assert manifest.class_counts == {"train": (12, 11), "val": (4, 3), "test": (3, 2)}
    source = {item.origin: item for item in toy.items}
    expected_id, seen = 0, set()
    for split in ("train", "val", "test"):
        for shard in manifest.shards(split):
            assert shard.first_id == expected_id
            found = members(tmp_path / "set" / shard.path)
            for start in range(0, len(found), 4):
                image, cls, about, ids = (data for _, data in found[start : start + 4])
                facts = json.loads(about)
                item = source[facts["origin"]]
                checked = check_bytes(image)
                assert [m.name for m, _ in found[start : start + 4]] == [
                    f"{item.key}.{ext}" for ext in ("png" if checked.format == "PNG" else "jpg", "cls", "json", "i64")
                ]
                assert image == item.blob.read()
                assert cls == str(item.label).encode()
                assert ids == struct.pack("<qq", expected_id, item.label)
                assert zlib.crc32(about[: about.index(b',"~crc32"')]) == facts.pop("~crc32")
                assert facts == {
                    "mode": checked.mode, "format": checked.format, "stored_sha256": checked.sha256,
                    "class_name": ("no", "yes")[item.label], "label": item.label, "patient": item.patient,
                    "source": "toy", "origin": item.origin, "sha256": hashlib.sha256(image).hexdigest(),
                    "split": split, "width": checked.width, "height": checked.height, "modality": "ct",
                    "key": item.key,
                }  # fmt: skip
                assert item.split == split
                seen.add(item.origin)
                expected_id += 1
    assert seen == set(source) and expected_id == len(source)
    assert (manifest.source, manifest.modality, manifest.classes, manifest.refused) == ("toy", "ct", ("no", "yes"), 0)
    assert manifest.seed == 3 and manifest.options == OPTIONS.recorded(toy)
    named = {"listing_digest", "rendering", "samples_per_shard", "resize", "quality", "val_fraction", "decode"}
    assert set(manifest.options) == named


def test_the_folder_holds_what_the_manifest_says_and_no_more(tmp_path, toy):
    out = tmp_path / "set"
    manifest = write_shards(toy, out, OPTIONS)
    shards = [shard for name in manifest.splits for shard in manifest.shards(name)]
    for shard in shards:
        tar, index = (out / shard.path).read_bytes(), (out / shard.index).read_bytes()
        assert (len(tar), hashlib.sha256(tar).hexdigest()) == (shard.bytes, shard.sha256)
        assert hashlib.sha256(index).hexdigest() == shard.index_sha256
    named = {shard.path for shard in shards} | {shard.index for shard in shards}
    assert set(content(out)) == named | {"dataset.json", "quarantine.jsonl"}
    assert "train/000002.tar" in named
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raw", "set"]


def test_indexes_are_those_dali_makes(tmp_path, toy):
    manifest = write_shards(toy, tmp_path / "set", OPTIONS)
    for split in manifest.splits:
        for shard in manifest.shards(split):
            theirs = tmp_path / "theirs.idx"
            with closing(IndexCreator(str(tmp_path / "set" / shard.path), str(theirs), verbose=False)) as creator:
                creator.create_index()
            assert (tmp_path / "set" / shard.index).read_text() == theirs.read_text()
            assert len(read_index(theirs)) == shard.samples


def test_webdataset_reads_the_tars(tmp_path, toy):
    manifest = write_shards(toy, tmp_path / "set", OPTIONS)
    urls = [str(tmp_path / "set" / shard.path) for shard in manifest.shards("train")]
    source = {item.key: item for item in toy.items}
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [s["__key__"] for s in samples] == key_order(tmp_path / "set", "train")
    assert len(samples) == 23
    for sample in samples:
        item = source[sample["__key__"]]
        assert sample.get("jpg", sample.get("png")) == item.blob.read()
        assert int(sample["cls"]) == item.label and json.loads(sample["json"])["patient"] == item.patient


def test_samples_are_shuffled_by_the_seed_alone(tmp_path):
    images = toy_images(60, 0, 0)
    listing = listing_of(tmp_path / "raw", images)
    backwards = listing_of(tmp_path / "raw", dict(reversed(images.items())))
    orders = []
    for number, (what, seed) in enumerate(((listing, 0), (backwards, 0), (listing, 1))):
        write_shards(what, tmp_path / str(number), WriteOptions(seed=seed, samples_per_shard=25))
        orders.append(key_order(tmp_path / str(number), "train"))
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2]) != orders[0]
    moved = sum(abs(i - int(key.split("_")[1])) for i, key in enumerate(orders[0])) / 60
    assert 12 < moved < 28  # a uniform shuffle of 60 moves a sample by 20 on average


def test_bad_images_are_quarantined_and_leave_a_gap_in_the_ids(tmp_path):
    images = toy_images()
    bad = {"val/1/page@p1.png": b"<html>", "train/0/cut@p1.jpg": encoded(1, "JPEG")[:-40], "train/1/void@p1.png": b""}
    listing = listing_of(tmp_path / "raw", {**bad, **images})
    manifest = write_shards(listing, tmp_path / "set", OPTIONS)
    lines = [json.loads(line) for line in (tmp_path / "set/quarantine.jsonl").read_text().splitlines()]
    assert [(line["key"], line["origin"]) for line in lines] == [
        ("cut", "train/0/cut@p1.jpg"), ("page", "val/1/page@p1.png"), ("void", "train/1/void@p1.png")
    ]  # fmt: skip
    assert "truncated" in lines[0]["reason"] and lines[2]["reason"] == "the file is empty"
    assert manifest.refused == 3 and manifest.samples("train") == 23 and manifest.samples("val") == 7
    write_shards(listing_of(tmp_path / "raw", images), tmp_path / "clean", OPTIONS)
    assert key_order(tmp_path / "set", "train") == key_order(tmp_path / "clean", "train")
    assert [shard.first_id for shard in manifest.shards("train")] == [0, 10, 20]
    assert [shard.first_id for shard in manifest.shards("val")] == [25]
    for shard in manifest.shards("train"):
        ids = [struct.unpack("<2q", d)[0] for m, d in members(tmp_path / "set" / shard.path) if m.name.endswith(".i64")]
        assert ids == list(range(shard.first_id, shard.first_id + shard.samples))


def test_a_shard_of_refused_images_alone_is_left_out(tmp_path):
    listing = listing_of(tmp_path / "raw", {**toy_images(12, 0, 0), "val/0/page.png": b"<html>"})
    manifest = write_shards(listing, tmp_path / "set", OPTIONS)
    assert list(manifest.splits) == ["train"] and manifest.refused == 1
    assert not (tmp_path / "set/val").exists()


def test_equal_bytes_are_counted(tmp_path):
    images = toy_images(12, 4, 0)
    first, *_, last = images
    images[first] = images[last]
    images["train/1/again.png"] = images[last]
    assert write_shards(listing_of(tmp_path / "raw", images), tmp_path / "set", OPTIONS).duplicates == 2


def test_too_many_bad_images_fail_and_a_larger_budget_goes_on(tmp_path):
    bad = {f"train/0/bad{i}.png": b"x" for i in range(4)}
    listing = listing_of(tmp_path / "raw", {**toy_images(), **bad})
    with pytest.raises(MstlError, match=r"at least 4 were refused, 3 are allowed; train/0/bad"):
        write_shards(listing, tmp_path / "set", OPTIONS)
    assert not (tmp_path / "set").exists()
    manifest = write_shards(listing, tmp_path / "set", WriteOptions(seed=3, samples_per_shard=10, max_bad=0.2))
    assert manifest.refused == 4


def test_no_training_image_left_is_an_error(tmp_path):
    listing = listing_of(tmp_path / "raw", {"train/0/a.png": b"x", "val/0/b.png": encoded(1)})
    with pytest.raises(MstlError, match="no training image is left"):
        write_shards(listing, tmp_path / "set", OPTIONS)


def test_resizing_keeps_the_facts_of_the_source(tmp_path):
    images = {"train/0/big.jpg": encoded(1, "JPEG", (60, 40)), "train/1/small.png": encoded(2, "PNG", (20, 20))}
    listing = listing_of(tmp_path / "raw", images, modality="natural")
    manifest = write_shards(listing, tmp_path / "set", WriteOptions(resize=20, quality=70))
    found = {m.name: data for m, data in members(tmp_path / "set" / manifest.shards("train")[0].path)}
    assert found["small.png"] == images["train/1/small.png"]
    stored = check_bytes(found["big.jpg"])
    assert (stored.width, stored.height, stored.format) == (30, 20, "JPEG")
    about = json.loads(found["big.json"])
    assert (about["width"], about["height"]) == (60, 40)
    assert about["sha256"] == hashlib.sha256(images["train/0/big.jpg"]).hexdigest()
    assert about["stored_sha256"] == hashlib.sha256(found["big.jpg"]).hexdigest() != about["sha256"]
    assert manifest.options["resize"] == 20 and manifest.options["quality"] == 70


def test_validation_is_carved_where_the_source_has_none(tmp_path):
    listing = listing_of(tmp_path / "raw", toy_images(40, 0, 4), carve_val=True)
    manifest = write_shards(listing, tmp_path / "set", WriteOptions(val_fraction=0.25))
    assert manifest.samples("train") + manifest.samples("val") == 40
    patients = {
        split: {json.loads(data)["patient"] for m, data in members(tmp_path / "set" / manifest.shards(split)[0].path)
                if m.name.endswith("json")}
        for split in ("train", "val")
    }  # fmt: skip
    assert not patients["train"] & patients["val"] and len(patients["val"]) == 5


@pytest.mark.parametrize(
    "values",
    [
        {"samples_per_shard": 0},
        {"resize": 3},
        {"quality": 0},
        {"val_fraction": 1.0},
        {"max_bad": 2.0},
        {"workers": 0},
        {"seed": -1},
        {"seed": 2**31},
    ],
)
def test_options_out_of_range_are_refused(values):
    [name] = values
    with pytest.raises(MstlError, match=name.replace("_", "-")):
        WriteOptions(**values)


@pytest.mark.skipif(REAL is None, reason="MSTL_TEST_DATA names no folder of real data")
def test_real_covid19_ct(tmp_path):
    listing = read_source("covid19-ct", Path(REAL) / "covid19-ct")
    manifest = write_shards(listing, tmp_path / "set", WriteOptions(workers=2, resize=64))
    assert manifest.class_counts == {"train": (234, 191), "val": (58, 60)}
    assert manifest.refused == 0 and set(manifest.splits) == {"train", "val"}
    found = members(tmp_path / "set" / manifest.shards("val")[0].path)
    assert len(found) == 4 * 118
    assert all(
        min(check_bytes(data).width, check_bytes(data).height) <= 64 for m, data in found if m.name[-3:] == "png"
    )


@pytest.mark.parametrize("resize", [None, 16])
def test_images_of_16_bits_are_counted(tmp_path, resize):
    deep = Image.fromarray(np.arange(60000, 60000 + 24 * 24, dtype=np.uint16).reshape(24, 24))
    out = io.BytesIO()
    deep.save(out, "PNG")
    listing = listing_of(tmp_path / "raw", {**toy_images(6, 2, 0), "train/0/deep.png": out.getvalue()})
    manifest = write_shards(listing, tmp_path / "set", WriteOptions(samples_per_shard=2, resize=resize))
    assert manifest.deep == load_manifest(tmp_path / "set").deep == 1
