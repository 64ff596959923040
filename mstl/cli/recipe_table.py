"""What `mstl train --explain` prints: the recipe and the inputs of a stage, number by number."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from mstl.recipes import Flavour, Settled
from mstl.recipes.table import InputRow, Row, input_rows, recipe_rows

if TYPE_CHECKING:
    from rich.table import Table

PIPED_WIDTH = 140
ROOMY = 110  # columns, from which on reasons fit beside the numbers


def explain(settled: Settled, flavour: Flavour) -> None:
    """Print a recipe with its reasons and sources; neither data nor devices are looked at."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else shutil.get_terminal_size((PIPED_WIDTH, 24)).columns
    console = Console(width=width, highlight=False)
    rows = recipe_rows(settled)
    method = "" if settled.ssl is None else f", --ssl {settled.ssl}"
    console.print(f"[bold]{settled.stage}[/]{method}, flavour {flavour}")
    inline = console.width >= ROOMY
    console.print(_recipe_table(rows, inline))
    if not inline:
        for row in rows:
            if row.why:
                console.print(f"[bold]{row.field}[/]: {_escape(row.why)}")
    console.print(_inputs_table(input_rows(settled)))


def _recipe_table(rows: Iterable[Row], inline: bool) -> Table:
    """The recipe; reasons stand in the last column where there is room, else "below" does."""
    table = _table("field", "printed", "resolved", "used", "why")
    section = ""
    for row in rows:
        start = row.field.partition(".")[0]
        if section and start != section:
            table.add_section()
        section = start
        printed = _text(row.printed) if row.is_printed else "-"
        why = row.source
        if row.why:
            why = f"{row.why} ({row.source})" if inline else f"{row.source}; below"
        cells = [row.field, printed, _text(row.resolved), _text(row.used), why]
        table.add_row(*map(_escape, cells), style="bold" if row.changed else None)
    return table


def _inputs_table(rows: Iterable[InputRow]) -> Table:
    table = _table("what the network sees", "training", "validation", "source")
    for row in rows:
        values = ["-" if value is None else _text(value) for value in (row.train, row.val)]
        table.add_row(*map(_escape, (row.field, *values, row.source)))
    return table


def _table(*columns: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, header_style="bold")
    for column in columns[:-1]:
        table.add_column(column, overflow="fold", no_wrap=True)
    table.add_column(columns[-1], overflow="fold", ratio=1)
    return table


def _text(value: Any) -> str:
    """A value as --set and TOML take it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(_text(item) for item in value) + "]"
    return str(value)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)
