"""Verdicts that several runs, copies and stores hold: no finding is lost between them."""

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest
from remote_sets import write_set

from shards import cache_room, verdicts
from shards.cache import CacheOptions, local_set
from shards.errors import MstlError
from shards.files import write_atomic
from shards.remote import publish_verdicts, upload
from shards.remote_store import Store, open_store
from shards.schema import load_manifest
from shards.verdicts import Check, Outcome, Part, Verdict, read_verdicts, save_verdicts

URL = "memory://verdicts/set"


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    fsspec.filesystem("memory").store.clear()
    cache_room._held.clear()
    yield
    cache_room._held.clear()
    fsspec.filesystem("memory").store.clear()


def digest_of(folder: Path) -> str:
    return load_manifest(folder).digest()


def verdict(folder: Path, check: Check = "content", outcome: Outcome = "none", other: str | None = None) -> Verdict:
    digest = digest_of(folder)
    a, b = (
        Part(name=name, source="test", digest=of, split=split, images=4)
        for name, of, split in ((other or "set", other or digest, "train"), ("set", digest, "val"))
    )
    return Verdict(check=check, a=a, b=b, outcome=outcome, affected=int(outcome == "found"), unknown=0)


def outcomes(folder: Path) -> dict[str, str]:
    return {v.name: v.outcome for v in read_verdicts(folder, digest_of(folder))}


def test_runs_at_the_same_time_lose_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slowly(path: Path, data: bytes) -> None:
        time.sleep(0.03)
        write_atomic(path, data)

    monkeypatch.setattr(verdicts, "write_atomic", slowly)
    mine = [verdict(folder, other=f"other{at}") for at in range(6)]
    before = sorted(path.name for path in folder.iterdir())
    threads = [threading.Thread(target=save_verdicts, args=(folder, digest_of(folder), [one])) for one in mine]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(outcomes(folder)) == {one.name for one in mine}
    assert sorted(path.name for path in folder.iterdir()) == sorted([*before, "leakage.json"])


def test_a_finding_about_a_copy_outlives_the_stores_silence(folder: Path, options: CacheOptions) -> None:
    save_verdicts(folder, digest_of(folder), [verdict(folder), verdict(folder, "patient")])
    upload(folder, URL)
    copy = local_set(URL, cache=options, splits=(), tars=False)
    assert outcomes(copy) == {"set:train~val:content": "none", "set:train~val:patient": "none"}
    save_verdicts(copy, digest_of(folder), [verdict(folder, outcome="found"), verdict(folder, other="x")])
    again = local_set(URL, cache=options, splits=(), tars=False)
    assert again == copy and outcomes(copy) == {
        "set:train~val:content": "found", "set:train~val:patient": "none", "x:train~set:val:content": "none",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("here", "there", "kept"),
    [("none", "found", "found"), ("unknown", "found", "found"), ("none", "unknown", "unknown"),
     ("unknown", "none", "unknown"), ("found", "unknown", "found"), ("none", "none", "none")],
)  # fmt: skip
def test_of_two_verdicts_the_worse_is_believed(
    folder: Path, options: CacheOptions, here: Outcome, there: Outcome, kept: str
) -> None:
    upload(folder, URL)
    copy = local_set(URL, cache=options, splits=(), tars=False)
    save_verdicts(copy, digest_of(folder), [verdict(folder, outcome=here)])
    save_verdicts(folder, digest_of(folder), [verdict(folder, outcome=there)])
    upload(folder, URL)
    assert outcomes(local_set(URL, cache=options, splits=(), tars=False)) == {"set:train~val:content": kept}


def test_verdicts_are_not_evicted(folder: Path, tmp_path: Path, options: CacheOptions) -> None:
    upload(folder, URL)
    copy = local_set(URL, cache=options, tars=True)
    save_verdicts(copy, digest_of(folder), [verdict(folder, outcome="found")])
    cache_room._held.clear()
    write_set(tmp_path / "other", fill=b"o")
    upload(tmp_path / "other", "memory://verdicts/other")
    tight = CacheOptions(folder=options.place, limit_bytes=3003)
    local_set("memory://verdicts/other", cache=tight, tars=True)
    assert sorted(path.name for path in copy.iterdir() if path.is_file()) == [".lock", "leakage.json"]
    cache_room._held.clear()
    assert outcomes(local_set(URL, cache=options, splits=(), tars=False)) == {"set:train~val:content": "found"}


def test_an_upload_keeps_what_the_store_knows(folder: Path) -> None:
    save_verdicts(folder, digest_of(folder), [verdict(folder, outcome="found")])
    upload(folder, URL)
    (folder / "leakage.json").unlink()
    upload(folder, URL)
    save_verdicts(folder, digest_of(folder), [verdict(folder), verdict(folder, "patient")])
    upload(folder, URL)
    (folder / "leakage.json").write_bytes(open_store(URL).read("leakage.json"))
    assert outcomes(folder) == {"set:train~val:content": "found", "set:train~val:patient": "none"}


def test_publishing_adds_to_the_store_and_replaces_what_was_asked_again(folder: Path, options: CacheOptions) -> None:
    save_verdicts(folder, digest_of(folder), [verdict(folder, outcome="found"), verdict(folder, "patient", "found")])
    upload(folder, URL)
    copy = local_set(URL, cache=options, splits=(), tars=False)
    save_verdicts(copy, digest_of(folder), [verdict(folder, "likeness", "unknown")])
    now = [verdict(folder)]
    save_verdicts(copy, digest_of(folder), now)
    publish_verdicts(copy, URL, now)
    (folder / "leakage.json").write_bytes(open_store(URL).read("leakage.json"))
    expected = {"content": "none", "patient": "found", "likeness": "unknown"}
    assert outcomes(folder) == {f"set:train~val:{check}": outcome for check, outcome in expected.items()}
    assert outcomes(local_set(URL, cache=options, splits=(), tars=False)) == outcomes(folder)


def test_verdicts_are_not_put_beside_another_build(folder: Path, tmp_path: Path, options: CacheOptions) -> None:
    upload(folder, URL)
    copy = local_set(URL, cache=options, splits=(), tars=False)
    write_set(tmp_path / "other", fill=b"o")
    save_verdicts(tmp_path / "other", digest_of(tmp_path / "other"), [verdict(tmp_path / "other", outcome="found")])
    upload(tmp_path / "other", URL, force=True)
    before = open_store(URL).read("leakage.json")
    with pytest.raises(MstlError, match="the set there has changed meanwhile"):
        publish_verdicts(copy, URL, [verdict(folder)])
    assert open_store(URL).read("leakage.json") == before


def test_a_broken_file_in_the_store_is_named(folder: Path, options: CacheOptions) -> None:
    upload(folder, URL)
    open_store(URL).write("leakage.json", b"{")
    with pytest.raises(MstlError, match=rf"{URL}/leakage\.json: it cannot be read .*run: mstl leakage {URL}$"):
        local_set(URL, cache=options, splits=(), tars=False)


def test_another_builds_verdicts_in_the_store_do_not_count(folder: Path, options: CacheOptions) -> None:
    upload(folder, URL)
    other = replace(verdict(folder, outcome="found"), a=replace(verdict(folder).a, digest="0"))
    text = verdicts.format_verdicts("0", [replace(other, b=replace(other.b, digest="0"))])
    assert b'"found"' in text
    open_store(URL).write("leakage.json", text)
    assert outcomes(local_set(URL, cache=options, splits=(), tars=False)) == {}


def test_the_old_build_is_removed_by_several_threads(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(folder, URL)
    write_set(tmp_path / "other", fill=b"u")
    both = threading.Barrier(2, timeout=10)
    real, removed = Store.remove, list[str]()

    def remove(store: Store, name: str) -> None:
        removed.append(name)
        if name in ("train/000000.tar", "train/000000.idx"):
            both.wait()
        real(store, name)

    monkeypatch.setattr(Store, "remove", remove)
    upload(tmp_path / "other", URL, force=True)
    assert removed[:2] == ["dataset.json", ".upload.json"] and len(removed) == 8
