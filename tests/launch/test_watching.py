"""Real trainings, looked at from outside: what is written beside the weights, and readers that go away."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest
import torch

from mstl.models.registry import build_backbone
from mstl.run_list import RunLine, list_runs
from mstl.runs import open_run
from mstl.weights import load_weights
from tests.launch.test_training import MODEL, run, start, words

ONE_EPOCH = ("optim.epochs=1",)
PATIENCE_SECONDS = 300.0


@pytest.mark.long
def test_a_moco_checkpoint_starts_a_run_that_tells_what_it_took(sample_sets: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = build_backbone(MODEL.partition("-")[0]).state_dict()
    state = {f"module.encoder_q.{name}": value for name, value in backbone.items()}
    state |= {f"module.encoder_k.{name}": value + 1 for name, value in backbone.items()}
    state |= {"module.encoder_q.fc.0.weight": torch.ones(4, 4), "module.queue": torch.ones(4, 8)}
    file = tmp_path / "moco.pth.tar"
    torch.save({"epoch": 200, "arch": "resnet14", "state_dict": state, "optimizer": {"state": {}}}, file)
    out = tmp_path / "run"
    # At a rate of 1e-30 what was carried is what is handed on.
    fields = (*ONE_EPOCH, "optim.lr=1e-30", "checkpoint.select=last")
    text = run(words("finetune", sample_sets, out, "--init-from", str(file), "--log-seconds", "0", fields=fields))
    new = len([name for name in build_backbone(MODEL).state_dict() if name.startswith("attention.")])
    said = f"({len(backbone)} weights carried, {new} new, {len(backbone) + 2} dropped, found under 'state_dict.module.encoder_q.')"  # noqa: E501
    assert said in text
    account = open_run(out).body["carry"]
    assert (account["carried"], len(account["new"]), len(account["dropped"])) == (len(backbone), new, len(backbone) + 2)
    assert sum(account["reasons"].values()) == len(backbone) + 2
    held = load_weights(out / "weights.safetensors")
    trained = [name for name in backbone if not name.endswith(("running_mean", "running_var", "num_batches_tracked"))]
    assert all(torch.allclose(held[name], backbone[name], rtol=0, atol=1e-20) for name in trained)
    assert f"run: curves in {out / 'curves.png'}" in text
    steps = [line for line in text.splitlines() if line.startswith("run: step ")]
    assert len(steps) == open_run(out).body["steps"]
    assert "\x1b" not in text
    [line] = list_runs(out)
    assert isinstance(line, RunLine)
    assert (line.status, line.step, line.steps) == ("finished", len(steps), len(steps))


@pytest.mark.long
def test_a_training_whose_reader_goes_away_finishes(sample_sets: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    more = ("--init-from", "none", "--log-seconds", "0")
    process = start(words("finetune", sample_sets, out, *more, fields=ONE_EPOCH), ranks=2)
    assert process.stdout is not None
    for line in process.stdout:
        if "run: step 1/" in line:
            break
    process.stdout.close()
    try:
        assert process.wait(PATIENCE_SECONDS) == 0
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        raise
    assert open_run(out).status == "finished"
    assert (out / "curves.png").is_file()
    assert json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])["split"] == "val"
