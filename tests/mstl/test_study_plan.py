"""What is known of a study before it runs: digests, leakage, data, and what a study's folder says of what has run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import make_shards

from mstl.places import heatmap_path
from mstl.study import preflight
from mstl.study.digests import Code, code_identity
from mstl.study.estimate import makespan, seconds_left, step_seconds
from mstl.study.graph import Graph, Node
from mstl.study.planned import StudyPlan
from mstl.study.preflight import plan_study
from mstl.study.spec import NodeSpec, read_study
from mstl.study.state import Failure, Status, StudyState, read_status, save_record, undone
from shards.errors import MstlError
from shards.schema import load_manifest
from shards.verdicts import CHECKS, Part, Verdict, save_verdicts

TEXT = """
name = "little"
networks = ["resnet14-attn1"]
evaluate = ["test"]
[data]
natural = "{sets}/natural"
ct = "{sets}/ct"
[substitutions]
natural = "noise stands for ImageNet"
[set]
data.image_size = 32
data.batch_size = 4
[[node]]
name = "first"
stage = "stl_n"
data = "natural"
[[node]]
name = "tuned"
stage = "finetune"
data = "ct"
from = "first"
explain = 1
[[node]]
name = "alone"
stage = "finetune"
data = "ct"
[[node]]
name = "score"
kind = "leep"
data = "ct"
from = "first"
"""
FIRST, TUNED, ALONE, SCORE = (f"{name}/resnet14-attn1/s0" for name in ("first", "tuned", "alone", "score"))


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets")
    for seed, name in enumerate(("natural", "ct", "other")):
        make_shards(folder / name, seed=seed, source=name)
    return folder


@pytest.fixture
def place(tmp_path: Path, sets: Path) -> Path:
    """A folder with a study file; `plan` reads it."""
    (tmp_path / "study.toml").write_text(TEXT.format(sets=sets))
    return tmp_path


def plan(place: Path, old: str = "", new: str = "", **options: Any) -> StudyPlan:
    """The plan of the study with a part of its text replaced."""
    file = place / "study.toml"
    if old:
        assert old in file.read_text()
    changed = place / "changed.toml"
    changed.write_text(file.read_text().replace(old, new) if old else file.read_text())
    return plan_study(read_study(changed), place / "out", **options)


def refused(place: Path, old: str, new: str) -> str:
    with pytest.raises(MstlError) as caught:
        plan(place, old, new)
    return str(caught.value)


def digests(made: StudyPlan) -> dict[str, str]:
    return {name: planned.digest for name, planned in made.nodes.items()}


def differing(before: StudyPlan, after: StudyPlan) -> set[str]:
    assert set(before.nodes) == set(after.nodes)
    return {name for name, digest in digests(before).items() if digests(after)[name] != digest}


def test_a_node_is_known_by_all_that_it_is_made_of_and_so_is_what_stands_on_it(place: Path, sets: Path) -> None:
    before = plan(place)
    everything = {FIRST, TUNED, ALONE, SCORE}
    assert differing(before, plan(place)) == set()
    for part in ('title = "x"\n[data]', "waive_leakage = []\n[data]"):
        assert differing(before, plan(place, "[data]", part)) == set()
    # what is measured of a run, how it is read and how often it is saved does not make it another one
    assert differing(before, plan(place, '["test"]', '["val", "test"]')) == set()
    assert differing(before, plan(place, "explain = 1", "explain = 2")) == set()
    assert differing(before, plan(place, "data.batch_size = 4", "data.batch_size = 4\ndata.workers = 3")) == set()
    assert differing(before, plan(place, "data.batch_size = 4", "data.batch_size = 8")) == everything
    assert differing(before, plan(place, "explain = 1", "set.optim.lr = 0.5")) == {TUNED}
    assert differing(before, plan(place, '"stl_n"\n', '"stl_n"\nset.optim.lr = 0.5\n')) == everything - {ALONE}
    assert differing(before, plan(place, 'from = "first"\nexplain', "explain")) == {TUNED}
    assert differing(before, plan(place, f"{sets}/ct", f"{sets}/other")) == everything - {FIRST}
    other_network = plan(place, "resnet14-attn1", "resnet14-attn5")
    assert not set(digests(other_network).values()) & set(digests(before).values())
    seeds = plan(place, 'evaluate = ["test"]', 'evaluate = ["test"]\nseeds = [0, 1]')
    assert len(set(digests(seeds).values())) == 8
    assert {name: seeds.nodes[name].digest for name in before.nodes} == digests(before)


def test_other_code_is_another_node_unless_any_code_will_do(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = plan(place)
    newer = Code(version="9", revision=None, dirty=False, sha256="0" * 64)
    monkeypatch.setattr(preflight, "code_identity", lambda: newer)
    after = plan(place)
    assert differing(before, after) == set(before.nodes)
    assert {name: planned.work for name, planned in after.nodes.items()} == {
        name: planned.work for name, planned in before.nodes.items()
    }
    assert digests(plan(place, any_code=True)) == digests(after)  # nothing has run
    save_record(before.out, before.nodes[FIRST], Status(state="finished", seconds=5.0))
    save_record(before.out, before.nodes[ALONE], Status(state="failed", seconds=5.0))
    taken = plan(place, any_code=True)
    assert digests(taken)[FIRST] == digests(before)[FIRST]
    assert digests(taken)[ALONE] == digests(after)[ALONE]
    assert digests(taken)[TUNED] not in (digests(before)[TUNED], digests(after)[TUNED])  # old parent, new code
    assert digests(plan(place)) == digests(after)
    save_record(before.out, after.nodes[FIRST], Status(state="finished", seconds=5.0))
    assert digests(plan(place, any_code=True)) == digests(after)  # this code's own comes first


def test_the_code_is_its_content_without_what_only_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mstl.study import digests as module

    names = [name for name, _ in module._sources()]
    assert {"mstl/train.py", "shards/plan.py", "pipelines/loader.py", "launch/engine.py"} <= set(names)
    assert not [name for name in names if "/cli/" in name or "mstl/study/" in name]
    file = tmp_path / "a.py"
    file.write_text("x = 1\n")
    monkeypatch.setattr(module, "_sources", lambda: iter([("mstl/a.py", file)]))
    first = code_identity().sha256
    assert first == code_identity().sha256
    file.write_text("x = 2\n")
    assert first != code_identity().sha256


def test_substitutions_and_lineage_come_down_from_ancestors(place: Path) -> None:
    made = plan(place)
    assert {name: planned.substitution for name, planned in made.nodes.items()} == {
        FIRST: "noise stands for ImageNet", TUNED: "noise stands for ImageNet", ALONE: None,
        SCORE: "noise stands for ImageNet",
    }  # fmt: skip
    own = plan(place, "[set]", 'tuned = "few images"\n[set]').nodes
    assert (own[TUNED].substitution, own[SCORE].substitution) == (
        "noise stands for ImageNet; few images",
        "noise stands for ImageNet",
    )
    assert "neither data nor a node" in refused(place, "[set]", 'turned = "x"\n[set]')


def test_all_that_is_wrong_is_told_at_once(place: Path, sets: Path) -> None:
    told = refused(place, f'natural = "{sets}/natural"', 'natural = "nowhere"')
    assert "[data] natural = nowhere" in told
    assert "mstl shard --src imagenet" in told
    (place / "study.toml").write_text(
        TEXT.format(sets=sets)
        .replace("explain = 1", 'explain = 1\nset.optim.lr = -1\nfrom = "frist"')
        .replace('from = "first"\nexplain', "explain")
        .replace('"resnet14-attn1"', '"resnet15"')
        .replace(f'natural = "{sets}/natural"', 'natural = "nowhere"')
    )
    told = refused(place, "", "")
    assert "'first' is meant" in told
    assert "resnet15" in told
    told = refused(place, '"resnet15"', '"resnet14"')
    assert "nowhere" in told
    assert told.count("\n  - ") >= 2


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('"test"', '"tset"', "evaluate.0"),
        ("data.batch_size = 4", "data.batch_size = 64", "node 'first'"),  # 10 images do not fill a step
        ("data.batch_size = 4", "data.batch_size = 1", "batch normalisation"),
        ("data.batch_size = 4", "loss.temperature = 4", "recipe field 'loss.temperature'"),
        ("data.batch_size = 4", "optim.epochs = 1979-05-27", "optim.epochs cannot be 1979-05-27"),
        ("explain = 1", "set.optim.lr = -1", "optim.lr"),
        ('from = "first"\nexplain', 'init = "nothing.pt"\nexplain', "nothing.pt"),
        ('from = "first"\nexplain', 'init = "study.toml"\nexplain', "study.toml"),
        ('data = "ct"\nfrom = "first"\n', 'data = "ct"\nfrom = "first"\nsplit = "val"\n', "split is for kind leep"),
    ],
)
def test_what_would_fail_in_a_run_is_refused_before_the_first(
    place: Path, old: str, new: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    assert told in refused(place, old, new)
    assert not (place / "out").exists()


def test_a_split_that_a_set_lacks_and_a_tar_that_is_cut_are_refused(place: Path, sets: Path) -> None:
    make_shards(place / "cut")
    tar = next((place / "cut" / "train").glob("*.tar"))
    tar.write_bytes(tar.read_bytes()[:-1])
    assert "not whole" in refused(place, f"{sets}/ct", f"{place}/cut")
    manifest = load_manifest(sets / "ct")
    assert set(manifest.splits) == {"train", "val", "test"}


def test_a_study_that_asks_for_leakage_is_refused_unless_it_names_it(place: Path, sets: Path) -> None:
    make_shards(place / "two", source="two")
    text = (place / "study.toml").read_text().replace(f"{sets}/ct", f"{place}/two")
    (place / "study.toml").write_text(text.replace('from = "first"\nexplain', "explain"))
    manifest = load_manifest(place / "two")
    parts = [
        Part(name="two", source="two", digest=manifest.digest(), split=split, images=10) for split in ("train", "val")
    ]
    save_verdicts(
        place / "two",
        manifest.digest(),
        [
            Verdict(
                check=check,
                a=parts[0],
                b=parts[1],
                outcome="found" if check == "content" else "none",
                affected=1 if check == "content" else 0,
                unknown=0,
                why="",
            )
            for check in CHECKS
        ],
    )
    told = refused(place, "", "")
    assert "two:train~val:content" in told
    assert told.count("node '") == 2  # tuned and alone, once each; first has other data, and LEEP trains nothing
    made = plan(place, "[data]", 'waive_leakage = ["two:train~val:content"]\n[data]')
    assert made.nodes[ALONE].leakage == "waived: two:train~val:content"
    assert made.nodes[ALONE].waived == ("two:train~val:content",)
    assert made.nodes[SCORE].leakage == "found: two:train~val:content"
    assert made.nodes[FIRST].leakage == "never checked"
    assert not made.nodes[FIRST].waived
    assert "no node has the finding 'x:y'" in refused(
        place, "[data]", 'waive_leakage = ["x:y", "two:train~val:content"]\n[data]'
    )


def leave(out: Path, made: StudyPlan, name: str, *, splits: tuple[str, ...] = (), heatmaps: bool = False) -> Path:
    """What a finished training would leave of a node."""
    run = out / made.nodes[name].path
    run.mkdir(parents=True)
    (run / "run.json").write_text('{"status": "finished"}')
    (run / "weights.safetensors").write_bytes(b"w")
    for split in splits:
        (run / "evaluation" / split).mkdir(parents=True)
        (run / "evaluation" / split / "metrics.json").write_text("{}")
    if heatmaps:
        heatmap_path(run, splits[0]).write_bytes(b"png")
    return run


def test_what_is_done_is_read_from_the_files_alone(place: Path) -> None:
    made = plan(place)
    out = made.out
    assert undone(out, made.nodes[TUNED]) == ("train", "judge")
    assert undone(out, made.nodes[FIRST]) == ("train",)
    assert undone(out, made.nodes[SCORE]) == ("leep",)
    run = leave(out, made, TUNED)
    assert undone(out, made.nodes[TUNED]) == ("judge",)
    leave(out, made, ALONE, splits=("test",))
    assert undone(out, made.nodes[ALONE]) == ()
    (run / "evaluation" / "test").mkdir(parents=True)
    (run / "evaluation" / "test" / "metrics.json").write_text("{}")
    assert undone(out, made.nodes[TUNED]) == ("judge",)  # its heatmaps
    heatmap_path(run, "test").write_bytes(b"png")
    assert undone(out, made.nodes[TUNED]) == ()
    (run / "run.json").write_text('{"status": "interrupted"}')
    assert undone(out, made.nodes[TUNED]) == ("train",)
    (run / "run.json").write_text('{"sta')
    assert undone(out, made.nodes[TUNED]) == ("train",)
    (out / made.nodes[SCORE].path).mkdir(parents=True)
    (out / made.nodes[SCORE].path / "leep.json").write_text("{}")
    assert undone(out, made.nodes[SCORE]) == ()


def test_study_json_says_all_that_a_report_needs(place: Path) -> None:
    made = plan(place)
    leave(made.out, made, ALONE, splits=("test",))
    save_record(made.out, made.nodes[ALONE], Status(state="finished", seconds=12.5))
    state = StudyState.open(made)
    assert {name: status.state for name, status in state.states.items()} == {
        FIRST: "waiting", TUNED: "waiting", ALONE: "finished", SCORE: "waiting",
    }  # fmt: skip
    failure = Failure(what="training of x", why="it broke", remedy="Mend it", log="a.log")
    state.set(FIRST, Status(state="failed", seconds=3.0, error=failure))
    assert set(state.block(FIRST)) == {TUNED, SCORE}
    body = json.loads((made.out / "study.json").read_text())
    assert (body["schema"], body["name"], body["title"]) == (1, "little", "little")
    assert (made.out / "study.toml").read_bytes() == made.file.text
    nodes = {node["id"]: node for node in body["nodes"]}
    assert list(nodes) == list(made.nodes)
    assert {name: node["state"] for name, node in nodes.items()} == {
        FIRST: "failed", TUNED: "blocked", ALONE: "finished", SCORE: "blocked",
    }  # fmt: skip
    assert nodes[ALONE]["seconds"] == 12.5
    assert nodes[FIRST]["error"] == {"what": "training of x", "why": "it broke", "remedy": "Mend it", "log": "a.log"}
    tuned = nodes[TUNED]
    assert tuned["path"] == f"runs/{TUNED}-{tuned['digest'][:8]}"
    assert nodes[SCORE]["path"].startswith(f"leep/{SCORE}-")
    assert tuned["parents"] == [FIRST]
    assert (tuned["stage"], tuned["network"], tuned["seed"]) == ("finetune", "resnet14-attn1", 0)
    assert tuned["data"]["digest"] == load_manifest(Path(tuned["data"]["path"])).digest()
    assert {split: facts["samples"] for split, facts in tuned["data"]["splits"].items()} == dict.fromkeys(
        ("train", "val", "test"), 10
    )
    assert tuned["steps"] == 3 * 200  # 10 images by 4, the last step smaller; 200 epochs
    # a failed node is tried again, and its failure remembered until then
    again = read_status(made.out, made.nodes[FIRST])
    assert (again.state, again.seconds, again.error) == ("waiting", 3.0, failure)


def test_a_folder_of_something_else_is_left_alone(place: Path) -> None:
    made = plan(place)
    made.out.mkdir()
    (made.out / "mine.txt").write_text("x")
    with pytest.raises(MstlError, match="it holds files and no study"):
        StudyState.open(made)
    (made.out / "study.json").write_text('{"name": "other", "schema": 1, "created": "x"}')
    with pytest.raises(MstlError, match="it holds the study 'other'"):
        StudyState.open(made)
    (made.out / "study.json").write_text('{"name": ')
    with pytest.raises(MstlError, match="cannot be read"):
        StudyState.open(made)


def test_time_left_comes_from_finished_nodes_that_are_alike(place: Path) -> None:
    made = plan(place)
    states = {name: Status() for name in made.nodes}
    assert set(seconds_left(made.nodes.values(), states, step_seconds(made.out)).values()) == {None}
    save_record(made.out, made.nodes[ALONE], Status(state="finished", seconds=60.0))
    save_record(made.out, made.nodes[FIRST], Status(state="failed", seconds=60.0))
    faster = plan(place, "explain = 1", "set.optim.epochs = 100\nset.optim.milestones = []")
    left = seconds_left(faster.nodes.values(), {**states, ALONE: Status(state="finished")}, step_seconds(made.out))
    assert left == {FIRST: None, TUNED: pytest.approx(30.0), ALONE: 0.0, SCORE: None}
    begun = seconds_left([faster.nodes[TUNED]], {TUNED: Status(seconds=20.0)}, step_seconds(made.out))
    assert begun == {TUNED: pytest.approx(10.0)}
    larger = plan(place, "data.batch_size = 4", "data.batch_size = 5")
    assert seconds_left([larger.nodes[ALONE]], states, step_seconds(made.out)) == {ALONE: None}


def test_the_makespan_is_that_of_starting_each_node_as_soon_as_it_can(place: Path) -> None:
    spec = NodeSpec(name="n", data="ct")

    def graph(parents: dict[str, tuple[str, ...]]) -> Graph:
        return Graph({name: Node(id=name, spec=spec, network="x", seed=0, parents=of) for name, of in parents.items()})

    chain = graph({"a": (), "b": ("a",), "c": ("b",)})
    assert makespan(chain, {"a": 1.0, "b": 2.0, "c": 3.0}, 4) == 6.0
    assert makespan(chain, {"b": 2.0, "c": 3.0}, 4) == 5.0  # a is done, or not known
    free = graph(dict.fromkeys("abcd", ()))
    assert makespan(free, {"a": 3.0, "b": 1.0, "c": 1.0, "d": 1.0}, 1) == 6.0
    assert makespan(free, {"a": 3.0, "b": 1.0, "c": 1.0, "d": 1.0}, 2) == 3.0
    fan = graph({"a": (), "b": ("a",), "c": ("a",), "d": ()})
    assert makespan(fan, {"a": 2.0, "b": 2.0, "c": 2.0, "d": 5.0}, 2) == 6.0
    assert makespan(fan, {}, 2) == 0.0
