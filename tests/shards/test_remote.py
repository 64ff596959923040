"""Shard sets at URLs: what an upload leaves behind, what the cache brings, checks and lets go, and every failure."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pytest
from remote_sets import write_set
from s3_server import NEEDS_S3, s3_server

from shards import cache_room
from shards.cache import CacheOptions, check_remote_tars, direct_tars, local_set
from shards.errors import MstlError
from shards.progress import QUIET
from shards.remote import upload
from shards.remote_store import THREADS, Store, in_threads, is_url, location, open_store
from shards.remote_verify import find_remote_damage
from shards.schema import Manifest, load_manifest
from shards.verify import check_content, check_files

FILES = [f"{split}/{name}.{kind}" for split, name in (("train", "000000"), ("train", "000001"), ("val", "000000"))
         for kind in ("idx", "tar")]  # fmt: skip


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    """No set in memory, and no copy held by what a test before has read."""
    fsspec.filesystem("memory").store.clear()
    cache_room._held.clear()
    yield
    cache_room._held.clear()


def files_of(where: Path) -> list[str]:
    return sorted(str(path.relative_to(where)) for path in where.rglob("*") if path.is_file() and path.name != ".lock")


class Recorded:
    """A store that notes what it is asked to put, and stops after `most` files."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, most: int = 1000) -> None:
        self.names: list[str] = []
        real_put, real_write = Store.put, Store.write

        def put(store: Store, name: str, file: Path) -> None:
            if len(self.names) >= most:
                raise MstlError(name, why="the line is cut", remedy="")
            self.names.append(name)
            real_put(store, name, file)

        def write(store: Store, name: str, data: bytes) -> None:
            self.names.append(name)
            real_write(store, name, data)

        monkeypatch.setattr(Store, "put", put)
        monkeypatch.setattr(Store, "write", write)


# --- upload


def test_an_upload_is_whole_and_the_manifest_comes_last(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = Recorded(monkeypatch)
    upload(folder, "memory://here/set")
    assert told.names[0] == ".upload.json" and told.names[-1] == "dataset.json"
    assert sorted(told.names[1:-1]) == sorted([*FILES, "quarantine.jsonl"])
    there = open_store("memory://here/set")
    for name in [*FILES, "dataset.json"]:
        assert there.read(name) == (folder / name).read_bytes(), name
    assert there.sizes() == {name: len(there.read(name)) for name in [*FILES, *BESIDE]}
    assert there.sizes("val") == {name: len(there.read(name)) for name in FILES if name.startswith("val/")}


BESIDE = ("dataset.json", "quarantine.jsonl", ".upload.json")


def test_an_interrupted_upload_shows_no_set_and_is_continued(
    folder: Path, options: CacheOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(MstlError, match="the line is cut"):
        Recorded(patch, most=4)
        upload(folder, "memory://set")
    put_before = set(open_store("memory://set").sizes()) & set(FILES)
    assert put_before and put_before != set(FILES)
    with pytest.raises(MstlError, match=r"has no dataset.json, so it is missing or its upload has not finished"):
        local_set("memory://set", cache=options, tars=True)
    told = Recorded(monkeypatch)
    upload(folder, "memory://set")
    assert sorted(set(told.names) & set(FILES)) == sorted(set(FILES) - put_before)
    check_content(local_set("memory://set", cache=options, tars=True), load_manifest(folder), "train")


def test_a_file_of_another_size_is_put_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upload(folder, "memory://set")
    open_store("memory://set").write("train/000001.tar", b"half of it")
    told = Recorded(monkeypatch)
    upload(folder, "memory://set")
    assert told.names == ["quarantine.jsonl", "train/000001.tar", "dataset.json"]


def test_another_build_is_refused_unless_forced(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upload(folder, "memory://set")
    write_set(tmp_path / "other", fill=b"u")  # every file of the same size
    with pytest.raises(MstlError, match=r"another build of a shard set lies there.*--force"):
        upload(tmp_path / "other", "memory://set")
    assert open_store("memory://set").read("train/000000.tar") == (folder / "train/000000.tar").read_bytes()
    with monkeypatch.context() as patch, pytest.raises(MstlError, match="the line is cut"):
        Recorded(patch, most=3)
        upload(tmp_path / "other", "memory://set", force=True)
    # Half replaced, it is no set any more and belongs to the new build.
    assert "dataset.json" not in open_store("memory://set").sizes()
    with pytest.raises(MstlError, match="another build"):
        upload(folder, "memory://set")
    upload(tmp_path / "other", "memory://set")
    for name in [*FILES, "dataset.json"]:
        assert open_store("memory://set").read(name) == (tmp_path / "other" / name).read_bytes()


def test_a_set_put_there_by_other_means_is_known_by_its_manifest(folder: Path, tmp_path: Path) -> None:
    fsspec.filesystem("memory").put(f"{folder}/", "/set/", recursive=True)
    upload(folder, "memory://set")
    write_set(tmp_path / "other", fill=b"u")
    open_store("memory://set").write(".upload.json", b"a stale mark")
    with pytest.raises(MstlError, match="another build"):
        upload(tmp_path / "other", "memory://set")


def test_force_repairs_a_damaged_copy(folder: Path, options: CacheOptions) -> None:
    """A repeated upload trusts what has its size; a forced one puts every file."""
    url = "memory://repair/set"
    upload(folder, url)
    store = open_store(url)
    whole = store.read("train/000000.tar")
    store.write("train/000000.tar", bytes(len(whole)))
    upload(folder, url)
    with pytest.raises(MstlError, match="its content is not what the manifest describes"):
        local_set(url, cache=options, tars=True)
    upload(folder, url, force=True)
    assert store.read("train/000000.tar") == whole
    assert load_manifest(local_set(url, cache=options, tars=True)) == load_manifest(folder)


def test_what_is_no_shard_set_is_left_alone(folder: Path) -> None:
    open_store("memory://mine/notes").write("thesis.txt", b"years of work")
    for force in (False, True):
        with pytest.raises(MstlError, match=r"1 files lie there that are no shard set, first thesis\.txt"):
            upload(folder, "memory://mine/notes", force=force)
    with pytest.raises(MstlError, match="the folder of the set itself"):
        upload(folder, f"file://{folder}")


def test_only_whole_sets_are_uploaded(folder: Path) -> None:
    (folder / "val/000000.idx").write_bytes(b"stale")
    with pytest.raises(MstlError, match=r"val/000000\.idx"):
        upload(folder, "memory://set")
    assert open_store("memory://set").sizes() == {}


def test_a_store_that_drops_what_it_is_given_is_caught(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Store, "put", lambda store, name, file: store.write(name, file.read_bytes()[:-1]))
    with pytest.raises(MstlError, match=r"the store holds .* bytes of it after the upload"):
        upload(folder, "memory://set")
    assert "dataset.json" not in open_store("memory://set").sizes()


# --- the cache


def test_a_folder_is_its_own_local_set(folder: Path, options: CacheOptions) -> None:
    assert local_set(folder, cache=options, tars=True) == folder
    assert not options.place.exists()


def test_no_more_is_brought_than_asked_for(folder: Path, options: CacheOptions) -> None:
    upload(folder, f"file://{folder}-there")
    url = f"file://{folder}-there"
    entry = local_set(url, cache=options, splits=(), tars=False)
    assert entry.name == load_manifest(folder).digest() and files_of(entry) == ["dataset.json"]
    local_set(url, cache=options, splits=("val",), tars=False)
    assert files_of(entry) == ["dataset.json", "val/000000.idx"]
    local_set(url, cache=options, splits=("train",), tars=True)
    assert files_of(entry) == ["dataset.json", *[name for name in FILES if name != "val/000000.tar"]]
    assert local_set(url, cache=options, tars=True) == entry
    check_files(entry, load_manifest(folder))
    for name in FILES:
        assert (entry / name).read_bytes() == (folder / name).read_bytes()


def test_what_is_here_is_not_brought_again(
    folder: Path, options: CacheOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(folder, "memory://set")
    entry = local_set("memory://set", cache=options, tars=True)
    (entry / "train/000001.tar").write_bytes(b"cut off")
    (entry / "val/000000.idx").write_bytes(b"stale")
    asked: list[str] = []
    real = Store.pieces
    monkeypatch.setattr(Store, "pieces", lambda store, name: asked.append(name) or real(store, name))  # type: ignore[func-returns-value]
    local_set("memory://set", cache=options, tars=True)
    assert asked == ["dataset.json", "leakage.json", "val/000000.idx", "train/000001.tar"]
    check_content(entry, load_manifest(folder), "train")
    check_content(entry, load_manifest(folder), "val")


def test_a_changed_set_is_another_copy(folder: Path, tmp_path: Path, options: CacheOptions) -> None:
    upload(folder, "memory://set")
    first = local_set("memory://set", cache=options, tars=True)
    other = write_set(tmp_path / "other", fill=b"u")
    upload(tmp_path / "other", "memory://set", force=True)
    second = local_set("memory://set", cache=options, tars=True)
    assert first != second and load_manifest(second) == other
    check_content(second, other, "train")
    check_content(first, load_manifest(folder), "train")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (b"short", r"train/000001\.tar: it has 5 bytes, the manifest says 1001"),
        (b"x" * 1001, r"train/000001\.tar: its content is not what the manifest describes"),
        (None, r"train/000001\.tar: it is missing"),
    ],
)
def test_a_damaged_tar_leaves_nothing_in_the_cache(
    folder: Path, options: CacheOptions, damage: bytes | None, says: str
) -> None:
    upload(folder, "memory://set")
    store = open_store("memory://set")
    if damage is None:
        store.remove("train/000001.tar")
    else:
        store.write("train/000001.tar", damage)
    with pytest.raises(MstlError, match=says):
        local_set("memory://set", cache=options, tars=True)
    entry = options.place / load_manifest(folder).digest()
    assert not [name for name in files_of(entry) if "000001.tar" in name or name.endswith(".part")]
    if damage != b"x" * 1001:
        with pytest.raises(MstlError, match=says):
            check_remote_tars("memory://set", load_manifest(folder), ("train", "val"))
    check_remote_tars("memory://set", load_manifest(folder), ("val",))


def test_a_part_left_by_a_killed_process_is_replaced(folder: Path, options: CacheOptions) -> None:
    upload(folder, "memory://set")
    entry = local_set("memory://set", cache=options, splits=(), tars=False)
    (entry / "train").mkdir()
    (entry / "train/000000.tar.part").write_bytes(b"longer than the file" * 1000)
    local_set("memory://set", cache=options, tars=True)
    check_content(entry, load_manifest(folder), "train")
    assert files_of(entry) == ["dataset.json", *FILES]


def test_processes_share_one_download(folder: Path, tmp_path: Path, options: CacheOptions) -> None:
    """Four processes at once: every tar is opened once, and all see the whole set."""
    upload(folder, f"file://{tmp_path}/there")
    program = """
import sys, time
from pathlib import Path
from shards.cache import CacheOptions, local_set
from shards.remote_store import Store
from shards.schema import load_manifest
from shards.verify import check_content
real = Store.pieces
def slow(store, name):
    sys.stdout.write(name + "\\n")
    for piece in real(store, name):
        yield piece[:500]
        time.sleep(0.05)
        yield piece[500:]
Store.pieces = slow
entry = local_set(sys.argv[1], cache=CacheOptions(folder=Path(sys.argv[2])), tars=True)
check_content(entry, load_manifest(entry), "train")
"""
    words = [sys.executable, "-c", program, f"file://{tmp_path}/there", str(options.place)]
    running = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    said = [process.communicate(timeout=60)[0].split() for process in running]
    assert [process.returncode for process in running] == [0] * 4
    assert sorted(name for names in said for name in names if name in FILES) == sorted(FILES)


# --- the size limit


@pytest.fixture
def three(tmp_path: Path) -> dict[str, Manifest]:
    """Sets a, b and c of about 3,000 bytes of tars in memory."""
    manifests = {}
    for name in "abc":
        manifests[name] = write_set(tmp_path / name, fill=name.encode())
        upload(tmp_path / name, f"memory://{name}")
    return manifests


def held_elsewhere(entry: Path) -> subprocess.Popen[str]:
    program = (
        "import fcntl, sys; f = open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_SH); print('ok', flush=True); "
        "sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program, str(entry / ".lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None and holder.stdout.readline() == "ok\n"
    return holder


def tars_in(entry: Path) -> list[str]:
    return [name for name in files_of(entry) if name.endswith(".tar")]


def test_the_least_recently_used_tars_of_others_give_way(three: dict[str, Manifest], options: CacheOptions) -> None:
    entries = {}
    for name in ("a", "b", "a"):  # b is now the one used least recently
        entries[name] = local_set(f"memory://{name}", cache=options, tars=True)
        cache_room._held.clear()
        time.sleep(0.01)
    stranger = options.place / "photos" / "dear.tar"
    stranger.parent.mkdir()
    stranger.write_bytes(b"x" * 5000)
    manifests = sum((entry / "dataset.json").stat().st_size for entry in entries.values())
    limited = CacheOptions(folder=options.place, limit_bytes=3 * 3003 + manifests - 1500)
    entries["c"] = local_set("memory://c", cache=limited, tars=True)
    assert tars_in(entries["a"]) == tars_in(entries["c"]) == [name for name in FILES if name.endswith(".tar")]
    assert len(tars_in(entries["b"])) == 1
    assert stranger.stat().st_size == 5000
    # What was evicted comes back when it is asked for.
    cache_room._held.clear()
    check_content(local_set("memory://b", cache=options, tars=True), three["b"], "train")


def test_what_has_been_opened_is_held_until_the_process_ends(three: dict[str, Manifest], options: CacheOptions) -> None:
    entry = local_set("memory://a", cache=options, splits=(), tars=False)
    program = "import fcntl, sys; fcntl.flock(open(sys.argv[1]), fcntl.LOCK_EX | fcntl.LOCK_NB)"

    def try_alone() -> str:
        words = [sys.executable, "-c", program, str(entry / ".lock")]
        return subprocess.run(words, capture_output=True, text=True, check=False).stderr

    assert "BlockingIOError" in try_alone()
    local_set("memory://a", cache=options, tars=True)
    assert "BlockingIOError" in try_alone()
    with pytest.raises(MstlError, match=r"running jobs hold .*\(\d,\d+ bytes\) of other data"):
        local_set("memory://b", cache=CacheOptions(folder=options.place, limit_bytes=4000), tars=True)
    assert len(tars_in(entry)) == 3
    cache_room._held.clear()
    assert try_alone() == ""


def test_what_a_running_job_holds_stays(three: dict[str, Manifest], options: CacheOptions) -> None:
    entries = {name: local_set(f"memory://{name}", cache=options, tars=True) for name in "ab"}
    cache_room._held.clear()
    limited = CacheOptions(folder=options.place, limit_bytes=9000)
    with held_elsewhere(entries["a"]) as holder:
        local_set("memory://c", cache=limited, tars=True)
        assert len(tars_in(entries["a"])) == 3 and len(tars_in(entries["b"])) < 3
        with pytest.raises(
            MstlError, match=r"the splits take 0\.000 GB \(3,003 bytes\), the limit .* running jobs hold"
        ):
            local_set("memory://c", cache=CacheOptions(folder=options.place, limit_bytes=5000), tars=True)
        holder.kill()
    assert len(tars_in(entries["a"])) == 3


def test_splits_that_cannot_fit_are_refused_up_front(three: dict[str, Manifest], options: CacheOptions) -> None:
    entry = local_set("memory://a", cache=options, tars=True)
    cache_room._held.clear()
    small = CacheOptions(folder=options.place, limit_bytes=2500)
    with pytest.raises(MstlError, match=r"3,003 bytes\), the limit is 0\.000 GB \(2,500 bytes"):
        local_set("memory://b", cache=small, tars=True)
    assert len(tars_in(entry)) == 3 and not (options.place / three["b"].digest() / "train").exists()
    local_set("memory://b", cache=CacheOptions(folder=options.place, limit_bytes=8000), splits=("val",), tars=True)


def test_another_split_of_the_same_set_gives_way_too(three: dict[str, Manifest], options: CacheOptions) -> None:
    entry = local_set("memory://a", cache=options, splits=("train",), tars=True)
    tight = CacheOptions(folder=options.place, limit_bytes=2500)
    local_set("memory://a", cache=tight, splits=("val",), tars=True)
    assert "val/000000.tar" in tars_in(entry) and len(tars_in(entry)) < 3
    check_content(entry, three["a"], "val")


def test_a_full_disk_is_said_before_anything_is_fetched(
    folder: Path, options: CacheOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(folder, "memory://set")
    usage = type("Usage", (), {"free": 2000})
    monkeypatch.setattr(cache_room.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(MstlError, match=r"\(3,003 bytes\) are still to come, and its disk has .*\(2,000 bytes\) free"):
        local_set("memory://set", cache=options, tars=True)
    local_set("memory://set", cache=options, splits=("val",), tars=True)
    local_set("memory://set", cache=options, splits=("val",), tars=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_cache_that_cannot_be_written_is_named(folder: Path, tmp_path: Path) -> None:
    upload(folder, "memory://set")
    (tmp_path / "closed").mkdir(mode=stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(MstlError, match=r"cache .*closed/c: it cannot be used \(Permission denied\).*--cache"):
        local_set("memory://set", cache=CacheOptions(folder=tmp_path / "closed" / "c"), tars=True)


def test_a_cache_that_is_a_file_is_named(folder: Path, tmp_path: Path) -> None:
    upload(folder, "memory://set")
    (tmp_path / "file").write_text("")
    with pytest.raises(MstlError, match=r"cache .*file: it cannot be used \(Not a directory\)"):
        local_set("memory://set", cache=CacheOptions(folder=tmp_path / "file"), tars=True)


# --- URLs


def test_where_the_cache_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.delenv("MSTL_CACHE", raising=False)
    assert CacheOptions().place == Path("/home/somebody/.cache/mstl")
    monkeypatch.setenv("MSTL_CACHE", str(tmp_path))
    assert CacheOptions().place == tmp_path
    assert CacheOptions(folder=Path("x")).place == Path("x")


@pytest.mark.parametrize(
    ("where", "options", "direct"),
    [
        ("s3://b/set", {}, "s3://b/set"),
        ("s3://b/set", {"folder": Path("c")}, None),
        ("s3://b/set", {"limit_bytes": 5}, None),
        ("s3://key:word@b/set", {}, None),
        ("gs://b/set", {}, None),
        (Path("set"), {}, None),
    ],
)
def test_only_plain_s3_is_read_directly(where: str | Path, options: dict[str, Any], direct: str | None) -> None:
    assert direct_tars(where, CacheOptions(**options)) == direct


def test_locations() -> None:
    assert direct_tars("s3://b/set/", CacheOptions()) == "s3://b/set"
    assert location("s3://b/set//") == "s3://b/set" and is_url("s3://b/set")
    assert location("data/set") == Path("data/set") and not is_url("data/set") and not is_url(Path("s3://b"))


def test_secrets_do_not_come_out_with_a_drivers_message(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store("http://me:secret@host/set", fsspec.filesystem("memory"), "http://me:secret@host/set")
    with pytest.raises(MstlError) as caught:
        store.read("x")
    assert "secret" not in str(caught.value) and "http://host/set/x" in str(caught.value)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("nowhere://set", "it cannot be opened .*Protocol not known: nowhere"),
        ("http://me:secret@h/set?sig=abc", r"http://h/set: the URL of a folder can have no query"),
    ],
)
def test_urls_that_cannot_be_opened(url: str, says: str) -> None:
    with pytest.raises(MstlError, match=says) as caught:
        open_store(url)
    assert "secret" not in str(caught.value) and "abc" not in str(caught.value)


class Failing:
    """A file system whose every call fails."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def open(self, *_: Any, **__: Any) -> None:
        raise self.error

    find = makedirs = put_file = rm_file = open


def no_credentials() -> Exception:
    return pytest.importorskip("botocore.exceptions").NoCredentialsError()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: PermissionError("Forbidden"), r"access is denied \(Forbidden\)\. Check the rights"),
        (lambda: OSError(28, "No space left on device"), r"there is no room for it \(.*No space left"),
        (no_credentials, r"\(Unable to locate credentials\)\. Check network, credentials and endpoint"),
        (lambda: TimeoutError(), r"refuses \(TimeoutError\)"),
        (lambda: FileNotFoundError("b/x"), r"it is not there \(b/x\)"),
        (lambda: NotImplementedError(), "dav:// cannot do this"),
    ],
)
def test_every_failure_of_a_driver_is_the_users_error(make: Callable[[], Exception], says: str, tmp_path: Path) -> None:
    store = Store("dav://host/set", Failing(make()), "set")
    with pytest.raises(MstlError, match=f"dav://host/set/a: .*{says}"):
        store.read("a")
    for call in (lambda: store.sizes("a"), lambda: store.put("a", tmp_path), lambda: store.remove("a")):
        with pytest.raises(MstlError, match=says):
            call()


def test_a_fault_of_the_program_is_not_blamed_on_the_store() -> None:
    with pytest.raises(ZeroDivisionError):
        Store("dav://host/set", Failing(ZeroDivisionError()), "set").read("a")


def test_the_first_failure_ends_the_work_of_threads() -> None:
    began: list[int] = []

    def work(item: int, stop: threading.Event) -> int:
        began.append(item)
        if item == 0:
            raise KeyError(item)
        assert stop.wait(20), "running ones are told"
        return item

    with pytest.raises(KeyError):
        list(in_threads(work, range(1000)))
    assert len(began) <= 2 * THREADS


def test_a_missing_driver_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)  # as if it were not installed
    with pytest.raises(MstlError, match=r"the driver for gs:// is not installed .*pip install gcsfs"):
        open_store("gs://bucket/set")


# --- http


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Callable[[Path], str]]:
    """Serve a folder over HTTP; a file named cut.tar ends in the middle."""
    servers: list[ThreadingHTTPServer] = []

    def serve(root: Path) -> str:
        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *words: object) -> None:
                pass

            def do_HEAD(self) -> None:
                self.do_GET()

            def do_GET(self) -> None:
                file = root / self.path.lstrip("/")
                if not file.is_file():
                    self.send_error(404)
                    return
                data = file.read_bytes()
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(data[: 100 if (root / "cut").exists() and file.suffix == ".tar" else None])

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def test_sets_are_read_over_http(folder: Path, options: CacheOptions, web: Callable[[Path], str]) -> None:
    pytest.importorskip("aiohttp")
    url = web(folder)
    (folder / "cut").touch()
    with pytest.raises(MstlError, match=r"http://127.*\.tar: the store cannot be reached or refuses"):
        local_set(url, cache=options, tars=True)
    assert tars_in(options.place / load_manifest(folder).digest()) == []
    (folder / "cut").unlink()
    check_content(local_set(url, cache=options, tars=True), load_manifest(folder), "train")
    with pytest.raises(MstlError, match=r"http:// cannot do this|refuses"):
        upload(folder, url + "/new")
    with pytest.raises(MstlError, match="missing or its upload has not finished"):
        local_set(url + "/other", cache=options, tars=True)


# --- verify


def test_verify_names_every_damaged_file(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upload(folder, "memory://set")
    manifest, damages = find_remote_damage("memory://set")
    assert (manifest, damages) == (load_manifest(folder), [])
    store = open_store("memory://set")
    store.write("train/000000.idx", b"stale")
    store.remove("train/000001.tar")
    store.write("val/000000.tar", b"short")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    _, damages = find_remote_damage("memory://set", QUIET)
    assert [(damage.path, damage.why.split(" ")[1]) for damage in damages] == [
        ("train/000000.idx", "content"),
        ("train/000001.tar", "is"),
        ("val/000000.tar", "has"),
    ]
    assert "is missing" in damages[1].why and list(temporary.iterdir()) == []


# --- S3


@NEEDS_S3
def test_s3(folder: Path, tmp_path: Path, options: CacheOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    with s3_server() as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        url = "s3://bucket/some set/v1"
        with pytest.raises(MstlError, match=r"s3://bucket/some set/v1: .*bucket does not exist"):
            upload(folder, url)
        s3fs.S3FileSystem.clear_instance_cache()
        fs = s3fs.S3FileSystem()
        assert fs.ls("") == []  # it was not made in passing
        fs.mkdir("bucket")
        upload(folder, url)
        assert sorted(fs.find("bucket")) == sorted(f"bucket/some set/v1/{name}" for name in [*FILES, *BESIDE])
        manifest = load_manifest(folder)
        check_remote_tars(url, manifest, ("train", "val"))
        check_content(local_set(url, cache=options, tars=True), manifest, "train")
        assert find_remote_damage(url) == (manifest, [])
        fs.pipe_file("bucket/some set/v1/val/000000.tar", b"half")
        with pytest.raises(MstlError, match=r"shard s3://bucket/some set/v1/val/000000\.tar: it has 4 bytes"):
            check_remote_tars(url, manifest, ("train", "val"))
        upload(folder, url)
        fs.rm_file("bucket/some set/v1/train/000001.tar")
        with pytest.raises(MstlError, match=r"train/000001\.tar: it is missing"):
            check_remote_tars(url, manifest, ("train",))
    s3fs.S3FileSystem.clear_instance_cache()
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(MstlError, match=r"the store cannot be reached or refuses .*Check network, credentials"):
        local_set(url, cache=options, tars=True)
    s3fs.S3FileSystem.clear_instance_cache()


def test_nothing_of_ours_imports_a_driver_early() -> None:
    """The commands stay quick to start: neither fsspec nor a driver comes with these modules."""
    program = "import sys, shards.cache, shards.remote, shards.remote_verify; "
    program += "print([name for name in ('fsspec', 's3fs') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
