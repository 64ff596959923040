"""The report: numbers come from the runs' files, gaps stay empty, the file stands alone."""

from __future__ import annotations

import json
import os
import re
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from tiny_runs import make_run as make_whole_run
from tiny_runs import make_shards

from mstl.cli.report import command
from mstl.places import heatmap_path
from mstl.study.figures import running_mean
from mstl.study.records import heatmaps, read_runs, transfer_gains
from mstl.study.render import _duration, _points
from mstl.study.report import write_report
from shards.errors import MstlError
from shards.files import sha256_file
from shards.schema import Manifest

make_run = partial(make_whole_run, weights=False)


class Tables(HTMLParser):
    """The text of every table as rows of cells, and every address the page refers to."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.addresses: list[str] = []
        self._cell: list[str] | None = None
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attributes if name in ("src", "href", "srcset", "data")]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self._cell = []
        elif tag in ("small", "br") and self._cell is not None:
            self._cell.append(" ")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th") and self._cell is not None:
            self.tables[-1][-1].append(" ".join("".join(self._cell).split()))
            self._cell = None

    def handle_data(self, data: str) -> None:
        if self._cell is not None:
            self._cell.append(data)


def evaluation(run: Path, manifest: Manifest, metrics: dict[str, Any], *, n: int = 10, **changes: Any) -> None:
    """What `mstl evaluate` would leave of a test split."""
    out = run / "evaluation" / "test"
    out.mkdir(parents=True)
    body = {
        "schema": 1, "split": "test", "n": n, "classes": ["NonCOVID", "COVID"], "class_counts": [5, 5],
        "positive": "COVID", "metrics": metrics,
        "shards": {"path": "x", "digest": manifest.digest(), "source": manifest.source, "same_as_run": True},
    }  # fmt: skip
    (out / "metrics.json").write_text(json.dumps({**body, **changes}))
    lines = [f"{i},k{i},,{i % 2},{0.3 + 0.4 * (i % 2) + 0.05 * (i % 5 - 2)}" for i in range(n)]
    (out / "predictions.csv").write_text("\n".join(["sample_id,key,patient,label,probability", *lines]) + "\n")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return make_shards(tmp_path_factory.mktemp("report") / "shards", per_class=1)


@pytest.fixture
def chain(tmp_path: Path, manifest: Manifest) -> list[Path]:
    """STL-M → SSTL-M → fine-tuning, and the same fine-tuning from nothing; only the last two are evaluated."""
    stl = make_run(tmp_path / "stl_m", tmp_path, manifest, stage="stl_m")
    ssl = make_run(tmp_path / "sstl_m", tmp_path, manifest, stage="sstl_m", parent=stl)
    tuned = make_run(tmp_path / "finetune", tmp_path, manifest, parent=ssl)
    scratch = make_run(tmp_path / "scratch", tmp_path, manifest)
    good = {"accuracy": 0.9, "f1": 0.889, "auc": 0.95, "sensitivity": 0.8, "specificity": 1.0}
    evaluation(tuned, manifest, good)
    evaluation(scratch, manifest, {**good, "accuracy": 0.7, "auc": 0.975, "f1": None})
    return [stl, ssl, tuned, scratch]


def report(tmp_path: Path, runs: list[Path], **options: Any) -> str:
    write_report(tmp_path / "report.html", title="A <study>", runs=runs, **options)
    return (tmp_path / "report.html").read_text()


def test_the_chain_table_tells_what_was_trained(tmp_path: Path, chain: list[Path]) -> None:
    table = Tables(report(tmp_path, chain)).tables[0]
    assert [row[0] for row in table[1:]] == ["stl_m", "sstl_m", "finetune", "scratch"]
    stl, ssl, tuned, scratch = table[1:]
    assert [stl[4], ssl[4], tuned[4], scratch[4]] == ["random weights", "stl_m", "sstl_m", "random weights"]
    # Losses 2/1 ... 2/6, two steps an epoch: means of the first and the last two.
    assert stl[5:8] == ["3", "6", f"{(2 + 1) / 2:.3f} → {(2 / 5 + 2 / 6) / 2:.3f}"]
    assert stl[8] == "Accuracy 70.0 last epoch, 3" and tuned[8] == "Accuracy 70.0 best epoch, 3"
    assert stl[9] == "5 min 05 s"


def test_the_test_table_gives_percent_gaps_and_the_gain_by_transfer(tmp_path: Path, chain: list[Path]) -> None:
    page = report(tmp_path, chain)
    table = Tables(page).tables[1]
    assert table[0] == ["Run", "Network", "Transfer", "Accuracy", "F1", "AUC", "Sensitivity", "Specificity", "n"]
    assert table[1] == [
        "finetune", "resnet14-attn5", "with transfer stl_m → sstl_m", "90.0", "88.9", "95.0", "80.0", "100.0", "10",
    ]  # fmt: skip
    assert table[2] == ["scratch", "resnet14-attn5", "without", "70.0", "", "97.5", "80.0", "100.0", "10"]
    gain = ["gain by transfer", "resnet14-attn5", "points", "+20.0", "", "−2.5", "+0.0", "+0.0", ""]
    assert table[3] == gain
    assert len(table) == 4
    assert "Positive class: COVID" in page
    # Wilson at 7 of 10: (0.397, 0.892), half of it 24.8 points.
    assert "one image is 10.0 points of accuracy" in page and "about ±25 points" in page


@pytest.mark.parametrize(("select", "chosen", "shown"), [("best", 1, "best epoch, 2"), ("last", 2, "last epoch, 3")])
def test_the_validation_shown_is_that_of_the_weights_handed_on(
    tmp_path: Path, manifest: Manifest, select: str, chosen: int, shown: str
) -> None:
    """By the AUC, not the accuracy, and the earliest of equals, as training selects."""
    path = make_run(tmp_path / "run", tmp_path, manifest, overrides=(f"checkpoint.select={select}",))
    log = [
        {"step": 1, "epoch": 0, "split": "val", "accuracy": 0.9, "auc": 0.6},
        {"step": 2, "epoch": 1, "split": "val", "accuracy": 0.5, "auc": 0.8},
        {"step": 3, "epoch": 2, "split": "val", "accuracy": 0.6, "auc": 0.8},
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    (run,) = read_runs([path])
    assert run.validation == log[chosen]
    assert Tables(report(tmp_path, [path])).tables[0][1][8].endswith(shown)
    assert run.steps == [] and run.epoch_losses == [] and run.epochs is None


def test_without_auc_and_accuracy_the_last_validation_is_shown(tmp_path: Path, chain: list[Path]) -> None:
    log = [{"step": s, "epoch": s - 1, "split": "val", "loss": 3.0, "contrast_accuracy": 0.5 / s} for s in (1, 2)]
    (chain[1] / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    table = Tables(report(tmp_path, chain)).tables[0]
    assert table[2][8] == "Contrast accuracy 25.0 last epoch, 2"


def test_what_is_missing_stays_empty(tmp_path: Path, manifest: Manifest) -> None:
    run = make_run(
        tmp_path / "young", tmp_path, manifest, changes={"status": "running", "wall_seconds": None, "git": None}
    )
    (run / "metrics.jsonl").unlink()
    tables = Tables(report(tmp_path, [run])).tables
    assert tables[0][1][0] == "young not finished (running)"
    assert tables[0][1][5:] == ["", "", "", "", ""]
    assert tables[1][1][3:] == [""] * 6
    page = (tmp_path / "report.html").read_text()
    assert "data:image/png" not in page and "Small test set" not in page and "None" not in page


def test_the_file_needs_nothing_beside_it(tmp_path: Path, chain: list[Path]) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "grid.png")
    page = report(tmp_path, chain, images={"maps <1>": tmp_path / "grid.png"})
    parsed = Tables(page)
    assert len(parsed.addresses) == 3  # ROC, losses, heatmaps
    assert all(address.startswith("data:image/png;base64,") for address in parsed.addresses)
    assert not re.search(r"https?://|@import|<script|url\(", page)
    assert "maps &lt;1&gt;" in page and "A &lt;study&gt;" in page and "A <study>" not in page


def test_synthetic_data_are_said_to_be(tmp_path: Path, manifest: Manifest) -> None:
    body = {"path": "x", "digest": manifest.digest(), "classes": list(manifest.classes)}
    real = make_run(tmp_path / "real", tmp_path, manifest, changes={"shards": {**body, "source": "covid19-ct"}})
    assert "ynthetic" not in report(tmp_path, [real])
    drawn = make_run(
        tmp_path / "drawn", tmp_path, manifest, changes={"shards": {**body, "source": "covid19-ct-sample"}}
    )
    assert "drawn used synthetic sample images" in report(tmp_path, [real, drawn])
    assert "All runs used synthetic" in report(tmp_path, [drawn])


def test_rows_of_other_images_are_not_to_be_compared(tmp_path: Path, manifest: Manifest) -> None:
    first = make_run(tmp_path / "first", tmp_path, manifest)
    second = make_run(tmp_path / "second", tmp_path, manifest, parent=first)
    evaluation(first, manifest, {"accuracy": 0.5, "auc": 0.5})
    other = {"path": "y", "digest": "0" * 64, "source": "tiny", "same_as_run": False}
    evaluation(second, manifest, {"accuracy": 0.6, "auc": 0.6}, shards=other)
    page = report(tmp_path, [first, second])
    assert "not measured on the same images" in page and "another shard set than its run" in page
    assert transfer_gains(read_runs([first, second]), "test") == []


def test_gains_need_one_run_of_each_kind(tmp_path: Path, chain: list[Path], manifest: Manifest) -> None:
    again = make_run(tmp_path / "scratch2", tmp_path, manifest, changes={"seed": 4})
    evaluation(again, manifest, {"accuracy": 0.4})
    assert transfer_gains(read_runs([*chain[2:], again]), "test") == []
    ((model, gain),) = transfer_gains(read_runs(chain[2:]), "test")
    assert model == "resnet14-attn5"
    assert gain == pytest.approx({"accuracy": 0.2, "auc": -0.025, "sensitivity": 0, "specificity": 0})


def test_the_roc_comes_from_the_predictions_of_the_positive_class(tmp_path: Path, chain: list[Path]) -> None:
    (run,) = read_runs([chain[2]])
    curve = run.roc("test")
    assert curve is not None
    rows = [line.split(",") for line in (chain[2] / "evaluation/test/predictions.csv").read_text().splitlines()[1:]]
    scores, labels = np.array([float(row[4]) for row in rows]), np.array([int(row[3]) for row in rows])
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[labels == 1] for b in scores[labels == 0]]
    assert float(np.trapezoid(curve.y, curve.x)) == pytest.approx(np.mean(pairs))
    assert run.roc("val") is None


def test_recipes_show_what_was_changed_and_why_print_differs(tmp_path: Path, chain: list[Path]) -> None:
    tables = Tables(report(tmp_path, chain)).tables
    tuned = {row[0]: row[1:] for row in tables[4]}
    assert tuned["data.image_size"] == ["48", "224", "", ""]
    assert tuned["optim.lr"][:3] == ["0.03", "0.03", "0.3"] and "MoCo" in tuned["optim.lr"][3]
    page = (tmp_path / "report.html").read_text()
    assert page.count('<tr class="changed">') == 4 * 2  # image_size and epochs of each run


def test_parent_weights_that_were_replaced_are_noticed(tmp_path: Path, chain: list[Path]) -> None:
    assert "have changed since" not in report(tmp_path, chain)
    (chain[1] / "weights.safetensors").write_bytes(b"other")
    assert Tables(report(tmp_path, chain)).tables[0][3][4] == "sstl_m its weights have changed since"


def record(run: Path, **changes: Any) -> None:
    """Change sections of a run's run.json by hand."""
    file = run / "run.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_a_parent_that_is_gone_is_said_to_be(tmp_path: Path, chain: list[Path]) -> None:
    chain[0].rename(tmp_path / "elsewhere")
    tables = Tables(report(tmp_path, chain[1:])).tables
    lost = f"parent not found: {chain[0]}"
    assert tables[0][1][4] == lost
    assert tables[0][2][4] == "sstl_m"
    assert tables[1][1][2] == f"with transfer {lost} → sstl_m"


def test_a_baseline_and_the_reasons_of_its_recipe_are_shown(tmp_path: Path, chain: list[Path]) -> None:
    record(chain[1], ssl="moco", reasons={"optim.lr": "scaled with data.batch_size: 0.03 x 8 / 256"})
    tables = Tables(report(tmp_path, chain[1:])).tables
    assert tables[0][1][1] == "SSTL-M self-supervised, CT, moco"
    assert tables[1][1][2] == "with transfer stl_m → sstl_m-moco"
    rows = [row for table in tables for row in table if row]
    assert any(row[0] == "optim.lr" and row[-1].startswith("scaled with data.batch_size") for row in rows)
    # Pretraining without labels has no use for dropout; the two fine-tunings have.
    assert [row[0] for row in rows].count("model.dropout") == 2


def test_runs_moved_together_still_know_their_parents(tmp_path: Path, chain: list[Path]) -> None:
    old = [path.name for path in chain]
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in chain:
        path.rename(moved / path.name)
    tables = Tables(report(tmp_path, [moved / name for name in old])).tables
    assert [row[4] for row in tables[0][1:]] == ["random weights", "stl_m", "sstl_m", "random weights"]
    assert tables[1][1][2] == "with transfer stl_m → sstl_m"
    # One that only has the name is another run.
    (moved / "stl_m" / "weights.safetensors").write_bytes(b"other")
    assert Tables(report(tmp_path, [moved / "sstl_m"])).tables[0][1][4] == f"parent not found: {chain[0]}"


def test_a_parent_file_beside_the_run_is_found(tmp_path: Path, chain: list[Path]) -> None:
    (tmp_path / "net.pth").write_bytes(b"net")
    held = {"path": "/gone/net.pth", "weights": "/gone/net.pth", "digest": sha256_file(tmp_path / "net.pth")}
    record(chain[1], parent=held)
    assert Tables(report(tmp_path, chain)).tables[0][2][4] == "net.pth"
    (tmp_path / "net.pth").unlink()
    assert Tables(report(tmp_path, chain)).tables[0][2][4] == "parent not found: /gone/net.pth"


def test_a_relative_parent_is_never_sought_from_the_current_folder(
    tmp_path: Path, chain: list[Path], manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(tmp_path / "here" / "runs" / "base", tmp_path, manifest, stage="stl_n")
    monkeypatch.chdir(tmp_path / "here")
    record(chain[1], parent={"path": "runs/base", "weights": "runs/base/weights.safetensors", "digest": "0" * 64})
    assert Tables(report(tmp_path, chain)).tables[0][2][4] == "parent not found: runs/base"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"parent": "stl_m"}, "parent: "),
        ({"parent": {"path": "x", "weights": "x"}}, r"parent\.digest: Field required"),
        ({"carry": {"carried": 3}}, r"carry\.new: Field required"),
        ({"software": ["torch"]}, "software: "),
        ({"git": 7}, "git: "),
        ({"wall_seconds": "long"}, "wall_seconds: "),
        ({"printed": {"optim.lr": 3}}, r"printed\.optim\.lr: "),
        ({"recipe": {"data": {"image_size": 48}, "optim": 3}}, r"recipe\.optim: "),
    ],
)
def test_odd_sections_of_run_json_are_named(
    tmp_path: Path, chain: list[Path], changes: dict[str, Any], why: str
) -> None:
    record(chain[1], **changes)
    for runs in (chain[1:2], chain[2:3]):  # itself, and as a parent
        with pytest.raises(MstlError, match=rf"sstl_m/run\.json: it cannot be read \({why}"):
            report(tmp_path, runs)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ({"step": 4}, r"step 4: it cannot be read \(epoch: Field required"),
        ({"step": 4, "epoch": 1}, r"step 4: it cannot be read \(loss: Field required"),
        ({"step": 4, "epoch": 1, "loss": "high"}, "loss: "),
        ({"step": 4, "split": "val", "auc": 0.5}, "epoch: Field required"),
        ({"step": 4, "epoch": 1, "split": "val", "auc": "high"}, "auc: "),
        ({"epoch": 1, "loss": 0.5}, "line 10"),
    ],
)
def test_lines_of_metrics_without_fields_are_named(
    tmp_path: Path, chain: list[Path], line: dict[str, Any], why: str
) -> None:
    with (chain[0] / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    with pytest.raises(MstlError, match=rf"stl_m/metrics\.jsonl, .*{why}"):
        report(tmp_path, chain)


@pytest.mark.parametrize("body", [[], {}, {"n": 0}, {"metrics": None}, {"positive": "flu"}, {"shards": {}}])
def test_odd_evaluations_are_named(tmp_path: Path, chain: list[Path], body: Any) -> None:
    file = chain[2] / "evaluation" / "test" / "metrics.json"
    whole = json.loads(file.read_text())
    file.write_text(json.dumps({**whole, **body} if body else body))
    with pytest.raises(MstlError, match=r"finetune/evaluation/test/metrics\.json: it cannot be read"):
        report(tmp_path, chain)


def test_a_place_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path, chain: list[Path]) -> None:
    (tmp_path / "text").write_text("")
    os.mkfifo(tmp_path / "pipe")
    cases = [("", "is a folder"), ("text/a/r.html", "text is no folder"), ("pipe", "no ordinary file")]
    for name, why in cases:
        with pytest.raises(MstlError, match=why):
            write_report(tmp_path / name, title="t", runs=[tmp_path / "no-run"])
    with pytest.raises(MstlError, match=r"no run\.json"):
        write_report(tmp_path / "new" / "r.html", title="t", runs=[tmp_path / "no-run"])
    assert not (tmp_path / "new").exists()


def test_runs_of_one_name_are_told_apart_and_none_is_named_twice(tmp_path: Path, manifest: Manifest) -> None:
    runs = [make_run(tmp_path / seed / "finetune", tmp_path, manifest) for seed in ("s0", "s1")]
    assert [run.name for run in read_runs(runs)] == ["s0/finetune", "s1/finetune"]
    for run in runs:
        heatmap_path(run, "test").parent.mkdir(parents=True)
        heatmap_path(run, "test").touch()
    assert list(heatmaps(runs)) == ["s0/finetune, test split", "s1/finetune, test split"]
    with pytest.raises(MstlError, match="named twice"):
        read_runs([runs[0], runs[0]])


def test_bad_input_is_refused_and_leaves_the_old_report(tmp_path: Path, chain: list[Path]) -> None:
    old = report(tmp_path, chain)
    (tmp_path / "text.png").write_text("no image")
    cases: list[tuple[list[Path], dict[str, Path], str]] = [
        ([], {}, "no run was named"),
        ([tmp_path], {}, "no run.json"),
        (chain, {"a": tmp_path / "gone.png"}, "cannot be read"),
        (chain, {"a": tmp_path / "text.png"}, "no PNG"),
    ]
    for runs, images, match in cases:
        with pytest.raises(MstlError, match=match):
            report(tmp_path, runs, images=images)
    (chain[2] / "evaluation" / "test" / "metrics.json").write_text("{half")
    with pytest.raises(MstlError, match=r"evaluation/test/metrics\.json: it cannot be read"):
        report(tmp_path, chain)
    assert (tmp_path / "report.html").read_text() == old


def test_predictions_of_another_evaluation_are_named(tmp_path: Path, chain: list[Path]) -> None:
    file = chain[2] / "evaluation" / "test" / "predictions.csv"
    file.write_text("\n".join(file.read_text().splitlines()[:-1]) + "\n")
    with pytest.raises(MstlError, match=r"predictions\.csv: it has 9 rows, and metrics.json counts 10 images"):
        report(tmp_path, chain)


def test_the_command_picks_up_heatmaps(tmp_path: Path, chain: list[Path]) -> None:
    Image.new("RGB", (8, 8)).save(chain[2] / "evaluation" / "test" / "heatmaps.png")
    out = tmp_path / "new" / "r.html"
    result = CliRunner().invoke(command, [*map(str, chain), "--out", str(out), "--title", "T1"], catch_exceptions=False)
    assert result.exit_code == 0 and f"Wrote {out}" in result.output
    page = out.read_text()
    assert "<h1>T1</h1>" in page and "Where the network looks" in page and "finetune, test split" in page


def test_small_pieces() -> None:
    values = np.array([4.0, 2.0, 6.0, 0.0])
    assert running_mean(values, 2).tolist() == [4, 3, 4, 3]
    assert running_mean(values, 1).tolist() == values.tolist()
    assert [_duration(s) for s in (None, 4.4, 61, 3 * 3600 + 125)] == ["", "4 s", "1 min 01 s", "3 h 02 min"]
    assert [_points(v) for v in (None, 0.0123, -0.2)] == ["", "+1.2", "−20.0"]
