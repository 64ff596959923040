"""The loader benchmark: it measures three sides on the same images, and its JSON is what the README says. No timing."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from benchmarks import machine
from benchmarks.loader import SIDES, Job, command, draw_images, link_images, write_set
from shards.errors import MstlError
from shards.progress import QUIET
from shards.sources import read_source

ROOT = Path(__file__).parents[2]


def invoke(*arguments: object) -> str:
    result = CliRunner(catch_exceptions=False).invoke(command, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def keys(value: Any) -> Iterator[str]:
    """All keys of nested JSON objects."""
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from keys(item)
    if isinstance(value, dict):
        yield from value


def test_a_tiny_run_writes_what_the_readme_says(sample_raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "results" / "tiny.json"
    shown = invoke("--raw", sample_raw / "imagenet/val", "--images", 12, "--size", 16, "--batch", 4, "--threads", 1,
                   "--seconds", 0.01, "--repeats", 1, "--out", out)  # fmt: skip
    body = json.loads(out.read_text())
    documented = set(re.findall(r"`([a-z0-9_-]+)`", (ROOT / "benchmarks/README.md").read_text()))
    assert not set(keys(body)) - documented
    assert body["data"]["kind"] == "files"
    assert (body["data"]["images"], body["data"]["distinct_images"], body["data"]["classes"]) == (12, 8, 2)
    files = list((sample_raw / "imagenet/val").glob("*/*"))
    assert body["data"]["mean_bytes"] in range(
        min(f.stat().st_size for f in files), max(f.stat().st_size for f in files)
    )
    assert list(body["sides"]) == ["mstl", "imagefolder", "webdataset"]
    for measured in body["sides"].values():
        (run,) = measured["runs"]
        assert run["images"] >= 12 and run["images"] % 12 == 0  # whole passes, nothing left out
        assert run["images_per_second"] == pytest.approx(run["images"] / run["seconds"])
        assert measured["median"] == {name: run[name] for name in ("images_per_second", "images_per_cpu_second")}
    assert "12 images (8 distinct, files)" in " ".join(shown.split())
    assert str(tmp_path) not in out.read_text()


def test_all_sides_give_the_same_images_and_labels(sample_raw: Path, tmp_path: Path) -> None:
    job = Job(images=tmp_path / "images", shards=tmp_path / "set", size=32, batch=8, threads=2, seconds=1)
    link_images(sample_raw / "imagenet/val", 16, job.images)
    about = write_set(job, 16, QUIET)
    assert about["shards"] >= job.threads
    expected = sorted(label for label, folder in enumerate(sorted(job.images.iterdir())) for _ in folder.iterdir())
    means = {}
    for side, start in SIDES.items():
        passes = start(job)
        pixels = []
        for _ in range(12):
            batches = [(images.clone(), labels.clone()) for images, labels in next(passes)]
            assert sorted(torch.cat([labels for _, labels in batches]).tolist()) == expected, side
            pixels += [images for images, _ in batches]
        images = torch.cat(pixels)
        assert images.shape == (12 * 16, 3, 32, 32) and images.dtype == torch.float32, side
        means[side] = torch.stack([images.mean((0, 2, 3)), images.std((0, 2, 3))])
    # Crops are drawn by each side for itself, so only their statistics agree: to 0.15 of a standard deviation.
    for side, mean in means.items():
        torch.testing.assert_close(mean, means["mstl"], atol=0.15, rtol=0, msg=lambda m, side=side: f"{side}: {m}")


def test_generated_images_are_those_of_mstl_sample(sample_raw: Path, tmp_path: Path) -> None:
    draw_images(14, tmp_path, QUIET)
    drawn = {path.name: path.read_bytes() for path in tmp_path.glob("*/*")}
    assert len(drawn) == 14 and len(list(tmp_path.iterdir())) == 6
    sample = {
        Path(item.origin).name: item.blob.read() for item in read_source("imagenet", sample_raw / "imagenet").items
    }
    shared = drawn.keys() & sample.keys()
    assert len(shared) == 6  # three and three of the two classes the sample has here
    assert all(drawn[name] == sample[name] for name in shared)


def test_links_repeat_the_files_in_their_classes(sample_raw: Path, tmp_path: Path) -> None:
    raw = sample_raw / "imagenet/val"
    link_images(raw, 20, tmp_path)
    links = sorted(tmp_path.glob("*/*"), key=lambda path: path.name)
    targets = [path.resolve() for path in links]
    assert len(links) == 20 and set(targets[:8]) == set(raw.glob("*/*")) and targets[8:16] == targets[:8]
    assert all(link.parent.name == target.parent.name for link, target in zip(links, targets, strict=True))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--images", 12), "fill a batch of 64"),
        (("--images", 2, "--batch", 2, "--threads", 3), "Give at least 3"),
        (("--raw", "nowhere", "--images", 64), "--raw nowhere: it cannot be read"),
        (("--raw", "empty", "--images", 64), "no folder in it holds a JPEG or PNG"),
        (("--out", "empty"), "no file can be written there"),
        (("--out", "file/x.json"), "no file can be written there"),
    ],
)
def test_bad_input_is_refused_before_anything_is_measured(
    arguments: tuple[object, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    words = [str(argument) for argument in (*arguments, *(() if "--out" in arguments else ("--out", "out.json")))]
    with pytest.raises(MstlError, match=re.escape(message)):
        CliRunner(catch_exceptions=False).invoke(command, words)
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize(
    ("words", "code", "shown"), [(["--images", "1"], 1, "Error: --images 1: "), (["--no"], 2, "--no")]
)
def test_exit_codes_are_those_of_mstl(words: list[str], code: int, shown: str) -> None:
    program = [sys.executable, "-m", "benchmarks.loader"]
    done = subprocess.run([*program, *words], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == code
    assert shown in done.stderr and "Traceback" not in done.stderr


def test_cpu_time_covers_descendants_alive_and_ended() -> None:
    burn = "import time\nwhile time.process_time() < 0.5: pass\n"
    grandchild = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {burn!r}])\n"
    before = machine.tree_cpu_seconds(os.getpid())
    alive = subprocess.Popen(
        [sys.executable, "-c", f"{grandchild}{burn}print('done', flush=True)\ninput()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert alive.stdout is not None and alive.stdout.readline() == "done\n"
    during = machine.tree_cpu_seconds(os.getpid())
    assert during - before > 0.9  # 0.5 s of the child and 0.5 s of the grandchild it waited for
    assert machine.tree_cpu_seconds(alive.pid) > 0.9
    alive.communicate("\n")
    ended = machine.tree_cpu_seconds(os.getpid())
    assert ended >= during
    times = os.times()
    assert ended == pytest.approx(times.user + times.system + times.children_user + times.children_system, abs=0.1)


def test_summary_takes_medians_and_divides_ours_by_the_peer() -> None:
    def runs(*cpu_seconds: float) -> list[machine.Run]:
        return [machine.Run(images=100, seconds=10, cpu_seconds=used) for used in cpu_seconds]

    result = machine.summary({"us": runs(1, 2, 5), "peer": runs(10, 4, 5)}, "us")
    assert result["sides"]["us"]["median"] == {"images_per_second": 10, "images_per_cpu_second": 50}
    assert result["sides"]["peer"]["median"]["images_per_cpu_second"] == 20
    assert [run["images_per_cpu_second"] for run in result["sides"]["peer"]["runs"]] == [10, 25, 20]
    assert result["ratios"] == {"peer": {"images_per_second": 1, "images_per_cpu_second": 2.5}}
