"""Building: the same bytes however the build went, and nothing lost that stood at the target."""

import fcntl
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from raw_data import content, encoded, listing_of, toy_images

from shards import writer
from shards.errors import MstlError
from shards.index import read_index
from shards.job import RECORDS_NAME, ShardJob
from shards.schema import load_manifest
from shards.writer import WriteOptions, find_built, write_shards

OPTIONS = WriteOptions(seed=3, samples_per_shard=10)
CONVERTING = "converting images"


class Interrupting:
    """Progress that stops the build after some steps of a piece of work: before the shard they are of is finished."""

    def __init__(self, what, after):
        self.what, self.after, self.now, self.done = what, after, "", 0

    def start(self, total, what):
        self.now, self.done = what, 0

    def advance(self, n=1, *, size_bytes=0, refused=0):
        self.done += n
        if self.now == self.what and self.done >= self.after:
            raise KeyboardInterrupt

    def skip(self, n):
        self.done += n


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
@pytest.mark.parametrize("after", [1, 20])
def test_an_interrupted_build_goes_on_to_the_same_bytes(tmp_path, toy, after, workers):
    options = WriteOptions(seed=3, samples_per_shard=10, workers=workers)
    write_shards(toy, tmp_path / "whole", options)
    out = tmp_path / "set"
    with pytest.raises(KeyboardInterrupt):
        write_shards(toy, out, options, Interrupting(CONVERTING, after))
    assert not out.exists()
    building = tmp_path / "set.building"
    kept = {path: path.stat().st_mtime_ns for path in building.rglob("*.tar")}
    assert len(kept) >= (1 if after == 20 else 0) and (workers == 2 or len(kept) < 5)
    inodes = {path.relative_to(building): path.stat().st_ino for path in kept}
    write_shards(toy, out, options)
    assert content(out) == content(tmp_path / "whole")
    assert {path: (out / path).stat().st_ino for path in inodes} == inodes  # finished shards were not written again
    assert not building.exists()


def test_a_damaged_leftover_is_written_again(tmp_path, toy):
    write_shards(toy, tmp_path / "whole", OPTIONS)
    with pytest.raises(KeyboardInterrupt):
        write_shards(toy, tmp_path / "set", OPTIONS, Interrupting(CONVERTING, 30))
    building = tmp_path / "set.building"
    tar = building / "train/000000.tar"
    tar.write_bytes(tar.read_bytes()[:-512])
    (building / "train/000001.idx").unlink()
    record = building / RECORDS_NAME / "train-000002.json"
    record.write_text(record.read_text().replace('{"digest": "', '{"digest": "0'))
    (building / "train/000002.tar").write_bytes(bytes((building / "train/000002.tar").stat().st_size))
    (building / "train/.000000.idx.host.1.tmp").write_bytes(b"torn")  # from a killed process
    (building / "train/.000000.tar.host.1.tmp").write_bytes(b"torn")
    (building / ".quarantine.jsonl.host.1.tmp").write_bytes(b"torn")
    (building / "train/000099.tar").write_bytes(b"of a longer listing")
    write_shards(toy, tmp_path / "set", OPTIONS)
    assert content(tmp_path / "set") == content(tmp_path / "whole")


def test_a_build_killed_before_it_began_is_no_obstacle(tmp_path, toy):
    (tmp_path / "set.building").mkdir()
    (tmp_path / "set.building/..build.json.host.1.tmp").write_bytes(b"torn")
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
    monkeypatch.setattr("shards.job.read_and_check", lambda *_, **__: pytest.fail("it was built already"))
    write_shards(toy, tmp_path / "set", OPTIONS)
    assert content(tmp_path / "set") == content(tmp_path / "whole")


def test_shards_of_another_build_are_kept_until_force_discards_them(tmp_path, toy):
    write_shards(toy, tmp_path / "whole", OPTIONS)
    other = WriteOptions(seed=4, samples_per_shard=5)
    with pytest.raises(KeyboardInterrupt):
        write_shards(toy, tmp_path / "set", other, Interrupting(CONVERTING, 20))
    left = sorted((tmp_path / "set.building").rglob("*.tar"))
    with pytest.raises(MstlError, match=r"unfinished build lies there with samples_per_shard 5, not 10, seed 4, not 3"):
        write_shards(toy, tmp_path / "set", OPTIONS)
    assert left and sorted((tmp_path / "set.building").rglob("*.tar")) == left
    write_shards(toy, tmp_path / "set", OPTIONS, force=True)
    assert content(tmp_path / "set") == content(tmp_path / "whole")


def test_a_build_that_finished_nothing_is_no_obstacle_to_another(tmp_path, toy):
    with pytest.raises(KeyboardInterrupt):
        write_shards(toy, tmp_path / "set", WriteOptions(seed=4), Interrupting(CONVERTING, 1))
    assert write_shards(toy, tmp_path / "set", OPTIONS).seed == 3


def test_a_set_that_is_there_is_recognised(tmp_path, toy, monkeypatch):
    out = tmp_path / "set"
    assert find_built(toy, out, OPTIONS) is None
    manifest = write_shards(toy, out, OPTIONS)
    monkeypatch.setattr("shards.job.read_and_check", lambda *_, **__: pytest.fail("it was built already"))
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
        write_shards(toy, out, other, Interrupting(CONVERTING, 20), force=True)
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
        write_shards(toy, out, OPTIONS, Interrupting(CONVERTING, 20))
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
    job = ShardJob(folder="f", split="train", number=0, first_id=0, entries=(("k", item),), source="toy",
                   modality="ct", classes={0: "no", 1: "yes"}, resize=None, quality=90, decode=True, allowed=3,
                   write=True)  # fmt: skip
    others = [
        replace(job, **change)
        for change in (
            {"split": "val"}, {"number": 1}, {"first_id": 1}, {"source": "s"}, {"modality": "cxr"},
            {"classes": {0: "no", 1: "maybe"}}, {"resize": 16}, {"quality": 91}, {"decode": False},
            {"entries": (("j", item),)}, {"entries": ()},
            *({"entries": (("k", replace(item, **{field: value})),)}
              for field, value in (("label", 1), ("patient", "p"), ("origin", "o"),
                                   ("blob", replace(item.blob, size=item.blob.size + 1)))),
        )
    ]  # fmt: skip
    assert len({job.digest(), *(other.digest() for other in others)}) == len(others) + 1
    assert replace(job, folder="elsewhere", allowed=9, write=False).digest() == job.digest()


def test_an_image_mended_between_two_runs_is_taken(tmp_path, toy):
    path = Path(toy.items[4].blob.path)
    good = path.read_bytes()
    path.write_bytes(bytes(len(good)))  # of the same size, so the listing is the same
    with pytest.raises(KeyboardInterrupt):
        write_shards(toy, tmp_path / "set", OPTIONS, Interrupting(CONVERTING, len(toy.items)))
    records = (tmp_path / "set.building" / RECORDS_NAME).iterdir()
    assert sum("it is none of" in record.read_text() for record in records) == 1
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

    monkeypatch.setattr(fcntl, "flock", publishing_before)
    with pytest.raises(MstlError, match="another mstl shard"):
        write_shards(toy, tmp_path / "set", OPTIONS)
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == [".lock"]


def test_a_set_published_while_waiting_for_the_lock_is_kept(tmp_path, toy, monkeypatch):
    out = tmp_path / "set"
    write_shards(toy, out, OPTIONS)
    inode = out.stat().st_ino
    real, calls = writer.find_built, []
    monkeypatch.setattr(writer, "find_built", lambda *args: calls.append(1) or (real(*args) if calls[1:] else None))
    write_shards(toy, out, OPTIONS)
    assert out.stat().st_ino == inode and not (tmp_path / "set.building").exists()


def test_the_lock_may_be_read_by_others_but_not_run(tmp_path, toy):
    umask = os.umask(0)
    try:
        assert (mid_build(tmp_path / "set", toy) / ".lock").stat().st_mode & 0o777 == 0o644
    finally:
        os.umask(umask)


def test_an_image_written_again_since_is_read_again(tmp_path, toy):
    """Of the same size, so that only its time tells; the shards it does not touch are kept."""
    workspace = mid_build(tmp_path / "set", toy)
    first = [part.name for part in read_index(workspace / "train/000000.idx")[3]]
    path = next(Path(item.blob.path) for item in toy.items if f"{item.key}.cls" in first)
    inode = (workspace / "train/000000.tar").stat().st_ino
    held = (workspace / "train/000000.tar").open("rb")
    with held:
        os.utime(path)  # touched and not changed: nothing to do
        with pytest.raises(KeyboardInterrupt):
            write_shards(toy, tmp_path / "set", OPTIONS, Interrupting(CONVERTING, 20))
        assert (workspace / "train/000000.tar").stat().st_ino == inode
        changed = encoded(777, "JPEG" if path.suffix == ".jpg" else "PNG")
        changed += bytes(max(0, path.stat().st_size - len(changed)))
        path.write_bytes(changed[: path.stat().st_size] if path.suffix == ".png" else changed)
        listing = toy if path.stat().st_size == len(changed) else listing_again(toy, path)
        write_shards(listing, tmp_path / "set", OPTIONS)
        assert (tmp_path / "set/train/000000.tar").stat().st_ino != inode
    write_shards(listing, tmp_path / "whole", OPTIONS)
    assert content(tmp_path / "set") == content(tmp_path / "whole")


def listing_again(listing, path):
    """The listing with the size that a file has now."""
    items = tuple(
        replace(item, blob=replace(item.blob, size=path.stat().st_size)) if item.blob.path == str(path) else item
        for item in listing.items
    )
    return replace(listing, items=items)


def test_an_image_more_changes_its_own_shard_alone(tmp_path, toy):
    """Shards of an interrupted build that the new image does not touch are kept."""
    out = tmp_path / "set"
    with pytest.raises(KeyboardInterrupt):
        write_shards(toy, out, OPTIONS, Interrupting(CONVERTING, len(toy.items)))
    kept = {path.name: path.stat().st_ino for path in (tmp_path / "set.building/train").glob("*.tar")}
    more = listing_of(tmp_path / "raw", {**toy_images(), "test/1/zz@p9.png": encoded(500)})
    manifest = write_shards(more, out, OPTIONS)
    assert manifest.samples("test") == 6 and len(kept) == 3
    assert {path.name: path.stat().st_ino for path in (out / "train").glob("*.tar")} == kept


def test_a_set_with_more_refused_images_than_allowed_now_is_not_taken(tmp_path):
    listing = listing_of(tmp_path / "raw", {**toy_images(), "train/0/bad.png": b"x"})
    write_shards(listing, tmp_path / "set", OPTIONS)
    with pytest.raises(MstlError, match="1 images were refused when it was built, 0 are allowed now"):
        write_shards(listing, tmp_path / "set", replace(OPTIONS, max_bad=0))


def test_a_mount_point_is_refused_before_the_work(tmp_path, toy, monkeypatch):
    monkeypatch.setattr(Path, "is_mount", lambda path: path == tmp_path / "set")
    with pytest.raises(MstlError, match="a file system is mounted there"):
        write_shards(toy, tmp_path / "set", OPTIONS)
    assert not (tmp_path / "set.building").exists()


def test_another_version_of_an_encoder_does_not_go_on_with_a_build(tmp_path, toy, monkeypatch):
    workspace = mid_build(tmp_path / "set", toy)
    monkeypatch.setattr(writer.PIL, "__version__", "1.1.7")
    with pytest.raises(MstlError, match=r"an unfinished build lies there with Pillow .*, not '1\.1\.7'"):
        write_shards(toy, tmp_path / "set", OPTIONS)
    assert list(workspace.rglob("*.tar"))
    assert write_shards(toy, tmp_path / "set", OPTIONS, force=True).samples("train") == 23


def test_an_image_gone_since_is_named_and_not_the_shard(tmp_path, toy):
    workspace = mid_build(tmp_path / "set", toy)
    first = {part.name for sample in read_index(workspace / "train/000000.idx") for part in sample}
    path = next(Path(item.blob.path) for item in toy.items if f"{item.key}.cls" in first)
    path.unlink()
    with pytest.raises(MstlError, match=r"^image .*: it cannot be read \(No such file or directory\)"):
        write_shards(toy, tmp_path / "set", OPTIONS)
    assert (workspace / "train/000000.tar").exists()
