"""`mstl verify`: a good set in one line, a damaged one by name and with exit code 1."""

import shutil

import pytest
from click.testing import CliRunner

from mstl.cli.boundary import exit_with
from mstl.cli.verify import command
from shards.errors import MstlError
from shards.index import read_index
from shards.schema import load_manifest


@pytest.fixture
def folder(sample_sets, tmp_path):
    return shutil.copytree(sample_sets / "covid19-ct", tmp_path / "set")


def run(folder):
    return CliRunner().invoke(command, [str(folder)])


def test_a_whole_set(folder):
    result = run(folder)
    assert (result.exit_code, result.stdout) == (0, "3 shards, 36 samples, all as written\n")
    assert "checking shards: 3 done" in result.stderr


def test_damage_is_named(folder):
    sample = read_index(folder / "train/000000.idx")[4]
    shard = load_manifest(folder).shards("train")[0]
    tar = folder / shard.path
    data = bytearray(tar.read_bytes())
    data[sample[0].offset + 1] ^= 1
    tar.write_bytes(data)
    (folder / "val/000000.idx").unlink()
    result = run(folder)
    assert result.stdout.splitlines() == [
        "train/000000.tar: its content is not what the manifest describes",
        f"  1 sample: {sample[0].name.split('.')[0]}",
        "val/000000.idx: it is missing",
    ]
    assert isinstance(result.exception, MstlError)
    assert "2 of its files are not as they were written" in str(result.exception)
    with pytest.raises(SystemExit) as left:
        exit_with(lambda: command.main([str(folder)], standalone_mode=False))
    assert left.value.code == 1


def test_what_is_no_set(tmp_path):
    with pytest.raises(MstlError, match="no dataset"):
        raise run(tmp_path).exception
