"""`mstl shard`: options reach the writer, the summary tells what was made, progress says how far it is."""

import io
import json
import shutil
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
    assert recorded == {"samples_per_shard": 6, "resize": 16, "quality": 80, "val_fraction": 0.2, "decode": True,
                        "rendering": ""}  # fmt: skip
    assert sum(shard.samples for shard in manifest.shards("train")) == 16 and len(manifest.shards("train")) == 3
    assert "cat 8, dog 8" in result.stdout and "cat 2, dog 2" in result.stdout
    assert "1 image was refused" in result.stdout
    assert json.loads((out / "quarantine.jsonl").read_text())["origin"] == "cat/broken.png"
    assert "note: there is no val part" in result.stderr
    assert "converting images: 21" in result.stderr and "1 refused" in result.stderr


def test_a_second_run_does_nothing_and_force_replaces(raw, tmp_path):
    arguments = ("--src", "folder", "--root", raw, "--out", tmp_path / "set", "--workers", 1)
    run(*arguments)
    again = run(*arguments)
    assert (
        "is there already, built from files of the same names and sizes" in again.stdout
        and "converting" not in again.stderr
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
    assert "mstl shard --src covid19-ct" in result.stdout and "[default: 1%]" in " ".join(result.stdout.split())
    assert "[default: data/raw/NAME]" in " ".join(result.stdout.split())


def test_parts_and_their_merging(raw, tmp_path):
    arguments = ("--src", "folder", "--root", raw, "--samples-per-shard", 4, "--workers", 1)
    run(*arguments, "--out", tmp_path / "whole")
    for part in ("2/2", "1/2"):
        result = run(*arguments, "--out", tmp_path / "set", "--part", part)
        assert f"part {part[0]} of 2: 3 shards are written" in result.stdout and not (tmp_path / "set").exists()
    assert "cat 9, dog 9" in run(*arguments, "--out", tmp_path / "set", "--merge").stdout
    for path in sorted((tmp_path / "whole").rglob("*")):
        if path.is_file():
            assert (tmp_path / "set" / path.relative_to(tmp_path / "whole")).read_bytes() == path.read_bytes()
    assert "nothing to do" in run(*arguments, "--out", tmp_path / "set", "--part", "1/2").stdout
    for wrong in (("--part", "0/2"), ("--part", "3/2"), ("--part", "3"), ("--part", "1/2", "--merge"),
                  ("--part", "1/2", "--force"), ("--part", "1/2", "--remote", "memory://x")):  # fmt: skip
        assert run(*arguments, "--out", tmp_path / "other", *wrong).exit_code == 2


def test_headers_alone_are_believed_when_asked(raw, tmp_path):
    path = raw / "cat/cat3.png"
    path.write_bytes(path.read_bytes()[:-30])
    arguments = ("--src", "folder", "--root", raw, "--workers", 1)
    run(*arguments, "--out", tmp_path / "full")
    run(*arguments, "--out", tmp_path / "fast", "--check", "header")
    assert load_manifest(tmp_path / "full").refused == 1 and load_manifest(tmp_path / "fast").refused == 0
    assert load_manifest(tmp_path / "fast").options["decode"] is False


def test_equal_images_are_told(raw, tmp_path):
    (raw / "dog/copy.png").write_bytes((raw / "cat/cat1.png").read_bytes())
    result = run("--src", "folder", "--root", raw, "--out", tmp_path / "set", "--workers", 1)
    assert "1 image was byte for byte the same as another one: mstl inspect" in result.stdout


def test_other_counts_than_the_published_are_shouted_and_strictly_refused(sample_raw, tmp_path):
    root = shutil.copytree(sample_raw / "covid19-ct", tmp_path / "ct")
    (root / "sample.json").unlink()  # now it claims to be the published set
    arguments = ("--src", "covid19-ct", "--root", root, "--out", tmp_path / "set", "--workers", 1)
    with pytest.raises(MstlError, match=r"train has 20 images, the published split has 425.*without --strict"):
        run(*arguments, "--strict")
    assert not (tmp_path / "set").exists()
    assert "WARNING: train has 20 images, the published split has 425" in run(*arguments).stderr


@pytest.mark.parametrize(("text", "value"), [("1%", 0.01), ("0.25", 0.25), ("0", 0.0), ("100 %", 1.0)])
def test_fractions(text, value):
    assert Fraction().convert(text, None, None) == pytest.approx(value)


def test_lines_speak_every_few_seconds(capsys):
    now = [0.0]
    lines = Lines(clock=lambda: now[0])
    lines.start(1000, "counting")
    for second in (1, 4, 6, 7, 12):
        now[0] = second
        lines.advance(100, size_bytes=3_000_000, refused=second == 7)
    lines.start(5, "resting")
    lines.skip(2)
    now[0] = 18
    lines.skip(1)
    now[0] = 24
    lines.advance(1)
    lines.finish()
    lines.finish()
    assert capsys.readouterr().err.splitlines() == [
        "counting: 1,000",
        "counting: 300 of 1,000 (30%), 50/s, 1.5 MB/s, 14 s left",
        "counting: 500 of 1,000 (50%), 42/s, 1.2 MB/s, 1 refused, 12 s left",
        "counting: 500 done in 12.0 s, 42/s, 1.2 MB/s, 1 refused",
        "resting: 5",
        "resting: 3 of 5 (60%), 0/s, time left unknown",
        "resting: 4 of 5 (80%), 0.083/s, 12 s left",
        "resting: 4 done in 12.0 s, 0.083/s",
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
