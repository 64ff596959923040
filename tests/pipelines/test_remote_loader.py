"""DALI reading tars from S3: the very batches of the local set, resume included, and what it says when it cannot."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from s3_server import NEEDS_S3, s3_server
from tiny_shards import encode, noise, write_shard_set

from pipelines.loader import Loader
from pipelines.recipe import supervised_natural
from shards.cache import CacheOptions, check_remote_tars, direct_tars, local_set
from shards.errors import MstlError
from shards.remote import upload
from shards.schema import load_manifest

pytestmark = NEEDS_S3
URL = "s3://bucket/deep/a set"


@pytest.fixture(scope="module")
def store() -> Iterator[Any]:
    """An S3 server with an empty bucket, which s3:// names while the tests of this module run."""
    import s3fs

    with pytest.MonkeyPatch.context() as patch, s3_server() as environment:
        for name, value in environment.items():
            patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        fs = s3fs.S3FileSystem()
        fs.mkdir("bucket")
        yield fs
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CacheOptions:
    monkeypatch.setenv("MSTL_CACHE", str(tmp_path / "cache"))
    return CacheOptions()


def load(folder: Path, tars: str | None, **changes: Any) -> Loader:
    settings = {
        "rank": 0, "world": 1, "batch": 8, "epochs": 3, "device": "cpu", "seed": 3, "shuffle": True, "remainder": "keep"
    }  # fmt: skip
    inputs = supervised_natural(32, random_resized_crop=True)
    return Loader(inputs, folder, "train", tars=tars, **{**settings, **changes})


def batches(loader: Loader) -> Iterator[tuple[int, Any]]:
    for epoch in range(loader.epoch, loader.plan.epochs):
        for batch in loader:
            yield epoch, batch


def assert_equal(one: Iterator[tuple[int, Any]], other: Iterator[tuple[int, Any]]) -> int:
    count = 0
    for (epoch, x), (same_epoch, y) in zip(one, other, strict=True):
        assert (epoch, x.sample_ids.tolist(), x.labels.tolist()) == (
            same_epoch, y.sample_ids.tolist(), y.labels.tolist()
        )  # fmt: skip
        assert torch.equal(x.views["x"], y.views["x"])
        count += 1
    return count


@pytest.fixture(scope="module")
def remote_set(store: Any, noise_shards: Path) -> Path:
    """The local original of what lies at URL: 23 images in five tars."""
    upload(noise_shards, URL)
    return noise_shards


@pytest.mark.parametrize("rank", [0, 1])
def test_batches_are_those_of_the_local_set(remote_set: Path, options: CacheOptions, rank: int) -> None:
    manifest = load_manifest(remote_set)
    tars = direct_tars(URL, options)
    assert tars == URL
    check_remote_tars(tars, manifest, ("train",))
    folder = local_set(URL, cache=options, splits=("train",), tars=False)
    assert not list(folder.rglob("*.tar")) and len(list(folder.rglob("*.idx"))) == 5
    changes = {"rank": rank, "world": 2, "batch": 6}
    local, remote = load(remote_set, None, **changes), load(folder, tars, **changes)
    assert assert_equal(batches(local), batches(remote)) == 12


def test_resume_goes_over_between_s3_and_disk(remote_set: Path, options: CacheOptions) -> None:
    folder = local_set(URL, cache=options, splits=("train",), tars=False)
    loader = load(folder, URL)
    running = batches(loader)
    for _ in range(4):
        next(running)
    state = loader.state_dict()
    for other in (load(remote_set, None), load(folder, URL)):
        again = load(folder, URL)
        again.load_state_dict(state)
        other.load_state_dict(state)
        assert assert_equal(batches(again), batches(other)) == 5


def test_many_small_indexes_of_few_tars(store: Any, options: CacheOptions, tmp_path: Path) -> None:
    """A long shuffled order takes each tar many times."""
    original = write_shard_set(tmp_path / "set", noise(60, side=8), per_shard=6)
    upload(original, "s3://bucket/many")
    folder = local_set("s3://bucket/many", cache=options, splits=("train",), tars=False)
    changes = {"epochs": 4, "batch": 20}
    assert assert_equal(
        batches(load(original, None, **changes)), batches(load(folder, "s3://bucket/many", **changes))
    ) == 12  # fmt: skip


def test_a_tar_that_vanishes_is_named_before_and_during_an_epoch(
    store: Any, options: CacheOptions, tmp_path: Path
) -> None:
    original = write_shard_set(tmp_path / "set", noise(23), per_shard=5)
    url = "s3://bucket/vanishing"
    upload(original, url)
    folder = local_set(url, cache=options, splits=("train",), tars=False)
    loader = load(folder, url)
    running = batches(loader)
    next(running)
    store.rm(f"{url}/train/", recursive=True)
    with pytest.raises(MstlError, match=r"s3://bucket/vanishing/train.*: DALI cannot read it \(\w.*Check network"):
        list(running)
    says = r"s3://bucket/vanishing/train/00000\d\.tar: DALI cannot read it \(S3 Object not found\."
    with pytest.raises(MstlError, match=says):
        next(batches(load(folder, url)))
    with pytest.raises(MstlError, match=r"train/000000\.tar: it is missing"):
        check_remote_tars(url, load_manifest(folder), ("train",))


def test_an_image_that_does_not_decode_is_still_named(store: Any, options: CacheOptions, tmp_path: Path) -> None:
    pictures = noise(8)
    pictures[3] = replace(encode(torch.zeros(30, 30, 3, dtype=torch.uint8).numpy()), data=b"no image at all")
    original = write_shard_set(tmp_path / "set", pictures, per_shard=4)
    upload(original, "s3://bucket/broken")
    folder = local_set("s3://bucket/broken", cache=options, splits=("train",), tars=False)
    with pytest.raises(MstlError, match=r"sample 3 in s3://bucket/broken/train/000000\.tar: its image cannot be read"):
        list(batches(load(folder, "s3://bucket/broken")))


def test_no_bucket_and_no_server(remote_set: Path, options: CacheOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = local_set(URL, cache=options, splits=("train",), tars=False)
    with pytest.raises(MstlError, match=r"s3://no-bucket/set/train/\d+\.tar: DALI cannot read it \(.*With --cache"):
        next(batches(load(folder, "s3://no-bucket/set")))
