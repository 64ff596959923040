"""What tests of several packages share: tiny sample data, converted by the real converters."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from shards.progress import QUIET
from shards.sample import SampleSize, write_samples
from shards.sources import read_source
from shards.writer import WriteOptions, write_shards

hypothesis.settings.register_profile("untimed", deadline=None)  # how busy a machine is, is no property of the code
hypothesis.settings.load_profile("untimed")

TINY = SampleSize(
    imagenet_classes=2,
    imagenet_train=10,
    imagenet_val=4,
    covidx_train=10,
    covidx_test=2,
    ct_train=10,
    ct_val=4,
    ct_test=4,
)


@pytest.fixture(scope="session")
def sample_raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """imagenet/, covidx/ and covid19-ct/ in their raw layouts."""
    folder = tmp_path_factory.mktemp("raw")
    write_samples(folder, size=TINY)
    return folder


@pytest.fixture(scope="session")
def sample_sets(sample_raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as shard sets of the same names."""
    folder = tmp_path_factory.mktemp("sets")
    for source in ("imagenet", "covidx", "covid19-ct"):
        write_shards(read_source(source, sample_raw / source), folder / source, WriteOptions(), QUIET)
    return folder


@pytest.fixture(autouse=True, scope="module")
def _ranks_stay_in_their_file() -> Iterator[None]:
    """What a launcher sets is taken away again: files run one after another in one process, in any order."""
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    before = {name: os.environ.get(name) for name in names}
    yield
    assert {name: os.environ.get(name) for name in names} == before
