"""A study's report: measured beside reported, every gap and its reason, every number traced to its run."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from matplotlib.figure import Figure
from tiny_studies import TEXT, fail, finish, finish_all, make_sets, plan_tiny

from mstl.cli.report import command
from mstl.study.figures import to_png
from mstl.study.gain_tables import gain_tables
from mstl.study.paper_tables import paper_tables
from mstl.study.planned import StudyPlan
from mstl.study.render import natural_width
from mstl.study.reported import PAPER_NETWORKS, reported
from mstl.study.state import LOCK_NAME, Status, StudyState
from mstl.study.study_files import read_study_folder
from mstl.study.study_report import write_study_report
from mstl.study.table import Cell, Table
from shards.errors import MstlError
from shards.files import lock_file

SHIFTS = {"finetune_full": 2.0, "finetune_no_tl": 0.7, "stl_n": 1.0}
FAILED, LATE = "sstl/resnet14-attn5/s0", "finetune_odd/resnet50-attn0/s2"


class Page(HTMLParser):
    """What a test asks of the page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append((tag, found))
        if found.get("id"):
            self.ids.append(str(found["id"]))

    def all(self, name: str, key: str) -> list[str]:
        return [str(found.get(key) or "") for tag, found in self.tags if tag == name]


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sets(tmp_path_factory.mktemp("sets"))


@pytest.fixture(scope="module")
def plan(sets: Path, tmp_path_factory: pytest.TempPathFactory) -> StudyPlan:
    """A study with a failure, what it blocks, and one node that has not run."""
    plan = plan_tiny(tmp_path_factory.mktemp("study"), sets)
    state = StudyState.open(plan)
    fail(state, FAILED)
    finish_all(state, SHIFTS, but=(*(name for name, one in state.states.items() if one.state != "waiting"), LATE))
    return plan


@pytest.fixture(scope="module")
def page(plan: StudyPlan) -> str:
    write_study_report(plan.out, plan.out / "report.html")
    return (plan.out / "report.html").read_text()


def tables(plan: StudyPlan) -> dict[str, Table]:
    facts = read_study_folder(plan.out)
    return {table.name: table for table in (*paper_tables(facts), *gain_tables(facts))}


def cell(table: Table, network: str, column: str, metric: str) -> Cell:
    names = [one.name for one in table.columns]
    (row,) = (row for row in table.rows if (row.network, row.column) == (network, column))
    return row.cells[names.index(metric)]


def value_of(plan: StudyPlan, node: str, metric: str, split: str = "test") -> float:
    file = plan.out / plan.nodes[node].path / "evaluation" / split / "metrics.json"
    return float(json.loads(file.read_text())["metrics"][metric])


def values_of(plan: StudyPlan, name: str, network: str, metric: str) -> list[float]:
    return [value_of(plan, f"{name}/{network}/s{seed}", metric) for seed in range(3)]


def test_the_tables_hold_the_means_of_the_runs_beside_the_papers(plan: StudyPlan) -> None:
    found = tables(plan)
    assert list(found) == [*(f"table{number}" for number in range(1, 7)), "further", "gains", "benefits"]
    for network in ("resnet50-attn0", "resnet50-attn5"):
        for metric in ("accuracy", "f1", "auc"):
            expected = values_of(plan, "finetune_full", network, metric)
            for number in (2, 3, 4):
                one = cell(found[f"table{number}"], network, "full", metric)
                assert one.measured is not None
                assert one.measured.mean == pytest.approx(np.mean(expected))
                assert one.measured.sd == pytest.approx(np.std(expected, ddof=1))
                assert one.measured.seeds == (0, 1, 2)
                assert one.reported == reported()[number, network, "full", metric]
    top5 = cell(found["table1"], "resnet50-attn5", "", "top5_accuracy")
    assert top5.measured is not None
    assert top5.measured.mean == pytest.approx(value_of(plan, "stl_n/resnet50-attn5/s0", "top5_accuracy", "val"))
    leep = cell(found["table6"], "resnet50-attn0", "", "stl_n")
    assert leep.measured is not None and leep.also is not None and leep.reported is not None
    assert (leep.also.mean, leep.measured.mean) == pytest.approx((-0.6, -0.6 / np.log(2)))
    assert leep.reported.value == -0.908


def test_gains_are_over_what_the_paper_takes_them_over(plan: StudyPlan) -> None:
    found = tables(plan)
    full, none = (values_of(plan, name, "resnet50-attn5", "auc") for name in ("finetune_full", "finetune_no_tl"))
    base, base_none = (values_of(plan, name, "resnet50-attn0", "auc") for name in ("finetune_full", "finetune_no_tl"))
    cases = [
        (cell(found["table2"], "resnet50-attn5", "full", "auc").gain, np.subtract(full, base)),
        (cell(found["table4"], "resnet50-attn5", "full", "auc").gain, np.subtract(full, none)),
        (cell(found["gains"], "resnet50-attn5", "full-no_tl", "auc").measured, np.subtract(full, none)),
        (cell(found["benefits"], "resnet50-attn5", "full-no_tl", "auc").measured,
         np.subtract(full, none) - np.subtract(base, base_none)),
    ]  # fmt: skip
    for measured, expected in cases:
        assert measured is not None
        assert measured.mean == pytest.approx(np.mean(expected))
        assert measured.sd == pytest.approx(np.std(expected, ddof=1))
        assert measured.images_span is not None
    assert cell(found["table2"], "resnet50-attn0", "full", "auc").gain is None
    assert cell(found["table4"], "resnet50-attn0", "no_tl", "auc").gain is None
    assert cell(found["table3"], "resnet50-attn5", "full", "auc").gain is None
    printed = cell(found["benefits"], "resnet50-attn5", "full-no_tl", "accuracy").reported
    assert printed is not None and printed.value == 4.7  # the text of the paper says 3.7


def test_what_was_not_measured_stays_empty_and_what_was_not_printed_too(plan: StudyPlan) -> None:
    found = tables(plan)
    for table in found.values():
        for row in table.rows:
            for one in row.cells:
                assert row.network in PAPER_NETWORKS or one.reported is None
                assert "resnet101" not in row.network or one.measured is None
    blocked = cell(found["table2"], "resnet14-attn5", "full", "auc")
    assert blocked.measured is None and len(blocked.place.nodes) == 3
    assert cell(found["table3"], "resnet50-attn0", "moco", "auc").measured is None
    assert not any(row.network == "resnet14-attn5" and row.column == "moco" for row in found["table3"].rows)


def test_a_column_the_paper_does_not_know_is_shown_as_it_is(plan: StudyPlan) -> None:
    further = tables(plan)["further"]
    assert [(row.network, row.setting) for row in further.rows] == [
        (network, "finetune_odd (column odd_one)") for network in ("resnet50-attn0", "resnet50-attn5", "resnet14-attn5")
    ]
    assert not further.has_reported
    late = cell(further, "resnet50-attn0", "odd_one", "auc").measured
    assert late is not None and late.seeds == (0, 1)
    gain = cell(tables(plan)["gains"], "resnet50-attn5", "odd_one-no_tl", "auc")
    assert gain.measured is not None and gain.reported is None


def test_of_two_nodes_with_one_column_the_second_stands_apart(sets: Path, tmp_path: Path) -> None:
    plan = plan_tiny(tmp_path, sets, TEXT.replace('"odd_one"', '"no_tl"'))
    state = StudyState.open(plan)
    for name in ("finetune_no_tl", "finetune_odd"):
        finish(state, f"{name}/resnet50-attn0/s0")
    found = tables(plan)
    own = cell(found["table4"], "resnet50-attn0", "no_tl", "auc").measured
    assert own is not None and own.mean == pytest.approx(value_of(plan, "finetune_no_tl/resnet50-attn0/s0", "auc"))
    other = cell(found["further"], "resnet50-attn0", "no_tl", "auc").measured
    assert other is not None and other.mean == pytest.approx(value_of(plan, "finetune_odd/resnet50-attn0/s0", "auc"))


def test_substitutions_are_marked_where_they_are_behind_a_figure(plan: StudyPlan, page: str) -> None:
    found = tables(plan)
    text = {"a": "noise stands for ImageNet"}
    assert all(found[f"table{number}"].substitutions == text for number in range(1, 5))
    assert found["further"].substitutions == {}
    assert cell(found["table4"], "resnet50-attn0", "full", "auc").marks == "a"
    assert cell(found["table4"], "resnet50-attn0", "no_tl", "auc").marks == ""
    assert cell(found["table2"], "resnet14-attn5", "full", "auc").marks == ""  # nothing measured
    assert page.count("<sup>a</sup> noise stands for ImageNet") >= 6


def test_notes_tell_what_the_intervals_leave_out(plan: StudyPlan) -> None:
    notes = " ".join(tables(plan)["table4"].notes)
    assert "test split of tiny-ct, n = 16" in notes
    assert "run once for all of their seeds (sstl)" in notes
    assert "never checked" in notes
    assert "finetune_no_tl" not in notes.partition("run once")[2].partition(":")[0]
    assert "not printed" not in notes


def test_what_is_missing_is_listed_with_its_reason(page: str) -> None:
    begin = page.index('<section id="unfinished">')
    part = re.sub(r"<wbr>|<small>|</small>", "", page[begin : page.index("</section>", begin)])
    assert f"training of {FAILED}: the disk is &lt;full&gt;" in part
    assert f"it stands on {FAILED}, which failed" in part
    assert "finetune_full/resnet14-attn5, seeds 0, 1, 2" in part
    assert "finetune_odd/resnet50-attn0, seed 2" in part
    assert "31 finished, 1 failed, 3 blocked, 1 waiting of 36 nodes" in page


def test_the_page_stands_alone_and_its_links_lead_somewhere(plan: StudyPlan, page: str) -> None:
    found = Page(page)
    assert len(found.ids) == len(set(found.ids))
    assert not re.search(r"https?://|@import|<script|url\(|\bNone\b", page)
    assert all(source.startswith("data:image/png;base64,") for source in found.all("img", "src"))
    assert all(found.all("img", "alt"))
    assert all(found.all("th", "scope"))
    links = found.all("a", "href")
    inner = {link.removeprefix("#") for link in links if link.startswith("#")}
    assert inner <= set(found.ids)
    outer = [link for link in links if not link.startswith("#")]
    assert len(outer) == 31
    assert all((plan.out / link).is_file() for link in outer)
    captions = sum(tag == "caption" for tag, _ in found.tags)
    assert captions == sum(tag == "table" for tag, _ in found.tags) > 9
    assert "A &lt;tiny&gt; study" in page


def test_figures_are_shown_at_the_size_of_their_letters() -> None:
    png = to_png(Figure(figsize=(5.0, 2.0)))
    assert natural_width(png) == 480
    assert natural_width(to_png(Figure(figsize=(20.0, 1.0)))) == 1060


def test_every_measured_figure_links_to_the_runs_it_is_of(page: str) -> None:
    row = re.search(r'id="runs-finetune_full-resnet50-attn0">(.*?)</tbody>', page, re.S)
    assert row is not None
    assert row[1].count("run.json") == 3
    assert 'href="#runs-finetune_full-resnet50-attn0"' in page


def test_the_misprints_stand_as_printed_and_marked(page: str) -> None:
    assert "‡ resnet101-attn1, STL-M, Accuracy: printed +3.1; the printed values differ by +4.1" in page
    assert "‡ resnet50-attn1, STL-M, AUC: printed +6.6; the printed values differ by +6.4" in page
    assert "printed 0.-909" in page
    assert page.count("<sup>‡</sup>") == 3


def test_the_csvs_hold_every_figure_with_its_runs(plan: StudyPlan, page: str) -> None:
    folder = plan.out / "report-tables"
    assert sorted(file.stem for file in folder.iterdir()) == sorted(tables(plan))
    with (folder / "table4.csv").open() as text:
        rows = list(csv.DictReader(text))
    assert len(rows) == (6 * 2 + 2) * 3
    (row,) = (r for r in rows if (r["network"], r["column"], r["metric"]) == ("resnet50-attn5", "full", "auc"))
    expected = values_of(plan, "finetune_full", "resnet50-attn5", "auc")
    assert float(row["mean"]) == pytest.approx(100 * np.mean(expected))
    assert (row["seeds"], row["reported"], row["reported_gain"]) == ("0 1 2", "96.8", "9.9")
    assert row["gain_over"] == "the same network without transfer"
    ids = [f"finetune_full/resnet50-attn5/s{seed}" for seed in range(3)]
    assert row["nodes"].split() == ids
    assert row["digests"].split() == [plan.nodes[name].digest for name in ids]
    assert row["paths"].split() == [plan.nodes[name].path for name in ids]
    assert row["substitution"] == "noise stands for ImageNet"
    (empty,) = (r for r in rows if (r["network"], r["column"], r["metric"]) == ("resnet101-attn5", "full", "auc"))
    assert [empty[key] for key in ("mean", "sd", "seeds", "low", "high", "gain_mean", "nodes")] == [""] * 7
    with (folder / "table6.csv").open() as text:
        units = [(r["unit"], r["mean"]) for r in csv.DictReader(text) if r["mean"]]
    assert units[:2] == [("bits", f"{-0.6 / np.log(2):.10g}"), ("nats", "-0.6")]


@pytest.fixture
def copy(plan: StudyPlan, tmp_path: Path) -> Path:
    """The study's folder, to be damaged."""
    return Path(shutil.copytree(plan.out, tmp_path / "out"))


def test_a_damaged_result_is_named_and_the_others_are_shown(plan: StudyPlan, copy: Path) -> None:
    bad = "finetune_no_tl/resnet50-attn0/s1"
    file = copy / plan.nodes[bad].path / "evaluation" / "test" / "predictions.csv"
    file.write_text("\n".join(file.read_text().splitlines()[:-1]) + "\n")
    leep = "leep_stl_n/resnet50-attn0/s0"
    (copy / plan.nodes[leep].path / "leep.json").write_text("{}")
    gone = "finetune_no_tl/resnet50-attn0/s2"
    shutil.rmtree(copy / plan.nodes[gone].path)
    facts = read_study_folder(copy)
    assert set(facts.problems) == {bad, leep, gone}
    assert "it has 15 rows, and metrics.json counts 16 images" in facts.problems[bad]
    write_study_report(copy, copy / "r.html")
    text = (copy / "r.html").read_text()
    assert "leep.json: it cannot be read" in text and "no run.json" in text
    assert "1 seed" in text


def test_a_damaged_study_is_refused(copy: Path) -> None:
    file = copy / "study.json"
    body = json.loads(file.read_text())
    for damaged, why in (
        ("{half", "cannot be read"),
        (json.dumps({**body, "schema": 99}), "has schema 99"),
        ("[]", "has schema None"),
        (json.dumps({**body, "nodes": [{}]}), r"nodes\.0\.id: Field required"),
    ):
        file.write_text(damaged)
        with pytest.raises(MstlError, match=rf"study\.json: .*{why}"):
            write_study_report(copy, copy / "r.html")
    assert not (copy / "r.html").exists()


def test_a_node_of_a_killed_study_is_interrupted_one_of_a_living_study_running(sets: Path, tmp_path: Path) -> None:
    plan = plan_tiny(tmp_path, sets)
    state = StudyState.open(plan)
    name = "stl_n/resnet50-attn0/s0"
    state.set(name, Status(state="running"))
    (plan.out / LOCK_NAME).touch()
    facts = read_study_folder(plan.out)
    assert facts.state_of(facts.nodes[name]) == "interrupted"
    handle = lock_file(plan.out / LOCK_NAME)
    assert handle is not None
    try:
        facts = read_study_folder(plan.out)
        assert facts.state_of(facts.nodes[name]) == "running"
    finally:
        os.close(handle)


def test_a_study_that_has_not_begun_has_a_report_without_a_measured_figure(sets: Path, tmp_path: Path) -> None:
    plan = plan_tiny(tmp_path, sets)
    StudyState.open(plan).save()
    done = CliRunner().invoke(command, [str(plan.out)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert f"Wrote {plan.out}/report.html and {plan.out}/report-tables/*.csv" in done.output
    text = (plan.out / "report.html").read_text()
    assert 'class="plain"' not in text.partition("<body>")[2]
    assert "36 waiting of 36 nodes" in text
    assert "LEEP, reported" in text or "Figure 3, reported" in text
    assert "Figure 3, measured" not in text
    # A study finds its folder again with a report in it.
    (plan.out / "study.json").unlink()
    assert StudyState.open(plan).states


def test_a_study_is_reported_by_itself(plan: StudyPlan, tmp_path: Path) -> None:
    words = [
        str(plan.out),
        str(plan.out / plan.nodes["stl_n/resnet50-attn0/s0"].path),
        "--out",
        str(tmp_path / "r.html"),
    ]
    with pytest.raises(MstlError, match="a study is reported by itself"):
        CliRunner().invoke(command, words, catch_exceptions=False)
    lone = CliRunner().invoke(command, [str(tmp_path)])
    assert lone.exit_code == 2 and "--out is missing" in lone.output
    page = tmp_path / "there" / "r.html"
    done = CliRunner().invoke(command, [str(plan.out), "--out", str(page), "--title", "Mine"], catch_exceptions=False)
    assert done.exit_code == 0
    assert "<h1>Mine</h1>" in page.read_text()
    assert all((page.parent / link).is_file() for link in Page(page.read_text()).all("a", "href") if link[0] != "#")
    assert (page.parent / "r-tables" / "table1.csv").is_file()
