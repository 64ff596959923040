"""A small shard set, and where copies of it may lie."""

from pathlib import Path

import pytest
from remote_sets import write_set

from shards.cache import CacheOptions


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_set(tmp_path / "set")
    return tmp_path / "set"


@pytest.fixture
def options(tmp_path: Path) -> CacheOptions:
    return CacheOptions(folder=tmp_path / "cache")
