"""Recipes: the paper's numbers, overrides, and the errors of a wrong one."""

import re
from pathlib import Path
from typing import Literal, get_args

import pytest
from pydantic import ValidationError

from mstl.cli.training_options import SSL_METHODS, STAGE_NAMES
from mstl.recipes import (
    PRINTED,
    RESOLVED,
    ContrastiveLoss,
    NTXentLoss,
    Recipe,
    Ssl,
    build_recipe,
    flatten,
    recipe_name,
    settle_recipe,
)
from mstl.recipes.build import fields_of
from mstl.recipes.describe import describe_field
from mstl.recipes.records import ABSENT, AMBIGUOUS
from mstl.recipes.rules import IDLE
from mstl.recipes.sources import EXCEPTIONS, INPUTS, described
from mstl.recipes.table import input_rows, recipe_rows
from mstl.stages import STAGES
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


# The baselines as their own papers and codes have them (specification 1.4), and what we made of them on 425 images.
MOCO = {
    "optim.algorithm": "sgd",
    "optim.epochs": 200,
    "optim.lr": 0.03,
    "optim.momentum": 0.9,
    "optim.weight_decay": 1e-4,
    "data.batch_size": 256,
    "loss.momentum": 0.999,
    "loss.dim": 128,
    "loss.alpha1": 1.0,
    "loss.region": "off",
    "loss.queue_size": 256,
    "loss.bn_group": 32,
}
BASELINES = {
    "moco": {
        **MOCO,
        "optim.schedule": "step",
        "optim.milestones": [120, 160],
        "loss.temperature": 0.07,
        "loss.head": "linear",
    },
    "moco_v2": {**MOCO, "optim.schedule": "cosine", "loss.temperature": 0.2, "loss.head": "mlp"},
    "simclr": {
        "optim.algorithm": "lars",
        "optim.lr": 0.3,
        "optim.momentum": 0.9,
        "optim.weight_decay": 1e-6,
        "optim.schedule": "cosine",
        "optim.warmup_epochs": 10,
        "optim.lr_per": "step",
        "data.batch_size": 256,
        "loss.temperature": 0.1,
        "loss.dim": 128,
    },
}
METHODS: list[tuple[str, str | None]] = [*((stage, None) for stage in STAGES), *(("sstl_m", ssl) for ssl in BASELINES)]


@pytest.mark.parametrize("stage", STAGES)
def test_defaults_are_the_papers(stage: str) -> None:
    flat = flatten(build_recipe(stage))
    expected = {**PAPER[stage], "optim.momentum": 0.9, "optim.weight_decay": 1e-4, "data.image_size": 224}
    assert {name: flat[name] for name in expected} == expected


@pytest.mark.parametrize("ssl", BASELINES)
def test_the_baselines_are_those_of_their_papers(ssl: str) -> None:
    flat = flatten(build_recipe("sstl_m", ssl=ssl))
    assert {name: flat[name] for name in BASELINES[ssl]} == BASELINES[ssl]


def test_baselines_as_printed() -> None:
    assert flatten(build_recipe("sstl_m", ssl="moco", flavour="printed"))["loss.queue_size"] == 65536
    simclr = flatten(build_recipe("sstl_m", ssl="simclr", flavour="printed"))
    assert (simclr["data.batch_size"], simclr["optim.lr"]) == (4096, 0.3 * 4096 / 256)


def test_the_stages_and_methods_are_named_alike_everywhere() -> None:
    assert tuple(STAGES) == STAGE_NAMES
    assert [spec.parent for spec in STAGES.values()] == [None, "stl_n", "stl_m", "sstl_m"]
    assert get_args(Ssl) == SSL_METHODS == ("ours", *BASELINES)
    names = {recipe_name(stage, ssl) for stage, ssl in METHODS}
    assert names == set(RESOLVED) == set(PRINTED) == set(IDLE) == set(EXCEPTIONS) == set(INPUTS) - {""}
    assert recipe_name("sstl_m", "ours") == "sstl_m"


def test_a_method_belongs_to_the_stage_without_labels() -> None:
    with pytest.raises(MstlError, match="stage finetune is supervised") as caught:
        build_recipe("finetune", ssl="moco")
    assert "--stage sstl_m" in caught.value.remedy
    with pytest.raises(MstlError, match="no such method"):
        build_recipe("sstl_m", ssl="byol")
    assert isinstance(build_recipe("sstl_m", ssl="moco_v2").loss, ContrastiveLoss)
    assert isinstance(build_recipe("sstl_m", ssl="simclr").loss, NTXentLoss)


@pytest.mark.parametrize(("stage", "ssl"), METHODS)
def test_printed_flavour_differs_exactly_where_declared(stage: str, ssl: str | None) -> None:
    resolved, printed = (
        flatten(build_recipe(stage, ssl=ssl)),
        flatten(build_recipe(stage, ssl=ssl, flavour="printed")),
    )
    differing = {name: value for name, value in printed.items() if value != resolved[name]}
    assert differing == {item.field: item.value for item in PRINTED[recipe_name(stage, ssl)]}


def test_the_printed_numbers_themselves() -> None:
    assert flatten(build_recipe("finetune", flavour="printed"))["optim.lr"] == 0.3
    assert flatten(build_recipe("sstl_m", flavour="printed"))["loss.region"] == "literal"
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
        ("stl_n", "optim.lr=-1", "greater than 0"),
        ("stl_n", "optim.epochs=many", "valid integer"),
        ("sstl_m", "loss.region=sometimes", "'normalised', 'literal' or 'off'"),
        ("stl_n", "model.dropout=1", "less than 1"),
        ("stl_n", "optim.lr=inf", "finite"),
        ("stl_n", "optim.milestones=[-1]", "greater than 0"),
        ("sstl_m", "loss.temperature=0", "loss.temperature"),
        ("sstl_m", "loss.bn_group=1", "loss.bn_group: Input should be greater than or equal to 2"),
        ("stl_n", "engine.zero=3", "engine.zero"),
        ("stl_n", "engine.accumulate=0", "greater than or equal to 1"),
        ("stl_n", "precision.autocast=fp8", "'auto', 'off', 'bf16' or 'fp16'"),
        ("stl_n", "checkpoint.every_minutes=0", "greater than 0"),
    ],
)
def test_a_wrong_value_says_what_is_wrong_and_describes_its_field_alone(stage: str, override: str, says: str) -> None:
    with pytest.raises(MstlError) as caught:
        build_recipe(stage, overrides=[override])
    field = override.partition("=")[0]
    assert says in caught.value.why
    assert caught.value.remedy.startswith(f"{field} takes ")
    assert caught.value.remedy.endswith(described(stage)[field][0])
    assert "Fields" not in caught.value.remedy


@pytest.mark.parametrize(
    ("name", "field", "words"),
    [
        ("stl_n", "optim.lr", "a number above 0; by default 0.1: base learning rate"),
        ("finetune", "optim.lr", "a number above 0; by default 0.03: base learning rate"),
        ("stl_n", "optim.gamma", "a number above 0 and at most 1; by default 0.1: factor at each milestone"),
        (
            "stl_n",
            "optim.epochs",
            "a whole number of 1 or more and at most 1000000; by default 90: passes over the data",
        ),
        ("stl_n", "optim.milestones", "a list of whole numbers such as [30, 60]; by default [30, 60]: epochs after"),
        ("stl_n", "optim.schedule", "step or cosine; by default step: the rate falls"),
        ("stl_n", "engine.compile", "true or false; by default false: torch.compile"),
        ("stl_n", "engine.zero", "0 or 1 or 2; by default 0: ZeRO stage"),
        ("sstl_m", "loss.bn_group", 'a whole number of 2 or more, or "none"; by default 32: images that share'),
        ("stl_n", "checkpoint.every_minutes", 'a number above 0, or "none"; by default 15: minutes between'),
    ],
)
def test_a_field_in_words(name: str, field: str, words: str) -> None:
    assert describe_field(name, field).startswith(f"{field} takes {words}")


@pytest.mark.parametrize("name", RESOLVED)
def test_every_field_can_be_told_in_words(name: str) -> None:
    for field in flatten(RESOLVED[name]):
        assert not re.search(r"typing|<|class", describe_field(name, field).partition(";")[0]), field


@pytest.mark.parametrize(
    ("stage", "override", "nearest"),
    [
        ("stl_n", "optim.learning_rate=1", "optim."),
        ("stl_n", "data.batch_sise=1", "data.batch_size, "),
        ("stl_n", "lr=1", "optim.lr, "),
        ("stl_n", "loss.lr=1", "optim.lr, "),
        ("finetune", "warmup=1", "optim.warmup_epochs, "),
        ("stl_n", "loss.temperature=1", ""),  # cross entropy has none
        ("stl_n", "batch_size", "data.batch_size, "),
    ],
)
def test_a_name_that_is_none_lists_the_fields_the_nearest_first(stage: str, override: str, nearest: str) -> None:
    with pytest.raises(MstlError, match=r"no such field|section\.field=value") as caught:
        build_recipe(stage, overrides=[override])
    listed = caught.value.remedy.removeprefix("Fields, the nearest first: ")
    assert listed.startswith(nearest)
    assert sorted(listed.split(", ")) == sorted(fields_of(stage))


def test_a_field_without_a_value_is_described() -> None:
    with pytest.raises(MstlError, match=r"section\.field=value\. optim\.lr takes a number above 0"):
        build_recipe("stl_n", overrides=["optim.lr"])


@pytest.mark.parametrize(
    ("stage", "override"),
    [("sstl_m", "model.dropout=0.5"), ("finetune", "data.region_flip=true"), ("stl_m", "data.evaluation=as_printed")],
)
def test_a_field_that_nothing_would_read_is_refused(stage: str, override: str) -> None:
    with pytest.raises(MstlError, match=f"{stage} has no use for it. Leave it out"):
        build_recipe(stage, overrides=[override])


@pytest.mark.parametrize("text", ["lr = 1", "[optim\n", "[nonsense]\nlr = 1"])
def test_a_wrong_file_is_refused(tmp_path: Path, text: str) -> None:
    config = tmp_path / "recipe.toml"
    config.write_text(text)
    with pytest.raises(MstlError):
        build_recipe("stl_n", config=config)
    with pytest.raises(MstlError, match="cannot be read"):
        build_recipe("stl_n", config=tmp_path / "missing.toml")


@pytest.mark.parametrize(
    ("stage", "ssl", "overrides", "says"),
    [
        ("sstl_m", None, ["engine.accumulate=2"], "fewer others"),
        ("sstl_m", "simclr", ["engine.accumulate=2"], "fewer others"),
        ("stl_n", None, ["engine.accumulate=3"], "512 cannot be worked through in 3"),
        ("sstl_m", "simclr", ["engine.zero=1"], "LARS"),
        ("finetune", None, ["optim.algorithm=lars", "engine.zero=2"], "LARS"),
        ("finetune", None, ["optim.epochs=5", "optim.warmup_epochs=5"], "leaves nothing"),
        ("sstl_m", "moco", ["loss.region=literal"], "--ssl ours"),
        ("sstl_m", None, ["checkpoint.select=best"], "without labels"),
    ],
)
def test_values_that_exclude_each_other_are_refused(
    stage: str, ssl: str | None, overrides: list[str], says: str
) -> None:
    with pytest.raises(MstlError) as caught:
        build_recipe(stage, ssl=ssl, overrides=overrides)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("stage", "overrides"),
    [
        ("stl_n", ["engine.accumulate=4"]),
        ("finetune", ["engine.zero=2"]),
        ("finetune", ["optim.algorithm=lars"]),
        ("sstl_m", ["engine.zero=1"]),
    ],
)
def test_their_harmless_neighbours_are_not(stage: str, overrides: list[str]) -> None:
    build_recipe(stage, overrides=overrides)


def test_none_is_said_by_name(tmp_path: Path) -> None:
    config = tmp_path / "recipe.toml"
    config.write_text('[checkpoint]\nevery_minutes = "none"\n')
    flat = flatten(build_recipe("sstl_m", config=config, overrides=["loss.bn_group=none"]))
    assert (flat["checkpoint.every_minutes"], flat["loss.bn_group"]) == (None, None)


def test_the_rate_follows_a_batch_size_that_was_changed_alone(tmp_path: Path) -> None:
    def rate(*overrides: str, flavour: Literal["resolved", "printed"] = "resolved") -> float:
        return build_recipe("sstl_m", flavour=flavour, overrides=overrides).optim.lr

    assert rate("data.batch_size=64") == pytest.approx(0.03 / 4)
    assert rate("data.batch_size=1024") == pytest.approx(0.12)
    assert rate("data.batch_size=64", flavour="printed") == pytest.approx(0.3 / 4)
    assert rate("data.batch_size=64", "optim.lr=0.03") == 0.03  # taken as it is
    assert rate("data.batch_size=64", "optim.scale_lr=false") == 0.03
    assert rate("data.batch_size=256") == 0.03
    config = tmp_path / "recipe.toml"
    config.write_text("[data]\nbatch_size = 128\n[optim]\nlr = 0.5\n")
    assert build_recipe("sstl_m", config=config, overrides=["data.batch_size=64"]).optim.lr == 0.5


def test_every_departure_from_our_resolution_has_its_reason(tmp_path: Path) -> None:
    config = tmp_path / "recipe.toml"
    config.write_text("[optim]\nepochs = 3\nmomentum = 0.9\n")
    settled = settle_recipe(
        "sstl_m", flavour="printed", config=config, overrides=["data.batch_size=64", "data.workers=2"], compiled=True
    )
    resolved = flatten(RESOLVED["sstl_m"])
    assert set(settled.reasons) == {n for n, value in flatten(settled.recipe).items() if value != resolved[n]}
    assert settled.reasons["optim.epochs"] == f"--config {config}"
    assert settled.reasons["data.batch_size"] == "--set"
    assert settled.reasons["engine.compile"] == "--compile"
    assert settled.reasons["optim.lr"] == "scaled with data.batch_size: 0.3 x 64 / 256"
    assert settled.reasons["loss.region"] == "as printed"


@pytest.mark.parametrize(("stage", "ssl"), METHODS)
def test_every_number_has_a_meaning_and_a_source(stage: str, ssl: str | None) -> None:
    name = recipe_name(stage, ssl)
    words = described(name)
    assert set(words) == set(flatten(RESOLVED[name]))
    assert all(meaning and source for meaning, source in words.values())
    assert set(EXCEPTIONS[name]) <= set(words)
    assert all(row.source for row in input_rows(settle_recipe(stage, ssl=ssl)))


def test_the_table_sets_printed_resolved_and_used_side_by_side() -> None:
    rows = {row.field: row for row in recipe_rows(settle_recipe("sstl_m", overrides=["data.batch_size=64"]))}
    rate = rows["optim.lr"]
    assert (rate.is_printed, rate.printed, rate.resolved, rate.source) == (True, 0.3, 0.03, "paper 6.2")
    assert rate.used == pytest.approx(0.0075)
    assert rate.changed
    assert "scaled" in rate.why
    assert "a zero was lost" in rate.why
    assert not rows["loss.queue_size"].is_printed  # the paper does not say how many
    assert rows["optim.momentum"].printed == 0.9
    assert not rows["optim.momentum"].changed
    assert "model.dropout" not in rows
    carried = {row.field: row for row in recipe_rows(settle_recipe("stl_m"))}["optim.momentum"]
    assert not carried.is_printed


def test_a_recipe_is_frozen() -> None:
    recipe: Recipe = build_recipe("stl_n")
    with pytest.raises(ValidationError):
        recipe.optim.lr = 1.0  # type: ignore[misc]


def test_milestones_rise() -> None:
    with pytest.raises(MstlError, match="do not rise"):
        build_recipe("stl_n", overrides=["optim.milestones=[60, 30]"])


# The fields of the first records there are.
FIRST = {
    *("data.image_size", "data.batch_size", "data.workers", "data.region_flip", "model.dropout"),
    *("optim.epochs", "optim.lr", "optim.milestones", "optim.gamma", "optim.momentum", "optim.weight_decay"),
    *("optim.clip", "loss.temperature", "loss.momentum", "loss.queue_size", "loss.dim", "loss.alpha1", "loss.alpha2"),
    *("loss.region", "precision.autocast", "checkpoint.every_steps", "checkpoint.keep", "checkpoint.select"),
}


def test_of_every_newer_field_it_is_said_what_was_done_before() -> None:
    """A field that is added needs its entry in ABSENT (or AMBIGUOUS): else no run begun before can be continued."""
    today = {field for recipe in RESOLVED.values() for field in flatten(recipe)}
    assert today == FIRST | set(ABSENT) | AMBIGUOUS
    assert not FIRST & set(ABSENT) and not AMBIGUOUS & set(ABSENT)
