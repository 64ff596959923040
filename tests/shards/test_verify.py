"""Verifying: every kind of damage is seen and put down to the right file and the right samples."""

import json
import re
import shutil

import pytest
from raw_data import encoded, listing_of, toy_images

from shards.errors import MstlError
from shards.index import read_index
from shards.schema import load_manifest
from shards.verify import Damage, check_content, check_files, describe_samples, find_damage
from shards.writer import WriteOptions, write_shards

OTHER = "its content is not what the manifest describes"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Shards as the images came (JPEG, PNG and a BMP), and with everything brought down to 16 pixels."""
    folder = tmp_path_factory.mktemp("verify")
    images = {**toy_images(), "train/0/as@bmp.bmp": encoded(999, "BMP")}
    listing = listing_of(folder / "raw", images, modality="natural")
    for name, resize in (("kept", None), ("small", 16)):
        if resize:
            images = {path: encoded(i, "JPEG" if path.endswith("jpg") else "PNG", (40, 30))
                      for i, path in enumerate(toy_images())}  # fmt: skip
            listing = listing_of(folder / "large", images, modality="natural")
        write_shards(listing, folder / name, WriteOptions(samples_per_shard=12, resize=resize))
    return folder


@pytest.fixture(params=["kept", "small"])
def folder(request, built, tmp_path):
    return shutil.copytree(built / request.param, tmp_path / "set")


def find(folder):
    return find_damage(folder, load_manifest(folder))


def change(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 0x41
    path.write_bytes(data)


def test_a_whole_set_is_whole(folder):
    manifest = load_manifest(folder)
    assert find(folder) == []
    check_files(folder, manifest)
    check_content(folder, manifest, "train")


@pytest.mark.parametrize("ext", ["cls", "json", "i64", "png", "jpg", "header"])
def test_a_changed_byte_is_put_down_to_its_sample(folder, ext):
    sample, component = next(
        (sample, c)
        for sample in read_index(folder / "train/000001.idx")
        for c in sample
        if ext in (c.ext, "header") and "bmp" not in c.name
    )
    where = {"header": -500, "json": component.size // 2, "i64": 0, "cls": 0}.get(ext, 2)  # of an image: its magic
    change(folder / "train/000001.tar", component.offset + where)
    [damage] = find(folder)
    key = sample[0].name.split(".")[0]
    assert (damage.path, damage.why) == ("train/000001.tar", OTHER)
    # Nothing holds the text of a json but the tar's own digest: a changed origin or patient cannot be told.
    assert damage.samples == (key,) or (ext == "json" and damage.samples == ())
    manifest = load_manifest(folder)
    check_files(folder, manifest)  # sizes are as before
    with pytest.raises(MstlError, match=rf"shard .*train/000001\.tar: {OTHER}"):
        check_content(folder, manifest, "train")
    check_content(folder, manifest, "val")


def test_a_pixel_of_a_jpeg_stored_as_it_came_is_noticed(built, tmp_path):
    folder = shutil.copytree(built / "kept", tmp_path / "set")
    component = next(c for s in read_index(folder / "train/000000.idx") for c in s if c.ext == "jpg")
    change(folder / "train/000000.tar", component.offset + component.size - 5)  # it decodes all the same
    assert [damage.samples for damage in find(folder)] == [(component.name.split(".")[0],)]


def test_a_changed_end_belongs_to_no_sample(folder):
    change(folder / "train/000000.tar", -1)
    assert find(folder) == [Damage(path="train/000000.tar", why=OTHER)]


def test_a_truncated_tar_names_what_it_lost(folder):
    path, index = folder / "train/000000.tar", read_index(folder / "train/000000.idx")
    cut = index[9][0].offset + 1
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:cut])
    [damage] = find(folder)
    assert damage.why == f"it has {cut} bytes and was written with {size}"
    assert damage.samples == tuple(sample[0].name.split(".")[0] for sample in index[9:])
    for check in (check_files, lambda *args: check_content(*args, "train")):
        with pytest.raises(MstlError, match=f"it has {cut} bytes"):
            check(folder, load_manifest(folder))


def test_missing_files_and_damaged_indexes(folder):
    (folder / "val/000000.tar").unlink()
    (folder / "val/000000.idx").unlink()
    change(folder / "train/000000.idx", 50)
    change(folder / "train/000000.tar", 50)
    missing, other = "it is missing", OTHER
    assert {(d.path, d.why, d.samples) for d in find(folder)} == {
        ("val/000000.tar", missing, ()), ("val/000000.idx", missing, ()),
        ("train/000000.tar", other, ()), ("train/000000.idx", other, ()),
    }  # fmt: skip
    manifest = load_manifest(folder)
    with pytest.raises(MstlError, match="3 of its files"):
        check_files(folder, manifest)
    with pytest.raises(MstlError, match=re.escape("1 of its files are not as they were written, first train/000000.i")):
        check_files(folder, manifest, ["train"])
    check_files(folder, manifest, ["test"])
    with pytest.raises(MstlError, match="it is missing"):
        check_content(folder, manifest, "val")
    with pytest.raises(MstlError, match="'dev'"):
        check_files(folder, manifest, ["dev"])


def test_progress_counts_shards(folder):
    said = []

    class Progress:
        def start(self, total, what):
            said.append((what, total))

        def advance(self, n=1):
            said.append(n)

    find_damage(folder, load_manifest(folder), Progress())
    total = sum(len(shards) for shards in json.loads((folder / "dataset.json").read_text())["splits"].values())
    assert said == [("checking shards", total), *[1] * total]


def test_samples_in_words():
    damage = Damage(path="a", why="b", samples=("x", "y", "z"))
    assert describe_samples(damage, most=2) == "3 samples: x, y, ..."
    assert describe_samples(Damage(path="a", why="b", samples=("x",)), most=2) == "1 sample: x"
