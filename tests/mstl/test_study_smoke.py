"""studies/smoke.toml for real: every kind of node, trained, evaluated and measured by the real commands."""

from __future__ import annotations

import csv
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

STUDY = Path(__file__).parents[2] / "studies" / "smoke.toml"


@pytest.mark.slow
def test_the_smoke_study_runs_to_the_end_and_only_once(sample_sets: Path, tmp_path: Path) -> None:
    out = tmp_path / "smoke"
    words = [sys.executable, "-m", "mstl", "run", str(STUDY), "--out", str(out), "--jobs", "2"]
    words += ["--data", f"natural={sample_sets / 'imagenet'}", "--data", f"ct={sample_sets / 'covid19-ct'}"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "OMP_NUM_THREADS": "1"}

    def run() -> str:
        done = subprocess.run(words, env=environment, capture_output=True, text=True, cwd=tmp_path, check=False)
        logs = "".join(file.read_text()[-2000:] for file in out.rglob("*.log"))
        assert done.returncode == 0, done.stderr + logs
        return done.stderr

    said = run()
    assert "smoke: 5 finished" in said
    body = json.loads((out / "study.json").read_text())
    nodes = {node["name"]: node for node in body["nodes"]}
    assert {node["state"] for node in nodes.values()} == {"finished"}
    for name in ("finetune_full", "finetune_no_tl"):
        metrics = json.loads((out / nodes[name]["path"] / "evaluation" / "test" / "metrics.json").read_text())
        assert metrics["n"] == nodes[name]["data"]["splits"]["test"]["samples"]
    full = out / nodes["finetune_full"]["path"]
    assert (full / "evaluation" / "test" / "heatmaps.png").read_bytes().startswith(b"\x89PNG")
    record = json.loads((full / "run.json").read_text())
    assert Path(record["parent"]["path"]) == (out / nodes["sstl_ours"]["path"]).resolve()
    assert json.loads((out / nodes["finetune_no_tl"]["path"] / "run.json").read_text())["parent"] is None
    steps = [json.loads(line) for line in (full / "metrics.jsonl").read_text().splitlines()]
    assert sum("split" not in line for line in steps) == nodes["finetune_full"]["steps"]
    (score,) = json.loads((out / nodes["leep_stl_n"]["path"] / "leep.json").read_text())["sources"]
    assert math.isfinite(score["bits"])
    assert score["kind"] == "run"
    before = {file: file.stat().st_mtime_ns for file in (out / "runs").rglob("*") if file.is_file()}
    assert "begins" not in run()
    assert before == {file: file.stat().st_mtime_ns for file in (out / "runs").rglob("*") if file.is_file()}
    report(out)


def report(out: Path) -> None:
    """`mstl report` shows what the files hold."""
    done = subprocess.run(
        [sys.executable, "-m", "mstl", "report", str(out)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    page = (out / "report.html").read_text()
    assert "5 finished of 5 nodes" in page
    assert "Synthetic data." in page
    assert "Figure 3, measured" in page
    assert "Figure 4: resnet14-attn1, finetune_full, seed 0, test split" in page
    with (out / "report-tables" / "table4.csv").open() as text:
        rows = {row["metric"]: row for row in csv.DictReader(text) if row["network"] == "resnet14-attn1"
                and row["column"] == "full"}  # fmt: skip
    (run,) = (out / "runs" / "finetune_full" / "resnet14-attn1").glob("s0-*/evaluation/test/metrics.json")
    body = json.loads(run.read_text())
    for metric in ("accuracy", "f1", "auc"):
        value = body["metrics"][metric]
        assert rows[metric]["mean"] == ("" if value is None else f"{100 * value:.10g}")
