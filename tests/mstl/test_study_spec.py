"""Study files and their graph: what is read, what is refused and how, and what becomes of the nodes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import get_args

import pytest

from mstl.recipes import Recipe, Ssl
from mstl.stage_specs import STAGES
from mstl.study.graph import Graph, expand
from mstl.study.spec import NodeSpec, StageName, Study, as_words, flat, read_study
from shards.errors import MstlError

STUDIES = Path(__file__).parents[2] / "studies"
HEAD = 'name = "s"\nnetworks = ["resnet14-attn1"]\n[data]\nct = "sets/ct"\n'
NODE = '[[node]]\nname = "a"\nstage = "finetune"\ndata = "ct"\n'


def written(folder: Path, text: str) -> Path:
    file = folder / "study.toml"
    file.write_text(text)
    return file


def graph_of(folder: Path, text: str) -> tuple[Graph, list[str]]:
    return expand(read_study(written(folder, text)).study)


def test_the_papers_grid_has_every_pretraining_and_every_column() -> None:
    graph, problems = expand(read_study(STUDIES / "paper.toml").study)
    assert not problems
    nodes = list(graph.nodes.values())
    assert len({node.network for node in nodes}) == 6
    pretrainings = [node for node in nodes if node.spec.kind == "train" and node.spec.stage != "finetune"]
    assert len(pretrainings) == 36
    assert Counter(node.spec.stage for node in pretrainings) == {"stl_n": 6, "stl_m": 12, "sstl_m": 18}
    tuned = [node for node in nodes if node.spec.stage == "finetune"]
    assert len({(node.spec.column, node.network) for node in tuned}) == 36
    assert Counter(node.seed for node in tuned) == dict.fromkeys(range(5), 36)
    assert all(node.spec.data == "ct" for node in tuned)

    def behind(name: str) -> list[tuple[str | None, str | None]]:
        chain = [graph.nodes[one].spec for one in graph.ancestors(f"{name}/resnet50-attn5/s3")]
        return [(spec.stage, spec.ssl) for spec in chain]

    first = [("stl_m", None), ("stl_n", None)]
    columns = {node.spec.column: node.spec.name for node in tuned}
    assert {column: behind(name) for column, name in columns.items()} == {
        "no_tl": [],
        "stl_n": [("stl_n", None)],
        "stl_m": [("stl_m", None)],  # alone: spec 1.8, 23
        "moco": [("sstl_m", "moco"), *first],
        "simclr": [("sstl_m", "simclr"), *first],
        "full": [("sstl_m", "ours"), *first],
    }
    scores = [node for node in nodes if node.spec.kind == "leep"]
    assert Counter(node.spec.column for node in scores) == {"no_tl": 6, "stl_n": 6, "stl_n+stl_m": 6}


@pytest.mark.parametrize("file", sorted(STUDIES.glob("*.toml")), ids=lambda file: file.stem)
def test_the_studies_of_the_repository_are_whole(file: Path) -> None:
    study = read_study(file).study
    graph, problems = expand(study)
    assert not problems
    assert study.name == file.stem
    assert len(graph.nodes) == sum(len(study.networks_of(n)) * len(study.seeds_of(n)) for n in study.node)


def test_names_are_those_of_the_program() -> None:
    assert set(get_args(StageName)) == set(STAGES)
    assert NodeSpec.model_fields["ssl"].annotation == Ssl | None
    assert not set(STAGES) & set(Recipe.model_fields)  # [set] holds both


def test_fields_may_be_written_with_dots_or_as_tables_and_the_nearer_one_wins(tmp_path: Path) -> None:
    text = (
        HEAD.replace("[data]", 'set.data.image_size = 64\nset."optim.lr" = 0.5\n[data]')
        + "[set.finetune]\noptim.lr = 0.25\noptim.epochs = 4\n"
        + NODE
        + 'set = {"optim.epochs" = 3}\n'
    )
    study = read_study(written(tmp_path, text)).study
    fields = study.recipe_fields(study.node[0])
    assert fields == {"data.image_size": 64, "optim.lr": 0.25, "optim.epochs": 3}
    assert as_words(fields) == ("data.image_size=64", "optim.lr=0.25", "optim.epochs=3")
    other = study.node[0].model_copy(update={"stage": "stl_m", "overrides": {}})
    assert study.recipe_fields(other) == {"data.image_size": 64, "optim.lr": 0.5}
    assert flat({"a": {"b": [1, 2]}, "c.d": "none"}) == {"a.b": [1, 2], "c.d": "none"}


def test_a_node_has_its_parent_of_the_same_network_and_seed_or_of_the_only_seed(tmp_path: Path) -> None:
    text = (
        HEAD.replace('["resnet14-attn1"]', '["resnet14", "resnet26-attn5"]\nseeds = [1, 2]')
        + NODE
        + '[[node]]\nname = "once"\nstage = "stl_m"\ndata = "ct"\nseeds = [7]\n'
        + '[[node]]\nname = "b"\nstage = "finetune"\ndata = "ct"\nfrom = "a"\nnetworks = ["resnet14-attn0"]\n'
        + '[[node]]\nname = "c"\nstage = "finetune"\ndata = "ct"\nfrom = "once"\n'
    )
    graph, problems = graph_of(tmp_path, text)
    assert not problems
    assert graph.nodes["b/resnet14-attn0/s2"].parents == ("a/resnet14-attn0/s2",)
    assert "b/resnet26-attn5/s2" not in graph.nodes
    assert {graph.nodes[f"c/resnet26-attn5/s{seed}"].parents for seed in (1, 2)} == {("once/resnet26-attn5/s7",)}
    assert graph.descendants("once/resnet26-attn5/s7") == {"c/resnet26-attn5/s1", "c/resnet26-attn5/s2"}
    assert graph.chosen(["b"]) == {f"{name}/resnet14-attn0/s{seed}" for name in "ab" for seed in (1, 2)}
    assert graph.chosen(["c/*/s1"]) == {f"{name}/{network}/s{seed}" for network in ("resnet14-attn0", "resnet26-attn5")
                                        for name, seed in (("c", 1), ("once", 7))}  # fmt: skip
    assert graph.chosen([]) == set(graph.nodes)
    assert graph.chosen(["nothing"]) == set()


def test_parents_come_before_children_wherever_they_stand_in_the_file(tmp_path: Path) -> None:
    text = HEAD + NODE + 'from = "b"\n' + NODE.replace('"a"', '"b"') + 'from = "c"\n' + NODE.replace('"a"', '"c"')
    graph, problems = graph_of(tmp_path, text)
    assert not problems
    assert [node.spec.name for node in graph.nodes.values()] == ["c", "b", "a"]
    assert graph.ancestors("a/resnet14-attn1/s0") == ["b/resnet14-attn1/s0", "c/resnet14-attn1/s0"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (HEAD, ["node is missing"]),
        (HEAD + NODE + "evalute = []\n", ["node 'a'", "no such key", "'evaluate' is meant"]),
        (HEAD.replace("networks", "network") + NODE, ["networks is missing", "'networks' is meant"]),
        (HEAD.replace('["resnet14-attn1"]', "[]") + NODE, ["networks is empty"]),
        (HEAD.replace("[data]", "seeds = []\n[data]") + NODE, ["seeds is empty"]),
        (HEAD + NODE + 'seeds = [0, -1]\nssl = "mocco"\n', ["node 'a', seeds.1", "-1", "node 'a', ssl", "'moco'"]),
        (HEAD + NODE.replace('"a"', '"a/b"'), ["node 'a/b', name"]),
        (HEAD + "[set]\nopt.lr = 3\n" + NODE, ["[set]", "'opt'", "'optim' is meant"]),
        (HEAD + "[set]\nfinetune = 3\n" + NODE, ["finetune names a stage"]),
        ("name = ", ["it is no TOML"]),
    ],
)
def test_what_is_wrong_in_a_file_is_told_in_its_own_words(tmp_path: Path, text: str, told: list[str]) -> None:
    with pytest.raises(MstlError) as caught:
        read_study(written(tmp_path, text))
    for word in told:
        assert word in str(caught.value)


def test_a_missing_file_and_unknown_data_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MstlError, match="cannot be read"):
        read_study(tmp_path / "none.toml")
    with pytest.raises(MstlError, match="--data cxr: the study has no such data; it has ct"):
        read_study(written(tmp_path, HEAD + NODE), {"cxr": "x"})
    assert read_study(written(tmp_path, HEAD + NODE), {"ct": "x"}).study.data == {"ct": "x"}


@pytest.mark.parametrize(
    ("nodes", "told"),
    [
        (NODE + NODE, ["node 'a': there are two"]),
        (NODE.replace('"ct"', '"cxr"'), ["[data] has no 'cxr'"]),
        (NODE + 'from = "aa"\n', ["from names 'aa'", "'a' is meant"]),
        (NODE + 'networks = ["resnet15"]\n', ["network 'resnet15'", "Choose from"]),
        (NODE + 'networks = ["resnet14", "resnet14-attn0"]\n', ["'resnet14-attn0' stands twice"]),
        (NODE + "seeds = [3, 3]\n", ["a seed stands twice"]),
        (NODE + 'from = "a"\n', ["in a circle: a from a"]),
        (NODE + 'from = "b"\n' + NODE.replace('"a"', '"b"') + 'from = "a"\n', ["in a circle: a from b from a"]),
        (NODE + 'ssl = "moco"\n', ["ssl is for stage sstl_m"]),
        (NODE + "explain = 3\n", ["explain shows images of a split"]),
        (NODE + 'split = "val"\n', ["split is for kind leep"]),
        (NODE + 'kind = "leep"\n', ["no use for stage"]),
        (NODE.replace('stage = "finetune"\n', ""), ["stage is missing"]),
        (NODE.replace("finetune", "sstl_m") + 'evaluate = ["val"]\n', ["has no classifier"]),
        (NODE + 'init = "w.safetensors"\nfrom = "b"\n' + NODE.replace('"a"', '"b"'), ["both from and init"]),
        (
            NODE.replace("finetune", "sstl_m") + '[[node]]\nname = "l"\nkind = "leep"\ndata = "ct"\nfrom = "a"\n',
            ["LEEP needs a classifier"],
        ),
        (
            '[[node]]\nname = "l"\nkind = "leep"\ndata = "ct"\n' + NODE + 'from = "l"\n',
            ["'l', which measures and has no weights"],
        ),
        (
            NODE + "seeds = [0, 1]\n" + NODE.replace('"a"', '"b"') + 'seeds = [2]\nfrom = "a"\n',
            ["has seeds [0, 1] and not 2"],
        ),
        (
            NODE + NODE.replace('"a"', '"b"') + 'networks = ["resnet26"]\nfrom = "a"\n',
            ["is not trained for resnet26-attn0"],
        ),
    ],
)
def test_what_is_wrong_in_a_graph_is_told(tmp_path: Path, nodes: str, told: list[str]) -> None:
    _, problems = graph_of(tmp_path, HEAD + nodes)
    assert problems
    for word in told:
        assert any(word in problem for problem in problems), problems


def test_a_circle_is_told_once_and_does_not_hide_other_problems(tmp_path: Path) -> None:
    others = "".join(NODE.replace('"a"', f'"{name}"') + f'from = "{source}"\n' for name, source in ("bc", "cb", "db"))
    graph, problems = graph_of(tmp_path, HEAD + NODE + others + NODE.replace('"a"', '"e"') + 'from = "x"\n')
    assert sum("circle" in problem for problem in problems) == 1
    assert any("from names 'x'" in problem for problem in problems)
    assert set(graph.nodes) == {"a/resnet14-attn1/s0"}


def test_the_studys_splits_are_for_fine_tuning_alone(tmp_path: Path) -> None:
    text = (
        HEAD.replace("[data]", 'evaluate = ["val"]\n[data]')
        + NODE
        + NODE.replace('"a"', '"b"').replace("finetune", "stl_m")
    )
    study: Study = read_study(written(tmp_path, text)).study
    assert [study.evaluated(node) for node in study.node] == [("val",), ()]
