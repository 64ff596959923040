"""Reading single samples of a shard set."""

import hashlib

import pytest
from raw_data import listing_of, toy_images

from shards.check import check_bytes
from shards.errors import MstlError
from shards.index import format_index, read_index
from shards.read import Record, iter_images, read_image, read_records
from shards.writer import WriteOptions, write_shards


@pytest.fixture
def listing(tmp_path):
    return listing_of(tmp_path / "raw", toy_images())


@pytest.fixture
def folder(tmp_path, listing):
    write_shards(listing, tmp_path / "set", WriteOptions(samples_per_shard=10))
    return tmp_path / "set"


def test_records_and_images_are_those_of_the_source(folder, listing):
    records = [record for split in ("train", "val", "test") for record in read_records(folder, split)]
    assert [record.sample_id for record in records] == list(range(35))
    source = {item.origin: item for item in listing.items}
    for record in records:
        item = source.pop(record.origin)
        image = read_image(folder, record.sample_id)
        checked = check_bytes(image)
        assert image == item.blob.read()
        assert record == Record(
            sample_id=record.sample_id, key=item.key, split=item.split, label=item.label,
            class_name=("no", "yes")[item.label], patient=item.patient, source="toy", origin=item.origin,
            sha256=hashlib.sha256(image).hexdigest(), stored_sha256=hashlib.sha256(image).hexdigest(),
            width=checked.width, height=checked.height, mode=checked.mode, format=checked.format,
        )  # fmt: skip
    assert not source


def test_images_come_with_their_records_and_each_index_is_read_once(folder, listing, monkeypatch):
    read = []
    monkeypatch.setattr("shards.read.read_index", lambda path: read.append(path.name) or read_index(path))
    found = list(iter_images(folder, "train"))
    assert read == ["000000.idx", "000001.idx", "000002.idx"]
    assert [record for record, _ in found] == read_records(folder, "train")
    source = {item.origin: item.blob.read() for item in listing.items}
    assert [image for _, image in found] == [source[record.origin] for record, _ in found]


@pytest.mark.parametrize("sample_id", [-1, 35])
def test_there_is_no_other_sample(folder, sample_id):
    with pytest.raises(MstlError, match=f"sample {sample_id}"):
        read_image(folder, sample_id)


def test_an_unknown_split_and_a_missing_set_are_refused(folder, tmp_path):
    with pytest.raises(MstlError, match="'dev'"):
        read_records(folder, "dev")
    with pytest.raises(MstlError, match=r"no dataset\.json"):
        read_records(tmp_path / "gone", "train")


def test_damaged_shards_are_noticed(folder):
    tar, index = folder / "train/000001.tar", folder / "train/000001.idx"
    whole, listed = tar.read_bytes(), index.read_text()

    def fails(message):
        with pytest.raises(MstlError, match=message):
            read_records(folder, "train")
        tar.write_bytes(whole)
        index.write_text(listed)

    tar.write_bytes(whole[:5000])
    fails("it ends before")
    tar.write_bytes(bytes(len(whole)))
    fails("json of sample 10 cannot be read")
    tar.unlink()
    fails("No such file")
    index.write_text(format_index(read_index(index)[:-1]))
    fails("lists 9 samples, the manifest 10")
    index.write_text(format_index([sample[:2] for sample in read_index(index)]))
    fails("0 of 10 samples have a json")
    index.write_text(format_index([sample[1:] for sample in read_index(index)]))
    with pytest.raises(MstlError, match="sample 10 has no image"):
        read_image(folder, 10)
