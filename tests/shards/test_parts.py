"""Parts: several processes convert one set together, and merging them gives the bytes of one."""

import fcntl
import multiprocessing
import shutil
from dataclasses import replace

import pytest
from raw_data import content, encoded, listing_of, toy_images

from shards import building
from shards.errors import MstlError
from shards.job import RECORDS_NAME
from shards.sources import Blob
from shards.writer import Part, WriteOptions, merge_parts, write_part, write_shards

OPTIONS = WriteOptions(seed=3, samples_per_shard=5)


@pytest.fixture
def toy(tmp_path):
    return listing_of(
        tmp_path / "raw", {**toy_images(), "train/0/page.png": b"<html>", "val/0/cut.png": encoded(1)[:50]}
    )


def test_parts_in_any_order_merge_to_the_bytes_of_one_build(tmp_path, toy):
    whole = write_shards(toy, tmp_path / "whole", OPTIONS)
    assert (len(whole.shards("train")), whole.refused) == (5, 2)
    counts = [write_part(toy, tmp_path / "set", OPTIONS, Part(number, 3)) for number in (3, 1, 2)]
    assert sum(shards for shards, _ in counts) == 8 and sum(refused for _, refused in counts) == 2
    assert not (tmp_path / "set").exists()
    assert merge_parts(toy, tmp_path / "set", OPTIONS) == whole
    assert content(tmp_path / "set") == content(tmp_path / "whole")
    assert not (tmp_path / "set.building").exists()


def _part(listing, out, number, of):
    write_part(listing, out, OPTIONS, Part(number, of))


def test_parts_started_together_share_the_workspace(tmp_path, toy):
    write_shards(toy, tmp_path / "whole", OPTIONS)
    context = multiprocessing.get_context("spawn")
    parts = [context.Process(target=_part, args=(toy, tmp_path / "set", 1 + i % 3, 3)) for i in range(4)]  # one twice
    for part in parts:
        part.start()
    for part in parts:
        part.join()
    assert [part.exitcode for part in parts] == [0] * 4
    merge_parts(toy, tmp_path / "set", OPTIONS)
    assert content(tmp_path / "set") == content(tmp_path / "whole")


def test_merging_names_what_is_missing_and_the_plain_command_writes_it(tmp_path, toy):
    write_part(toy, tmp_path / "set", OPTIONS, Part(1, 2))
    with pytest.raises(MstlError, match=r"^4 of 8 shards: no part has written them.*first train/000001") as error:
        merge_parts(toy, tmp_path / "set", OPTIONS)
    assert "--merge" in error.value.remedy
    tars = sorted((tmp_path / "set.building").rglob("*.tar"))
    inodes = [path.stat().st_ino for path in tars]
    manifest = write_shards(toy, tmp_path / "set", OPTIONS)
    kept = [(tmp_path / "set" / path.relative_to(tmp_path / "set.building")).stat().st_ino for path in tars]
    assert len(tars) == 4 and kept == inodes and manifest.samples("train") == 23


def test_a_damaged_part_counts_as_missing(tmp_path, toy):
    for number in (1, 2):
        write_part(toy, tmp_path / "set", OPTIONS, Part(number, 2))
    tar = tmp_path / "set.building/train/000002.tar"
    tar.write_bytes(tar.read_bytes()[:-1] + b"x")
    with pytest.raises(MstlError, match="1 of 8 shards"):
        merge_parts(toy, tmp_path / "set", OPTIONS)
    write_part(toy, tmp_path / "set", OPTIONS, Part(1, 2))
    assert merge_parts(toy, tmp_path / "set", OPTIONS).refused == 2


def test_a_forgotten_option_destroys_nothing(tmp_path, toy):
    """Neither a part nor the merge removes what other parts have written."""
    for number in (1, 2):
        write_part(toy, tmp_path / "set", OPTIONS, Part(number, 2))
    tars = sorted((tmp_path / "set.building").rglob("*.tar"))
    assert len(tars) == 8
    for other, named in (
        (WriteOptions(seed=4, samples_per_shard=5), "seed 3, not 4"),
        (WriteOptions(seed=3), "samples_per_shard 5, not 1000"),
        (WriteOptions(seed=3, samples_per_shard=5, resize=32), "resize None, not 32"),
    ):
        for close in (write_shards, merge_parts):
            with pytest.raises(MstlError, match=f"an unfinished build lies there with {named}"):
                close(toy, tmp_path / "set", other)
        with pytest.raises(MstlError, match=f"an unfinished build lies there with {named}"):
            write_part(toy, tmp_path / "set", other, Part(2, 2))
    assert sorted((tmp_path / "set.building").rglob("*.tar")) == tars
    merge_parts(toy, tmp_path / "set", OPTIONS)


def test_while_a_part_works_others_of_another_build_and_the_merge_wait_outside(tmp_path, toy):
    write_part(toy, tmp_path / "set", OPTIONS, Part(1, 2))
    lock = building.lock_file(tmp_path / "set.building/.lock", shared=True)  # another part is still at work
    assert lock is not None
    with pytest.raises(MstlError, match="an unfinished build lies there"):
        write_part(toy, tmp_path / "set", WriteOptions(seed=4, samples_per_shard=5), Part(2, 2))
    for close in (write_shards, merge_parts):
        with pytest.raises(MstlError, match="another mstl shard is building it"):
            close(toy, tmp_path / "set", OPTIONS)
    write_part(toy, tmp_path / "set", OPTIONS, Part(2, 2))  # of the same build, it shares the place
    fcntl.flock(lock, fcntl.LOCK_UN)
    merge_parts(toy, tmp_path / "set", OPTIONS)


def test_merging_what_nobody_began_makes_nothing(tmp_path, toy):
    with pytest.raises(MstlError, match="no part of it has been written"):
        merge_parts(toy, tmp_path / "set", OPTIONS)
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_parts_may_replace_a_set_when_merged_by_force(tmp_path, toy):
    write_shards(toy, tmp_path / "set", WriteOptions(seed=9))
    for number in (1, 2):
        write_part(toy, tmp_path / "set", OPTIONS, Part(number, 2))
    with pytest.raises(MstlError, match="seed 9, not 3"):
        merge_parts(toy, tmp_path / "set", OPTIONS)
    assert merge_parts(toy, tmp_path / "set", OPTIONS, force=True).seed == 3


def test_a_part_waits_a_while_and_then_says_who_builds(tmp_path, toy, monkeypatch):
    monkeypatch.setattr(building, "PART_WAIT_SECONDS", 0.3)
    (tmp_path / "set.building").mkdir()
    with (tmp_path / "set.building/.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(MstlError, match="another mstl shard is building it"):
            write_part(toy, tmp_path / "set", OPTIONS, Part(1, 2))


def test_an_image_added_meanwhile_is_noticed_when_merging(tmp_path, toy):
    for number in (1, 2):
        write_part(toy, tmp_path / "set", OPTIONS, Part(number, 2))
    more = listing_of(tmp_path / "raw", {**toy_images(24), "train/0/page.png": b"<html>"})
    with pytest.raises(MstlError, match="no part has written them from these files"):
        merge_parts(more, tmp_path / "set", OPTIONS)


def test_the_budget_holds_for_all_parts_together(tmp_path):
    bad = {f"train/0/bad{i}.png": b"x" for i in range(6)}
    listing = listing_of(tmp_path / "raw", {**toy_images(), **bad})
    options = WriteOptions(seed=3, samples_per_shard=2)
    refused = [write_part(listing, tmp_path / "set", options, Part(n, 4))[1] for n in (1, 2, 3, 4)]
    assert sum(refused) == 6 and max(refused) <= 3
    with pytest.raises(MstlError, match=r"at least \d were refused, 3 are allowed"):
        merge_parts(listing, tmp_path / "set", options)


def test_a_workspace_copied_from_another_host_is_as_good(tmp_path, toy):
    """Hosts without a common disk: copy one workspace over the other, then merge."""
    write_shards(toy, tmp_path / "whole", OPTIONS)
    for number, host in ((1, "a"), (2, "b")):
        write_part(toy, tmp_path / host / "set", OPTIONS, Part(number, 2))
    shutil.copytree(tmp_path / "b/set.building", tmp_path / "a/set.building", dirs_exist_ok=True)
    merge_parts(toy, tmp_path / "a/set", OPTIONS)
    assert content(tmp_path / "a/set") == content(tmp_path / "whole")


@pytest.mark.parametrize(("number", "of"), [(0, 3), (4, 3), (1, 0)])
def test_parts_are_counted_from_one(number, of):
    with pytest.raises(MstlError, match="at least 1 and at most the second"):
        Part(number, of)


def test_volumes_are_unpacked_into_the_workspace_and_gone_in_the_set(tmp_path, toy):
    def with_blob(item, blob):
        return replace(item, blob=blob)

    packed = [(item, item.blob.read()) for item in toy.items]
    calls = []

    def unpack(folder, workers, progress):
        calls.append(workers)
        folder.mkdir(exist_ok=True)
        items = []
        for number, (item, data) in enumerate(packed):
            path = folder / f"{number}.png"
            path.write_bytes(data)
            items.append(with_blob(item, Blob(str(path), len(data))))
        return tuple(items)

    volumes = replace(toy, unpack=unpack, items=tuple(with_blob(i, Blob("/nowhere.nii.gz", 1)) for i in toy.items))
    for number in (1, 2):
        write_part(volumes, tmp_path / "set", OPTIONS, Part(number, 2))
    assert (tmp_path / "set.building" / building.UNPACKED_NAME).is_dir()
    manifest = merge_parts(volumes, tmp_path / "set", OPTIONS)
    assert manifest.samples("train") == 23 and calls == [1, 1, 1]
    assert not any((tmp_path / "set" / name).exists() for name in (building.UNPACKED_NAME, RECORDS_NAME))
