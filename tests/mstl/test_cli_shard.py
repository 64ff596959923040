"""`mstl shard`: options reach the writer, the summary tells what was made, progress says how far it is."""

import io
import json
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from mstl.cli.progress import Lines, rich_progress
from mstl.cli.shard import Fraction, command
from shards.errors import MstlError
from shards.schema import load_manifest


@pytest.fixture
def raw(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "raw" / name).mkdir(parents=True)
        for i in range(10):
            image = Image.fromarray(rng.integers(0, 256, (24, 30, 3), dtype=np.uint8))
            image.save(tmp_path / "raw" / name / f"{name}{i}.png")
    return tmp_path / "raw"


def run(*arguments):
    return CliRunner(catch_exceptions=False).invoke(command, [str(argument) for argument in arguments])


def test_options_reach_the_writer_and_the_table_tells(raw, tmp_path):
    (raw / "cat/broken.png").write_bytes(b"x")
    out = tmp_path / "set"
    result = run("--src", "folder", "--root", raw, "--out", out, "--seed", 5, "--samples-per-shard", 6, "--resize", 16,
                 "--quality", 80, "--val-fraction", "20%", "--max-bad", "10%", "--workers", 1)  # fmt: skip
    assert result.exit_code == 0, result.output
    manifest = load_manifest(out)
    assert (manifest.seed, manifest.refused) == (5, 1)
    recorded = {name: value for name, value in manifest.options.items() if name != "listing_digest"}
    assert recorded == {"samples_per_shard": 6, "resize": 16, "quality": 80, "val_fraction": 0.2}
    assert [shard.samples for shard in manifest.shards("train")] == [6, 6, 4]
    assert "cat 8, dog 8" in result.stdout and "cat 2, dog 2" in result.stdout
    assert "1 images were refused" in result.stdout
    assert json.loads((out / "quarantine.jsonl").read_text())["origin"] == "cat/broken.png"
    assert "note: there is no val part" in result.stderr
    assert "checking images: 21" in result.stderr and "writing shards: 20 done" in result.stderr


def test_a_second_run_does_nothing_and_force_replaces(raw, tmp_path):
    arguments = ("--src", "folder", "--root", raw, "--out", tmp_path / "set", "--workers", 1)
    run(*arguments)
    again = run(*arguments)
    assert (
        "is there already, built from files of the same names and sizes" in again.stdout
        and "writing" not in again.stderr
    )
    with pytest.raises(MstlError, match="seed 0, not 1"):
        run(*arguments, "--seed", 1)
    assert run(*arguments, "--seed", 1, "--force").exit_code == 0
    assert load_manifest(tmp_path / "set").seed == 1


def test_folders_default_to_the_source_name(raw, tmp_path, monkeypatch):
    (tmp_path / "data/raw").mkdir(parents=True)
    raw.rename(tmp_path / "data/raw/folder")
    monkeypatch.chdir(tmp_path)
    assert run("--src", "folder", "--workers", 1).exit_code == 0
    assert load_manifest(tmp_path / "data/shards/folder").samples("train") == 18


def test_errors_name_the_sources_and_wrong_options_are_usage(raw):
    with pytest.raises(MstlError, match="imagenet, covidx, covid19-ct, folder"):
        run("--src", "mnist", "--root", raw)
    for wrong in (
        ("--max-bad", "200%"),
        ("--max-bad", "few"),
        ("--quality", "0"),
        ("--resize", "4"),
        ("--workers", "0"),
        ("--seed", "-1"),
        ("--seed", 2**31),
    ):
        assert run("--src", "folder", "--root", raw, *wrong).exit_code == 2
    assert run().exit_code == 2


def test_a_set_that_lost_a_tar_is_not_kept_silently(raw, tmp_path):
    arguments = ("--src", "folder", "--root", raw, "--out", tmp_path / "set", "--workers", 1)
    run(*arguments)
    (tmp_path / "set/train/000000.tar").unlink()
    with pytest.raises(MstlError, match=r"train/000000\.tar: it is missing.*--force"):
        run(*arguments)
    assert run(*arguments, "--force").exit_code == 0
    assert (tmp_path / "set/train/000000.tar").exists()


def test_help_teaches():
    result = run("--help")
    assert "mstl shard --src covid19-ct" in result.stdout and "[default: 1%]" in result.stdout
    assert "[default: data/raw/NAME]" in " ".join(result.stdout.split())


@pytest.mark.parametrize(("text", "value"), [("1%", 0.01), ("0.25", 0.25), ("0", 0.0), ("100 %", 1.0)])
def test_fractions(text, value):
    assert Fraction().convert(text, None, None) == pytest.approx(value)


def test_lines_speak_every_few_seconds(capsys):
    now = [0.0]
    lines = Lines(clock=lambda: now[0])
    lines.start(1000, "counting")
    for second in (1, 4, 6, 7, 12):
        now[0] = second
        lines.advance(100)
    lines.start(5, "resting")
    lines.finish()
    lines.finish()
    assert capsys.readouterr().err.splitlines() == [
        "counting: 1,000",
        "counting: 300 of 1,000 (30%), 50/s, 14 s left",
        "counting: 500 of 1,000 (50%), 42/s, 12 s left",
        "counting: 500 done in 12.0 s",
        "resting: 5",
        "resting: 0 done in 0.0 s",
    ]


def test_a_terminal_gets_bars(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with rich_progress() as progress:
        progress.start(10, "counting")
        progress.advance(4)
        progress.advance(6)
    assert "counting" in terminal.getvalue() and "10/10" in terminal.getvalue()
