"""What a report says of how runs were made: recipes used beside printed ones, software, devices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mstl.recipes.rules import IDLE
from mstl.runs import RunRecord


def recipe_rows(record: RunRecord) -> list[dict[str, Any]]:
    """Every field as used, as this program resolves the paper, and as the paper prints it where that differs."""
    reasons: Mapping[str, str] = record.body.get("reasons", {})
    resolved: Mapping[str, Any] = record.body.get("resolved", {})
    printed: Mapping[str, Any] = record.body.get("printed", {})
    rows = []
    for section, fields in record.recipe.items():
        for field, used in fields.items():
            name = f"{section}.{field}"
            if name in IDLE.get(record.title, ()):
                continue
            rows.append(
                {
                    "field": name,
                    "used": used,
                    "resolved": resolved.get(name),
                    "printed": printed.get(name, {}).get("value"),
                    "why": "; ".join(filter(None, (reasons.get(name), printed.get(name, {}).get("why")))),
                    "changed": name in resolved and used != resolved[name],
                }
            )
    return rows


def grouped(versions: Iterable[tuple[str, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Each set of versions once, with the names of the runs that used it."""
    sets: list[dict[str, Any]] = []
    for name, found in versions:
        for entry in sets:
            if entry["versions"] == found:
                entry["runs"].append(name)
                break
        else:
            sets.append({"versions": found, "runs": [name]})
    return sets
