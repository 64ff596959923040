"""What a recipe's fields take, in words: for the message about a wrong value, and about a name that is none."""

from __future__ import annotations

import types
from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic.fields import FieldInfo

from mstl.recipes.values import RESOLVED

_LIMITS = (
    (annotated_types.Ge, "ge", "of {} or more"),
    (annotated_types.Gt, "gt", "above {}"),
    (annotated_types.Le, "le", "at most {}"),
    (annotated_types.Lt, "lt", "below {}"),
)


def split_description(info: FieldInfo) -> tuple[str, str]:
    """A field's meaning and the source of its number, as its description in the schema has them."""
    meaning, _, source = str(info.description).removesuffix(")").rpartition(" (")
    return meaning, source


def describe_field(name: str, path: str) -> str:
    """A field of a recipe in one line: 'optim.lr: a number above 0, here 0.1: base learning rate'.

    name: the recipe's. path: section.field, of those that the recipe has.
    """
    section, _, field = path.partition(".")
    part = getattr(RESOLVED[name], section)
    info = type(part).model_fields[field]
    return f"{path} takes {_kind(info)}; by default {_shown(getattr(part, field))}: {split_description(info)[0]}"


def nearest_first(path: str, fields: Sequence[str]) -> list[str]:
    """The fields in the order of how much their name, with or without the section, is like this one."""

    def likeness(field: str) -> float:
        own = SequenceMatcher(None, path.rpartition(".")[2], field.rpartition(".")[2]).ratio()
        return max(SequenceMatcher(None, path, field).ratio(), own)

    return sorted(fields, key=likeness, reverse=True)


def _kind(info: FieldInfo) -> str:
    limits = [
        words.format(_shown(getattr(item, attribute)))
        for item in info.metadata
        for kind, attribute, words in _LIMITS
        if isinstance(item, kind)
    ]
    text = _plain(info.annotation)
    if not limits:
        return text
    noun, _, rest = text.partition(" or ")  # the limits are those of the number, not of 'none'
    return f"{noun} {' and '.join(limits)}" + (f", or {rest}" if rest else "")


def _plain(kind: Any) -> str:
    """What a type takes, in words."""
    arguments = get_args(kind)
    if get_origin(kind) is Literal:
        return " or ".join(_shown(choice) for choice in arguments)
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join('"none"' if part is types.NoneType else _plain(part) for part in arguments)
    if get_origin(kind) is tuple:
        return "a list of whole numbers such as [30, 60]"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}.get(kind, str(kind))


def _shown(value: Any) -> str:
    """A value as --set takes it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return str(list(value))
    return f"{value:g}" if isinstance(value, float) else str(value)
