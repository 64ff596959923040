"""Building: the same bytes however the build went, and nothing lost that stood at the target."""

import fcntl
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from raw_data import content, listing_of, toy_images

from shards import building, writer
from shards.check import check_blob
from shards.errors import MstlError
from shards.job import RECORDS_NAME, Entry, ShardJob
from shards.schema import load_manifest
from shards.writer import WriteOptions, find_built, write_shards

OPTIONS = WriteOptions(seed=3, samples_per_shard=10)


class Interrupting:
    """Progress that stops the build after some steps of a piece of work."""

    def __init__(self, what, after):
        self.what, self.after, self.now, self.done = what, after, "", 0

    def start(self, total, what):
        self.now, self.done = what, 0

    def advance(self, n=1):
        self.done += n
        if self.now == self.what and self.done >= self.after:
            raise KeyboardInterrupt


@pytest.fixture
def toy(tmp_path):
    return listing_of(tmp_path / "raw", toy_images())


def test_a_build_is_the_same_bytes_again_and_with_two_workers(tmp_path, toy):
    write_shards(toy, tmp_path / "one", OPTIONS)
    write_shards(toy, tmp_path / "again", OPTIONS)
    write_shards(toy, tmp_path / "two", WriteOptions(seed=3, samples_per_shard=10, workers=2))
    assert content(tmp_path / "again") == content(tmp_path / "one")
    assert content(tmp_path / "two") == content(tmp_path / "one")


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(("what", "after"), [("checking images", 32), ("writing shards", 20)])
def test_an_interrupted_build_goes_on_to_the_same_bytes(tmp_path, toy, what, after, workers):
    options = WriteOptions(seed=3, samples_per_shard=10, workers=workers)
    write_shards(toy, tmp_path / "whole", options)
    out = tmp_path / "set"
    with pytest.raises(KeyboardInterrupt):
        write_shards(toy, out, options, Interrupting(what, after))
    assert not out.exists()
    building = tmp_path / "set.building"
    kept = {path: path.stat().st_mtime_ns for path in building.rglob("*.tar")}
    assert len(kept) >= (2 if what == "writing shards" else 0)
    inodes = {path.relative_to(building): path.stat().st_ino for path in kept}
    write_shards(toy, out, options)
    assert content(out) == content(tmp_path / "whole")
    assert {path: (out / path).stat().st_ino for path in inodes} == inodes  # finished shards were not written again
    assert not building.exists()


def test_a_damaged_leftover_is_written_again(tmp_path, toy):
    write_shards(toy, tmp_path / "whole", OPTIONS)
    with pytest.raises(KeyboardInterrupt):
        write_shards(toy, tmp_path / "set", OPTIONS, Interrupting("writing shards", 23))
    building = tmp_path / "set.building"
    tar = building / "train/000000.tar"
    tar.write_bytes(tar.read_bytes()[:-512])
    (building / "train/000001.idx").unlink()
    record = building / RECORDS_NAME / "train-000002.json"
    record.write_text(record.read_text().replace('{"digest": "', '{"digest": "0'))
    (building / "train/000002.tar").write_bytes(bytes((building / "train/000002.tar").stat().st_size))
    (building / "train/.000000.idx.1.tmp").write_bytes(b"torn")  # from a killed process
    (building / "train/000000.tar.tmp").write_bytes(b"torn")
    write_shards(toy, tmp_path / "set", OPTIONS)
    assert content(tmp_path / "set") == content(tmp_path / "whole")


def test_a_build_killed_before_it_began_is_no_obstacle(tmp_path, toy):
    (tmp_path / "set.building").mkdir()
    (tmp_path / "set.building/..build.json.1.tmp").write_bytes(b"torn")
    write_shards(toy, tmp_path / "set", OPTIONS)
    assert sorted(path.name for path in (tmp_path / "set").glob(".*")) == []


def test_a_finished_but_unpublished_build_is_published(tmp_path, toy, monkeypatch):
    write_shards(toy, tmp_path / "whole", OPTIONS)
    rename = Path.rename

    def failing(self, target):
        if self.name == "set.building":
            raise OSError("no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(MstlError, match="cannot be moved there"):
        write_shards(toy, tmp_path / "set", OPTIONS)
    monkeypatch.undo()
    monkeypatch.setattr("shards.writer.check_all", lambda *_, **__: pytest.fail("it was built already"))
    write_shards(toy, tmp_path / "set", OPTIONS)
    assert content(tmp_path / "set") == content(tmp_path / "whole")


def test_leftovers_of_another_build_are_not_mixed_in(tmp_path, toy):
    write_shards(toy, tmp_path / "whole", OPTIONS)
    with pytest.raises(KeyboardInterrupt):
        write_shards(
            toy, tmp_path / "set", WriteOptions(seed=4, samples_per_shard=5), Interrupting("writing shards", 20)
        )
    write_shards(toy, tmp_path / "set", OPTIONS)
    assert content(tmp_path / "set") == content(tmp_path / "whole")


def test_a_source_that_changes_underneath_is_noticed(tmp_path, toy):
    class Meddling(Interrupting):
        def start(self, total, what):
            if what == "writing shards":
                path = Path(toy.items[7].blob.path)
                path.write_bytes(path.read_bytes()[:-1] + b"\0")

    with pytest.raises(MstlError, match=r"changed while the shards were written") as error:
        write_shards(toy, tmp_path / "set", OPTIONS, Meddling("", 1e9))
    assert Path(toy.items[7].blob.path).name in error.value.what
    assert not (tmp_path / "set").exists()


def test_a_set_that_is_there_is_recognised(tmp_path, toy, monkeypatch):
    out = tmp_path / "set"
    assert find_built(toy, out, OPTIONS) is None
    manifest = write_shards(toy, out, OPTIONS)
    monkeypatch.setattr("shards.writer.check_all", lambda *_, **__: pytest.fail("it was built already"))
    assert find_built(toy, out, OPTIONS) == manifest
    assert write_shards(toy, out, WriteOptions(seed=3, samples_per_shard=10, workers=2, max_bad=0.5)) == manifest


def test_another_set_is_refused_and_replaced_only_by_force(tmp_path, toy):
    out = tmp_path / "set"
    write_shards(toy, out, OPTIONS)
    before = content(out)
    other = WriteOptions(seed=4, samples_per_shard=10)
    with pytest.raises(MstlError, match="seed 3, not 4") as error:
        write_shards(toy, out, other)
    assert "--force" in error.value.remedy
    with pytest.raises(MstlError, match="other source files"):
        write_shards(listing_of(tmp_path / "raw", toy_images(22)), out, OPTIONS)
    with pytest.raises(KeyboardInterrupt):
        write_shards(toy, out, other, Interrupting("writing shards", 20), force=True)
    assert content(out) == before
    write_shards(toy, out, other, force=True)
    assert load_manifest(out).seed == 4
    write_shards(toy, tmp_path / "fresh", other)
    assert content(out) == content(tmp_path / "fresh")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fresh", "raw", "set"]


@pytest.mark.parametrize("force", [False, True])
def test_what_is_no_shard_set_is_left_alone(tmp_path, toy, force):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/thesis.txt").write_text("years of work")
    (tmp_path / "other.building").mkdir()
    (tmp_path / "other.building/thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("a file")
    for name in ("docs", "file", "other"):
        with pytest.raises(MstlError, match=r"left alone|not made by mstl"):
            write_shards(toy, tmp_path / name, OPTIONS, force=force)
    assert not (tmp_path / "docs.building").exists()  # refused before any work
    assert (tmp_path / "docs/thesis.txt").exists() and (tmp_path / "other.building/thesis.txt").exists()


def test_an_empty_folder_may_become_a_shard_set(tmp_path, toy):
    (tmp_path / "set").mkdir()
    assert write_shards(toy, tmp_path / "set", OPTIONS).samples("train") == 23


def test_two_processes_do_not_build_the_same_set(tmp_path, toy):
    (tmp_path / "set.building").mkdir()
    with (tmp_path / "set.building/.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(MstlError, match="another mstl shard"):
            write_shards(toy, tmp_path / "set", OPTIONS)


def mid_build(out, toy):
    """A build interrupted after its first shard; returns its workspace."""
    with pytest.raises(KeyboardInterrupt):
        write_shards(toy, out, OPTIONS, Interrupting("writing shards", 10))
    return out.with_name(f"{out.name}.building")


@pytest.mark.parametrize("name", ["train/000000.tar", "train/000000.idx"])
def test_a_leftover_with_other_bytes_of_the_same_size_is_written_again(tmp_path, toy, name):
    write_shards(toy, tmp_path / "whole", OPTIONS)
    path = mid_build(tmp_path / "set", toy) / name
    path.write_bytes(path.read_bytes().replace(b"p", b"q"))
    write_shards(toy, tmp_path / "set", OPTIONS)
    assert content(tmp_path / "set") == content(tmp_path / "whole")


@pytest.mark.parametrize("text", ["", "[]", '{"digest": 1, "shard": {}}', '{"shard": null}'])
def test_a_damaged_record_means_writing_again(tmp_path, toy, text):
    (mid_build(tmp_path / "set", toy) / RECORDS_NAME / "train-000000.json").write_text(text)
    assert write_shards(toy, tmp_path / "set", OPTIONS).samples("train") == 23


def test_the_digest_of_a_job_covers_what_decides_its_bytes(toy):
    item = toy.items[0]
    entry = Entry(item=item, key="k", checked=check_blob(item.blob))
    job = ShardJob(folder="f", split="train", number=0, first_id=0, entries=(entry,), source="toy", modality="ct",
                   classes=("no", "yes"), resize=None, quality=90)  # fmt: skip
    others = [
        replace(job, **change)
        for change in (
            {"split": "val"}, {"first_id": 1}, {"source": "s"}, {"modality": "cxr"}, {"classes": ("no", "maybe")},
            {"resize": 16}, {"quality": 91}, {"entries": (replace(entry, key="j"),)},
            *({"entries": (replace(entry, item=replace(item, **{field: value})),)}
              for field, value in (("label", 1), ("patient", "p"), ("origin", "o"))),
            {"entries": (replace(entry, checked=replace(entry.checked, width=99)),)},
        )
    ]  # fmt: skip
    assert len({job.digest(), *(other.digest() for other in others)}) == len(others) + 1
    assert replace(job, folder="elsewhere").digest() == job.digest()


def test_an_image_mended_between_two_runs_is_taken(tmp_path, toy):
    path = Path(toy.items[4].blob.path)
    good = path.read_bytes()
    path.write_bytes(bytes(len(good)))  # of the same size, so the listing is the same
    assert mid_build(tmp_path / "set", toy).exists()
    path.write_bytes(good)
    assert write_shards(toy, tmp_path / "set", OPTIONS).refused == 0
    write_shards(toy, tmp_path / "whole", OPTIONS)
    assert content(tmp_path / "set") == content(tmp_path / "whole")


def test_force_starts_anew(tmp_path, toy):
    workspace = mid_build(tmp_path / "set", toy)
    inode = (workspace / "train/000000.tar").stat().st_ino
    (workspace / "train/000099.tar").write_bytes(b"of no build")
    (workspace / ".build.json").write_bytes(b"torn")
    with pytest.raises(MstlError, match=r"build\.json: it cannot be read.*--force"):
        write_shards(toy, tmp_path / "set", OPTIONS)
    held = (workspace / "train/000000.tar").open("rb")  # keeps its inode from being given out again
    with held:
        write_shards(toy, tmp_path / "set", OPTIONS, force=True)
    assert (tmp_path / "set/train/000000.tar").stat().st_ino != inode
    assert not (tmp_path / "set/train/000099.tar").exists()


def test_hidden_files_of_others_are_not_adopted(tmp_path, toy):
    (tmp_path / "set.building").mkdir()
    (tmp_path / "set.building/.ssh").write_text("a key")
    with pytest.raises(MstlError, match="not made by mstl shard"):
        write_shards(toy, tmp_path / "set", OPTIONS)
    assert (tmp_path / "set.building/.ssh").read_text() == "a key"


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        ("train/000001.tar", lambda path: path.write_bytes(path.read_bytes()[:-512])),
        ("val/000000.tar", Path.unlink),
        ("test/000000.idx", Path.unlink),
        ("train/000000.idx", lambda path: path.write_bytes(path.read_bytes()[:-40])),
    ],
)
def test_a_damaged_set_is_not_taken_for_built(tmp_path, toy, name, harm):
    out = tmp_path / "set"
    write_shards(toy, out, OPTIONS)
    before = content(out)
    harm(out / name)
    for look in (find_built, write_shards):
        with pytest.raises(MstlError, match="not as they were written") as error:
            look(toy, out, OPTIONS)
        assert name in error.value.why and "--force" in error.value.remedy
    write_shards(toy, out, OPTIONS, force=True)
    assert content(out) == before


@pytest.mark.parametrize("look", [find_built, write_shards])
def test_what_an_interrupted_publication_left_is_removed(tmp_path, toy, look):
    out = tmp_path / "set"
    write_shards(toy, out, OPTIONS)
    before = content(out)
    shutil.copytree(out, tmp_path / ".set.replaced")
    for name in (".build.json", ".lock"):
        (out / name).touch()
    with (out / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # it is still being published
        look(toy, out, OPTIONS)
        assert (tmp_path / ".set.replaced").exists() and (out / ".build.json").exists()
    look(toy, out, OPTIONS)
    assert content(out) == before and not (tmp_path / ".set.replaced").exists()


def test_a_lock_whose_folder_was_published_meanwhile_does_not_count(tmp_path, toy, monkeypatch):
    flock = fcntl.flock

    def publishing_before(handle, how):
        (tmp_path / "set.building").rename(tmp_path / "elsewhere")
        flock(handle, how)

    monkeypatch.setattr(building.fcntl, "flock", publishing_before)
    with pytest.raises(MstlError, match="another mstl shard"):
        write_shards(toy, tmp_path / "set", OPTIONS)
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == [".lock"]


def test_a_set_published_while_waiting_for_the_lock_is_kept(tmp_path, toy, monkeypatch):
    out = tmp_path / "set"
    write_shards(toy, out, OPTIONS)
    inode = out.stat().st_ino
    real, calls = writer._find_built, []
    monkeypatch.setattr(writer, "_find_built", lambda *args: calls.append(1) or (real(*args) if calls[1:] else None))
    write_shards(toy, out, OPTIONS)
    assert out.stat().st_ino == inode and not (tmp_path / "set.building").exists()


def test_the_lock_may_be_read_by_others_but_not_run(tmp_path, toy):
    umask = os.umask(0)
    try:
        assert (mid_build(tmp_path / "set", toy) / ".lock").stat().st_mode & 0o777 == 0o644
    finally:
        os.umask(umask)
