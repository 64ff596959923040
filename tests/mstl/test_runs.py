"""The run folder: its record and its metrics log."""

import json
from pathlib import Path

import pytest

from mstl.runs import (
    RUN_SCHEMA,
    MetricsLog,
    best_validation,
    finished_runs,
    open_run,
    read_metrics,
    score,
    write_record,
)
from shards.errors import MstlError


def body(**changes: object) -> dict[str, object]:
    return {
        "schema": RUN_SCHEMA,
        "stage": "stl_n",
        "model": "resnet14-attn5",
        "recipe": {"data": {"image_size": 64}},
        "shards": {"path": "data/shards/imagenet", "digest": "d", "source": "imagenet", "classes": ["a", "b"]},
        "status": "finished",
        "started": "2026-01-01T00:00:00+00:00",
        "finished": "2026-01-02T00:00:00+00:00",
        "wall_seconds": 1.0,
        "parent": None,
        "inputs": {},
        "flavour": "resolved",
        "printed": {},
        "resolved": {},
        "seed": 0,
        "world_size": 1,
        "carry": None,
        "software": {},
        "device": "CPU",
        "git": None,
        **changes,
    }


def test_a_record_round_trips(tmp_path: Path) -> None:
    write_record(tmp_path / "run", body())
    record = open_run(tmp_path / "run")
    assert (record.stage, record.model) == ("stl_n", "resnet14-attn5")
    assert (record.classes, record.image_size) == (["a", "b"], 64)
    assert record.weights == tmp_path / "run" / "weights.safetensors"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "no run.json"),
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        (json.dumps(body(schema=99)), "schema 99"),
        (json.dumps({"schema": RUN_SCHEMA}), "cannot be read"),
    ],
)
def test_a_wrong_record_is_refused(tmp_path: Path, text: str | None, says: str) -> None:
    if text is not None:
        (tmp_path / "run.json").write_text(text)
    with pytest.raises(MstlError, match=says):
        open_run(tmp_path)


def test_a_damaged_line_of_the_log_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nnonsense\n')
    with pytest.raises(MstlError, match="line 2"):
        read_metrics(tmp_path)


def test_only_finished_runs_of_the_stage_and_network_are_candidates_newest_last(tmp_path: Path) -> None:
    write_record(tmp_path / "newer", body(finished="2026-03-01T00:00:00+00:00"))
    write_record(tmp_path / "older", body(finished="2026-02-01T00:00:00+00:00"))
    write_record(tmp_path / "running", body(status="running"))
    write_record(tmp_path / "stage", body(stage="stl_m"))
    write_record(tmp_path / "model", body(model="resnet14-attn0"))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.json").write_text("{")
    found = finished_runs(tmp_path, "stl_n", "resnet14-attn5")
    assert [run.path.name for run in found] == ["older", "newer"]


def test_the_log_holds_each_step_once_after_a_resume(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, resume_step=0)
    for step in (1, 2, 3):
        log.write({"step": step, "loss": step / 10})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # killed in the middle of a line
    log = MetricsLog(tmp_path, resume_step=2)
    log.write({"step": 3, "loss": 0.5})
    log.close()
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 0.1}, {"step": 2, "loss": 0.2}, {"step": 3, "loss": 0.5}]
    MetricsLog(tmp_path, resume_step=0).close()
    assert read_metrics(tmp_path) == []


def test_each_line_is_in_the_file_when_it_is_written(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, resume_step=0)
    for step in (1, 2):
        log.write({"step": step})
        assert [entry["step"] for entry in read_metrics(tmp_path)] == list(range(1, step + 1))
    log.close()


@pytest.mark.parametrize("rubbish", [b"\0\0\0\0\n", b"\xff\xfe{\n", b'{"step": 4, "lo\n', b"[]\n"])
def test_rubbish_behind_the_last_step_to_keep_is_dropped_and_before_it_named(tmp_path: Path, rubbish: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    whole = b'{"step": 1}\n{"step": 2}\n{"step": 2, "split": "val"}\n'
    path.write_bytes(whole + rubbish + b'{"step": 3}\n')
    with pytest.raises(MstlError, match="line 4"):
        MetricsLog(tmp_path, resume_step=3)
    assert path.read_bytes() == whole + rubbish + b'{"step": 3}\n'
    MetricsLog(tmp_path, resume_step=2).close()
    assert path.read_bytes() == whole
    path.write_bytes(rubbish)
    MetricsLog(tmp_path, resume_step=0).close()
    assert path.read_bytes() == b""


def test_a_validation_is_judged_by_its_auc_else_its_accuracy() -> None:
    assert score({"auc": 0.9, "accuracy": 0.5}) == ("auc", 0.9)
    assert score({"auc": None, "accuracy": 0.5}) == ("accuracy", 0.5)
    assert score({"auc": float("nan"), "loss": 1.0}) is None
    entries = [{"step": n, "auc": value} for n, value in enumerate((None, 0.7, 0.9, 0.9, 0.8))]
    assert best_validation(entries) == entries[2]
    assert best_validation([{"step": 1, "loss": 2.0}]) is None


def test_a_log_that_was_removed_under_way_stops_training(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, resume_step=0)
    log.write({"step": 1})
    (tmp_path / "metrics.jsonl").unlink()
    with pytest.raises(MstlError, match="removed or replaced while training wrote to it"):
        log.write({"step": 2})
    (tmp_path / "metrics.jsonl").write_text("")  # another file of that name is not ours either
    with pytest.raises(MstlError, match="removed or replaced"):
        log.write({"step": 2})
    log.close()
