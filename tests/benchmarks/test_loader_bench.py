"""The loader benchmark: it measures three sides on the same images, and its JSON is what the README says. No timing."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from benchmarks import loader_peers, machine
from benchmarks.loader import command
from benchmarks.loader_cases import CASES, Sources
from benchmarks.loader_data import (
    Crop,
    Job,
    boxes_file,
    draw_images,
    export_images,
    image_sizes,
    link_images,
    write_set,
)
from benchmarks.loader_peers import OURS
from benchmarks.loader_split import split
from shards.errors import MstlError
from shards.progress import QUIET
from shards.read import read_image, read_records
from shards.sources import read_source

HAS_LITDATA = find_spec("litdata") is not None
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


def make_job(root: Path, crop: Crop, *, resized: bool = False, **changes: Any) -> Job:
    own = "small" if resized or crop == "views" else "images"
    values = {"size": 32, "batch": 8, "threads": 2, "seconds": 0.01, **changes}
    return Job(images=root / own, originals=root / "images", shards=root / "set", crop=crop, **values)


def test_a_tiny_run_writes_what_the_readme_says(sample_raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "results" / "tiny.json"
    shown = invoke("--raw", sample_raw / "imagenet/val", "--images", 12, "--size", 16, "--batch", 4, "--threads", 1,
                   "--seconds", 0.01, "--repeats", 1, "--sides", "imagefolder", "--case", "area",
                   "--out", out)  # fmt: skip
    body = json.loads(out.read_text())
    documented = set(re.findall(r"`([a-z0-9_. -]+)`", (ROOT / "benchmarks/README.md").read_text()))
    assert not set(keys(body)) - documented
    (case,) = body["cases"].values()
    assert case["data"]["kind"] == "files" and case["data"]["resize"] is None
    assert [case["data"][name] for name in ("images", "distinct_images", "classes")] == [12, 8, 2]
    files = list((sample_raw / "imagenet/val").glob("*/*"))
    sizes = [file.stat().st_size for file in files]
    assert min(sizes) <= case["data"]["mean_bytes"] <= max(sizes)
    assert list(case["sides"]) == [OURS, "imagefolder"]
    for measured in case["sides"].values():
        (run,) = measured["runs"]
        assert run["images"] >= 12 and run["images"] % 12 == 0  # whole passes, nothing left out
        assert run["images_per_second"] == pytest.approx(run["images"] / run["seconds"])
        assert measured["median"] == {name: run[name] for name in ("images_per_second", "images_per_cpu_second")}
    assert 0 < case["split"]["wait_share_computing"] < case["split"]["wait_share"] <= 1
    assert "12 images (8 distinct, files)" in " ".join(shown.split())
    assert str(tmp_path) not in out.read_text()
    with Image.open(out.with_suffix(".png")) as chart:
        assert chart.width > 1000 and len(chart.convert("RGB").getcolors(1 << 20) or ()) > 10


@pytest.mark.parametrize("crop", ["area", "square"])
def test_all_sides_give_the_same_images_and_labels(crop: Crop, sample_raw: Path, tmp_path: Path) -> None:
    job = make_job(tmp_path, crop)
    link_images(sample_raw / "imagenet/val", 16, job.images)
    about = write_set(job.images, job.shards, job.threads, QUIET)
    assert about["shards"] >= job.threads
    if HAS_LITDATA:
        loader_peers.write_litdata(job)
    expected = sorted(label for label, folder in enumerate(sorted(job.images.iterdir())) for _ in folder.iterdir())
    means = {}
    sides = {name: side for name, side in CASES[crop].sides.items() if loader_peers.missing(name) is None}
    assert len(sides) == 4 + HAS_LITDATA
    for side, start in sides.items():
        passes = start(job)
        pixels = []
        for _ in range(8):
            batches = [(views["x"].clone(), labels.clone()) for views, labels in next(passes)]
            assert sorted(torch.cat([labels for _, labels in batches]).tolist()) == expected, side
            pixels += [images for images, _ in batches]
        images = torch.cat(pixels)
        assert images.shape == (8 * 16, 3, 32, 32) and images.dtype == torch.float32, side
        means[side] = torch.stack([images.mean((0, 2, 3)), images.std((0, 2, 3))])
    # Crops are drawn by each side for itself, so only their statistics agree: to 0.15 of a standard deviation.
    for side, mean in means.items():
        torch.testing.assert_close(mean, means[OURS], atol=0.15, rtol=0, msg=lambda m, side=side: f"{side}: {m}")


def test_seven_views_of_both_sides_are_of_the_same_places(tmp_path: Path) -> None:
    """Region by region the same part of the lungs, to what random crops and jitter leave."""
    case = CASES["views"]
    job = make_job(tmp_path, "views", size=64, batch=8)
    sources = Sources(raw=None, ct=None, images=16)
    about = sources.prepare(case, tuple(case.sides), job, tmp_path, QUIET)
    boxes = np.load(boxes_file(job))
    assert boxes.shape == (about["images"], 4) and (boxes[:, 2:] > boxes[:, :2]).all()
    means = {}
    for side, start in case.sides.items():
        passes, total = start(job), {}
        for _ in range(3):
            for views, labels in next(passes):
                assert list(views) == ["q", "k", "ru", "rm", "rl", "lu", "ll"] and len(labels) == 8
                for name, images in views.items():
                    assert images.shape == (8, 3, 64, 64) and images.dtype == torch.float32
                    assert (images[:, 0].std() - images[:, 1].std()).abs() < 0.2  # grey
                    total.setdefault(name, []).append(images.mean((0, 2, 3)))
        means[side] = torch.stack([torch.stack(parts).mean(0) for parts in total.values()])
    assert list(means) == [OURS, "torchvision v2", "torchvision v2 in colour"]
    for side, mean in means.items():
        torch.testing.assert_close(mean, means[OURS], atol=0.25, rtol=0, msg=lambda m, side=side: f"{side}: {m}")


def test_smaller_copies_are_the_bytes_of_the_shards(sample_raw: Path, tmp_path: Path) -> None:
    job = make_job(tmp_path, "area", resized=True)
    link_images(sample_raw / "imagenet/val", 8, job.originals)
    about = write_set(job.originals, job.shards, 1, QUIET, resize=48)
    export_images(job.shards, job.images)
    files = sorted(job.images.glob("*/*"), key=lambda path: path.name)
    assert [int(path.stem) for path in files] == list(range(8)) and about["resize"] == 48
    assert [path.read_bytes() for path in files] == [read_image(job.shards, i) for i in range(8)]
    assert sorted(image_sizes(job.shards)) == sorted(path.stat().st_size for path in files)
    for record, path in zip(read_records(job.shards, "train"), files, strict=True):
        assert path.parent.name == record.class_name
        with Image.open(path) as image:
            assert min(image.size) == 48


def test_parts_are_what_each_cut_adds() -> None:
    def runs(*cpu_seconds: float) -> list[machine.Run]:
        return [machine.Run(images=1000, seconds=1, cpu_seconds=used) for used in cpu_seconds]

    parts = split({"read": runs(0.1, 0.3, 0.2), "decode": runs(1.2), "whole": runs(3.2)})
    assert parts == pytest.approx({"read_cpu_ms": 0.2, "decode_cpu_ms": 1.0, "augment_cpu_ms": 2.0})


def test_a_side_whose_package_is_missing_is_left_out_and_said(
    sample_raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader_peers, "NEEDS", {"litdata": "no_such_package", "webdataset": "webdataset"})
    assert [loader_peers.missing(side) for side in ("litdata", "webdataset", OURS)] == ["no_such_package", None, None]
    with pytest.raises(MstlError, match=r"--sides litdata,ffcv: 'ffcv' is no side"):
        invoke("--images", 64, "--sides", "litdata,ffcv", "--out", tmp_path / "x.json")


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
