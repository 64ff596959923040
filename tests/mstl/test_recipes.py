"""Recipes: the paper's numbers, overrides, and the errors of a wrong one."""

from pathlib import Path

import pytest

from mstl.cli.training_options import STAGE_NAMES
from mstl.recipes import PRINTED, RESOLVED, build_recipe, flatten
from mstl.stages import STAGES
from mstl.train import learning_rate
from shards.errors import MstlError

# Paper 5.2 as the specification lists it; written out again here, so that a changed default is noticed.
PAPER = {
    "stl_n": {"optim.lr": 0.1, "optim.epochs": 90, "data.batch_size": 512, "optim.milestones": [30, 60]},
    "stl_m": {"optim.lr": 2e-4, "optim.epochs": 30, "data.batch_size": 64, "model.dropout": 0.5},
    "sstl_m": {
        "optim.epochs": 200,
        "data.batch_size": 256,
        "optim.milestones": [120, 160],
        "loss.temperature": 0.07,
        "loss.momentum": 0.999,
        "loss.alpha1": 0.8,
        "loss.alpha2": 0.8,
        "optim.lr": 0.03,
    },
    "finetune": {"optim.epochs": 200, "data.batch_size": 256, "optim.milestones": [120, 160], "optim.lr": 0.03},
}


@pytest.mark.parametrize("stage", STAGES)
def test_defaults_are_the_papers(stage: str) -> None:
    flat = flatten(build_recipe(stage))
    expected = {**PAPER[stage], "optim.momentum": 0.9, "optim.weight_decay": 1e-4, "data.image_size": 224}
    assert {name: flat[name] for name in expected} == expected


def test_the_stages_are_named_alike_everywhere() -> None:
    assert tuple(STAGES) == STAGE_NAMES == tuple(RESOLVED) == tuple(PRINTED)
    assert [spec.parent for spec in STAGES.values()] == [None, "stl_n", "stl_m", "sstl_m"]


def test_printed_flavour_differs_exactly_where_declared() -> None:
    for stage in STAGES:
        resolved, printed = flatten(build_recipe(stage)), flatten(build_recipe(stage, flavour="printed"))
        differing = {name: value for name, value in printed.items() if value != resolved[name]}
        assert differing == {item.field: item.value for item in PRINTED[stage]}
    assert flatten(build_recipe("finetune", flavour="printed"))["optim.lr"] == 0.3
    assert flatten(build_recipe("stl_n", flavour="printed"))["model.dropout"] == 0.8


def test_a_file_overrides_and_the_command_line_overrides_the_file(tmp_path: Path) -> None:
    config = tmp_path / "recipe.toml"
    config.write_text('[optim]\nepochs = 3\nlr = 0.5\n[loss]\nregion = "off"\n')
    recipe = build_recipe("sstl_m", config=config, overrides=["optim.lr=0.25", "loss.region=literal"])
    flat = flatten(recipe)
    assert (flat["optim.epochs"], flat["optim.lr"], flat["loss.region"]) == (3, 0.25, "literal")


@pytest.mark.parametrize(
    ("stage", "override", "says"),
    [
        ("stl_n", "optim.learning_rate=1", "no such field"),
        ("stl_n", "loss.temperature=1", "no such field"),  # cross entropy has none
        ("stl_n", "optim.lr", "section.field=value"),
        ("stl_n", "optim.lr=-1", "greater than 0"),
        ("stl_n", "optim.epochs=many", "valid integer"),
        ("sstl_m", "loss.region=sometimes", "'normalised', 'literal' or 'off'"),
        ("stl_n", "model.dropout=1", "less than 1"),
        ("stl_n", "optim.lr=inf", "finite"),
        ("stl_n", "optim.milestones=[-1]", "greater than 0"),
        ("sstl_m", "loss.temperature=0", "loss.temperature"),
    ],
)
def test_a_wrong_override_says_what_is_wrong_and_lists_the_fields(stage: str, override: str, says: str) -> None:
    with pytest.raises(MstlError) as caught:
        build_recipe(stage, overrides=[override])
    assert says in caught.value.why
    assert "optim.epochs" in caught.value.remedy


@pytest.mark.parametrize("text", ["lr = 1", "[optim\n", "[nonsense]\nlr = 1"])
def test_a_wrong_file_is_refused(tmp_path: Path, text: str) -> None:
    config = tmp_path / "recipe.toml"
    config.write_text(text)
    with pytest.raises(MstlError):
        build_recipe("stl_n", config=config)
    with pytest.raises(MstlError, match="cannot be read"):
        build_recipe("stl_n", config=tmp_path / "missing.toml")


def test_the_rate_falls_at_the_milestones() -> None:
    optim = build_recipe("sstl_m").optim
    rates = {epoch: learning_rate(optim, epoch) for epoch in (0, 119, 120, 159, 160, 199)}
    assert rates == pytest.approx({0: 0.03, 119: 0.03, 120: 0.003, 159: 0.003, 160: 0.0003, 199: 0.0003})
