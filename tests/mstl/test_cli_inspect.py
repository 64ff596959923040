"""`mstl inspect`: the tables, the JSON and the sheet."""

import json
import shutil

import pytest
from click.testing import CliRunner
from PIL import Image

from mstl.cli.inspect import command
from shards.errors import MstlError
from shards.schema import load_manifest


def run(*arguments):
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def test_the_tables(sample_sets):
    folder = sample_sets / "covid19-ct"
    result = run(folder)
    assert result.exit_code == 0, result.output
    manifest = load_manifest(folder)
    lines = [" ".join(line.replace("│", " ").split()) for line in result.stdout.splitlines()]
    for line in (
        "samples " + " ".join(str(manifest.samples(split)) for split in manifest.splits),
        "shards 1 1 1",
        "2 classes",
        f"{manifest.classes[0]} "
        + " ".join(str(manifest.class_counts[split][0]) for split in manifest.splits)
        + f" {sum(manifest.class_counts[split][0] for split in manifest.splits)}",
        "refused: 0",
        f"leakage: never checked (mstl leakage {folder})",
        f"digest {manifest.digest()}",
    ):
        assert line in lines
    assert any(line.startswith("patients in more than one split: 0 known") for line in lines)


def test_unknown_patients_are_not_called_none(sample_sets):
    lines = run(sample_sets / "imagenet").stdout.splitlines()
    samples = sum(s.samples for part in load_manifest(sample_sets / "imagenet").splits.values() for s in part)
    said = next(line for line in lines if line.startswith("patients in more than one split"))
    assert said == f"patients in more than one split: none is known; unknown for {samples} of {samples} images"


def test_json_and_sheet(sample_sets, tmp_path):
    sheet = tmp_path / "sheet.png"
    result = run(sample_sets / "covidx", "--split", "train", "--json", "--sheet", sheet, "--count", 4)
    assert result.exit_code == 0, result.output
    body = json.loads(result.stdout)
    assert list(body["splits"]) == ["train"] and body["digest"] == load_manifest(sample_sets / "covidx").digest()
    assert f"{sheet}: 4 samples" in result.stderr
    with Image.open(sheet) as image:
        assert image.size == (8 + 4 * 168, 8 + 160 + 3 * 16 + 8)


def test_errors_come_before_the_work(sample_sets, tmp_path):
    for arguments, why in (
        ((tmp_path,), "no dataset.json"),
        ((sample_sets / "covidx", "--sheet", tmp_path / "a.jpg"), "a sheet is a PNG"),
    ):
        result = run(*arguments)
        assert isinstance(result.exception, MstlError) and why in str(result.exception)
        assert not result.stdout
    assert run(sample_sets / "covidx", "--split", "everything").exit_code == 2


def test_a_damaged_set_is_told(sample_sets, tmp_path):
    folder = shutil.copytree(sample_sets / "covidx", tmp_path / "set")
    shard = load_manifest(folder).shards("train")[0]
    (folder / shard.path).write_bytes((folder / shard.path).read_bytes()[:2000])
    assert isinstance(run(folder).exception, MstlError)


def test_many_classes_are_cut(tmp_path):
    from mstl.cli.inspect import _classes_table
    from shards.inspect import SetFacts

    counts = tuple(range(100, 130))
    split = type("Counts", (), {"class_counts": counts})()
    names = tuple(f"[c{label}]" for label in range(30))
    fields = dict.fromkeys(SetFacts.__dataclass_fields__)
    facts = SetFacts(**{**fields, "classes": names, "titles": {"[c29]": "the largest"}, "splits": {"train": split}})
    table = _classes_table(facts)
    assert table.title == "30 classes of 100 to 129 (median 114) samples: the 10 largest and smallest"
    assert table.row_count == 20
    shown = [list(column.cells) for column in table.columns]
    assert shown[0][0] == r"\[c29]" and shown[1][0] == "the largest" and shown[0][-1] == r"\[c0]"
    assert shown[2][9:11] == ["120", "109"]
    with pytest.raises(StopIteration):
        next(iter(shown[4:]))
