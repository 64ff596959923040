"""Settling a recipe: the numbers of a stage with a user's file and overrides on them, checked together."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from mstl.recipes.describe import describe_field, nearest_first
from mstl.recipes.printed import PRINTED
from mstl.recipes.rules import IDLE, check_together
from mstl.recipes.schema import Flavour, Recipe, Ssl
from mstl.recipes.values import RESOLVED
from shards.errors import MstlError

SELF_SUPERVISED = "sstl_m"
OURS: Ssl = "ours"

Tree = dict[str, dict[str, Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Settled:
    """A recipe as it will be used, under its name. reasons: for every field that departs from our resolution, why."""

    stage: str
    ssl: Ssl | None
    name: str
    recipe: Recipe
    reasons: Mapping[str, str]


def settle_ssl(stage: str, ssl: str | None) -> Ssl | None:
    """The self-supervised method of a stage, None where it has none; raises MstlError where there cannot be one."""
    if stage != SELF_SUPERVISED:
        if ssl is None:
            return None
        raise MstlError(
            f"--ssl {ssl}",
            why=f"stage {stage} is supervised",
            remedy=f"Leave it out, or train --stage {SELF_SUPERVISED}",
        )
    for method in get_args(Ssl):
        if method == (ssl or OURS):
            found: Ssl = method
            return found
    raise MstlError(f"--ssl {ssl}", why="there is no such method", remedy=f"Choose from {', '.join(get_args(Ssl))}")


def recipe_name(stage: str, ssl: str | None = None) -> str:
    """The key of RESOLVED and PRINTED: the stage, with the method where it is not the paper's own."""
    method = settle_ssl(stage, ssl)
    return stage if method in (None, OURS) else f"{stage}-{method}"


def build_recipe(
    stage: str,
    *,
    ssl: str | None = None,
    flavour: Flavour = "resolved",
    config: Path | None = None,
    overrides: Sequence[str] = (),
) -> Recipe:
    """The recipe of a stage with a TOML file and `section.field=value` overrides applied, in that order.

    ssl: the method of stage sstl_m; None is the paper's own.
    Raises MstlError for an unknown field, a value out of range, values that exclude each other, an unreadable file.
    """
    return settle_recipe(stage, ssl=ssl, flavour=flavour, config=config, overrides=overrides).recipe


def settle_recipe(
    stage: str,
    *,
    ssl: str | None = None,
    flavour: Flavour = "resolved",
    config: Path | None = None,
    overrides: Sequence[str] = (),
    compiled: bool = False,
) -> Settled:
    """`build_recipe`, with the reason for every departure from our resolution; `compiled` is the option --compile."""
    name = recipe_name(stage, ssl)
    tree: Tree = RESOLVED[name].model_dump()
    reasons: dict[str, str] = {}
    if flavour == "printed":
        for item in PRINTED[name]:
            _assign(tree, name, item.field, item.value)
            reasons[item.field] = "as printed"
    batch = tree["data"]["batch_size"]
    chosen: dict[str, str] = {}
    if config is not None:
        for field, value in _flatten(_read_toml(config)).items():
            _assign(tree, name, field, value)
            chosen[field] = f"--config {config}"
    for text in overrides:
        field, sign, value = text.partition("=")
        field = field.strip()
        if not sign:
            known = field in fields_of(name)
            raise MstlError(
                f"--set {text}",
                why="it is not of the form section.field=value",
                remedy=describe_field(name, field) if known else _fields(name, field),
            )
        _assign(tree, name, field, _parse(value.strip()))
        chosen[field] = "--set"
    if compiled:
        _assign(tree, name, "engine.compile", True)
        chosen["engine.compile"] = "--compile"
    recipe = _validate(name, tree)
    reasons |= chosen
    if recipe.optim.scale_lr and recipe.data.batch_size != batch and "optim.lr" not in chosen:
        base = recipe.optim.lr
        scaled = recipe.optim.model_copy(update={"lr": base * recipe.data.batch_size / batch})
        recipe = recipe.model_copy(update={"optim": scaled})
        reasons["optim.lr"] = f"scaled with data.batch_size: {base:g} x {recipe.data.batch_size} / {batch}"
    check_together(name, recipe)
    resolved = flatten(RESOLVED[name])
    differing = [field for field, value in flatten(recipe).items() if value != resolved[field]]
    return Settled(
        stage=stage,
        ssl=settle_ssl(stage, ssl),
        name=name,
        recipe=recipe,
        reasons={field: reasons[field] for field in differing},
    )


def flatten(recipe: Recipe) -> dict[str, Any]:
    """A recipe as {"section.field": value}, JSON-ready."""
    return _flatten(recipe.model_dump(mode="json"))


def fields_of(name: str) -> list[str]:
    """The fields that a recipe has a use for."""
    return [field for field in flatten(RESOLVED[name]) if field not in IDLE[name]]


def _validate(name: str, tree: Tree) -> Recipe:
    # The loss section is validated as the stage's own type, so that an error names the field and not a union.
    kind = type(RESOLVED[name].loss)
    section: tuple[str, ...] = ("loss",)
    try:
        loss = kind.model_validate(tree["loss"])
        section = ()
        return Recipe.model_validate({**tree, "loss": loss})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in (*section, *first["loc"][: 2 - len(section)]))
        why = f"{where}: {first['msg']} (got {first.get('input')!r})"
        raise MstlError(f"recipe of {name}", why=why, remedy=describe_field(name, where)) from error


def _assign(tree: Tree, name: str, path: str, value: Any) -> None:
    section, _, field = path.partition(".")
    if section not in tree or field not in tree[section]:
        raise MstlError(
            f"recipe field {path!r}", why="there is no such field in this stage", remedy=_fields(name, path)
        )
    if path in IDLE[name]:
        raise MstlError(f"recipe field {path!r}", why=f"{name} has no use for it", remedy="Leave it out")
    tree[section][field] = value


def _parse(text: str) -> Any:
    """A value as TOML reads it; anything that is not TOML is taken as a string."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise MstlError(f"--config {path}", why=f"it cannot be read ({error})", remedy="Give a TOML file") from error


def _flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for section, values in tree.items():
        if not isinstance(values, Mapping):
            raise MstlError(
                f"recipe entry {section!r}",
                why="a value stands outside any section",
                remedy="Write it under a section, for example [optim]",
            )
        flat.update({f"{section}.{field}": value for field, value in values.items()})
    return flat


def _fields(name: str, path: str) -> str:
    return "Fields, the nearest first: " + ", ".join(nearest_first(path, fields_of(name)))
