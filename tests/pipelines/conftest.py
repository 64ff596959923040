"""Shard sets for the tests of the pipelines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from tiny_shards import Picture, noise, write_shard_set


@pytest.fixture(scope="session")
def make_shards(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Write pictures as a shard set into a new folder."""

    def make(pictures: Sequence[Picture], per_shard: int = 1000) -> Path:
        return write_shard_set(tmp_path_factory.mktemp("shards") / "set", pictures, per_shard)

    return make


@pytest.fixture(scope="session")
def noise_shards(make_shards: Callable[..., Path]) -> Path:
    """23 distinct images in shards of 5, 5, 5, 5 and 3."""
    return make_shards(noise(23), per_shard=5)
