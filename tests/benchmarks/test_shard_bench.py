"""The benchmarks of shards run, and their JSON is what the README says. No timing."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks import shard_scale, shard_write
from shards.schema import load_manifest

ROOT = Path(__file__).parents[2]
README = (ROOT / "benchmarks/README.md").read_text()


def invoke(command, *arguments):
    result = CliRunner(catch_exceptions=False).invoke(command, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_writing_is_measured_on_all_sides_and_the_json_is_the_documented_one(tmp_path):
    out = tmp_path / "result.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.shard_write", "--images", "30", "--many", "40", "--repeats", "1",
         "--resize", "32", "--scratch", str(tmp_path), "--out", str(out)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    body = json.loads(out.read_text())
    assert set(body["sides"]) == set(shard_write.sides(2))
    assert all(run["images"] == 30 for side in body["sides"].values() for run in side["runs"])
    rate = {side: found["median"]["images_per_second"] for side, found in body["sides"].items()}
    assert body["ratios"]["pass-through, 2 workers / webdataset"] == pytest.approx(
        rate["pass-through, 2 workers"] / rate["webdataset"]
    )
    assert (body["data"]["images"], body["data"]["distinct_images"], body["data"]["resized_to"]) == (30, 30, 32)
    assert body["memory"]["images"] == 40 and 20 < body["memory"]["peak_pss_mb"] < 2000
    for name in (*body, *body["data"], *body["settings"], *body["memory"], *body["ratios"]):
        assert f"`{name}`" in README, name
    assert not list(tmp_path.glob("mstl-bench-*"))
    for ratio in body["ratios"]:
        assert re.search(re.escape(ratio) + r": \d", done.stdout)


def test_made_up_sets_are_real_manifests(tmp_path, monkeypatch):
    case = shard_scale.Case(name="tiny", images=2500, classes=7, samples_per_shard=1000, world=4, batch=64)
    shard_scale.made_up(case).save(tmp_path)
    manifest = load_manifest(tmp_path)
    assert [shard.samples for shard in manifest.shards("train")] == [1000, 1000, 500]
    assert sum(manifest.class_counts["train"]) == 2500 and len(manifest.class_counts["train"]) == 7
    out = tmp_path / "scale.json"
    printed = invoke(shard_scale.command, "--case", "imagenet-1k", "--out", out)
    body = json.loads(out.read_text())
    found = body["cases"]["imagenet-1k"]
    assert (found["images"], found["shards"]) == (1_281_167, 1282) and "1,281,167" in printed
    assert found["steps_per_epoch"] == 1_281_167 // 2048
    assert 0.1 < found["terabytes"] < 0.2
    for name in (*body, *found):
        assert f"`{name}`" in README, name
