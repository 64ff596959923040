"""Verifying: every kind of damage is seen and put down to the right file and the right samples."""

import json
import re
import shutil
from bisect import bisect_right

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
    where = {"header": -500, "json": component.size // 2, "i64": 0, "cls": 0}.get(ext, component.size // 2)
    change(folder / "train/000001.tar", component.offset + where)
    [damage] = find(folder)
    key = sample[0].name.split(".")[0]
    assert (damage.path, damage.why) == ("train/000001.tar", OTHER)
    assert damage.samples == (key,)
    manifest = load_manifest(folder)
    check_files(folder, manifest)  # sizes are as before
    with pytest.raises(MstlError, match=rf"shard .*train/000001\.tar: {OTHER}"):
        check_content(folder, manifest, "train")
    check_content(folder, manifest, "val")


def test_any_flipped_bit_of_a_sample_is_put_down_to_it(folder):
    """Every 37th byte from the first header to the last padding, whatever it means."""
    path, index = folder / "train/000001.tar", read_index(folder / "train/000001.idx")
    whole = path.read_bytes()
    first = [sample[0].offset - 512 for sample in index]
    manifest = load_manifest(folder)
    for at in range(0, len(whole) - 1024, 37):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        owner = index[bisect_right(first, at) - 1][0].name.split(".")[0]
        [damage] = find_damage(folder, manifest)
        assert (damage.path, damage.samples) == ("train/000001.tar", (owner,))


def test_a_foreign_or_stale_index_is_noticed(folder):
    own, other = folder / "train/000000.idx", folder / "train/000001.idx"
    shutil.copy(other, own)
    [damage] = find(folder)
    assert (damage.path, damage.why) == ("train/000000.idx", OTHER)


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

        def advance(self, n=1, *, size_bytes=0, refused=0):
            said.append(n)

        def skip(self, n):
            said.append(-n)

    find_damage(folder, load_manifest(folder), Progress())
    total = sum(len(shards) for shards in json.loads((folder / "dataset.json").read_text())["splits"].values())
    assert said == [("checking shards", total), *[1] * total]


def test_samples_in_words():
    damage = Damage(path="a", why="b", samples=("x", "y", "z"))
    assert describe_samples(damage, most=2) == "3 samples: x, y, ..."
    assert describe_samples(Damage(path="a", why="b", samples=("x",)), most=2) == "1 sample: x"


def test_the_list_of_refused_images_and_strays_are_checked_too(folder):
    with (folder / "quarantine.jsonl").open("a") as file:
        file.write("{}\n")
    (folder / "train/000009.tar").write_bytes(b"of another set")
    assert [(damage.path, damage.why) for damage in find(folder)] == [
        ("quarantine.jsonl", OTHER), ("train/000009.tar", "it is no part of the set")
    ]  # fmt: skip
