"""`mstl runs`: which runs there are and how they stand."""

from __future__ import annotations

import json
import sys
from datetime import datetime, timedelta
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from mstl.run_list import BrokenRun, RunLine, list_runs, validation_text

COLOURS = {"finished": "green", "running": "cyan", "interrupted": "yellow", "failed": "red", "stale": "magenta"}
WIDE = 200  # characters a line where nobody looks on


@click.command("runs")
@click.argument("folder", type=click.Path(path_type=Path), default=Path("runs"))
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list, with all that is known of each.")
@click.option("--curves", is_flag=True, help="Draw curves.png in each run: losses, validation, rate, speed.")
def command(folder: Path, as_json: bool, curves: bool) -> None:
    """List the runs below FOLDER (default: runs), oldest first, or the one that FOLDER is.

    \b
    finished      done; its weights can be evaluated and built on
    running       a process holds its lock now
    interrupted   stopped by a signal and saved: the same command continues
    failed        ended by an error: see its output
    stale         says it runs, and no process on this machine (or one that shares locks) holds it: killed outright;
                  the same command continues

    Broken records are listed with the reason. `best` is the highest AUC, else accuracy, of its validations.
    """
    runs = list_runs(folder)
    readable = [run for run in runs if isinstance(run, RunLine)]
    if as_json:
        click.echo(json.dumps([run.to_dict() for run in runs], indent=1))
    elif not runs:
        click.echo(f"No runs in {folder}", err=True)
    else:
        _show(readable)
        for run in runs:
            if isinstance(run, BrokenRun):
                click.echo(f"broken: {run.name}: {run.why}")
    if curves:
        _draw(readable)


def _show(runs: list[RunLine]) -> None:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("run", "stage", "network", "status"):
        table.add_column(name, no_wrap=True)
    table.add_column("step", justify="right", no_wrap=True)
    for name in ("best", "last validation", "from", "shards"):
        table.add_column(name)
    table.add_column("started", no_wrap=True)
    table.add_column("took", justify="right", no_wrap=True)
    for run in runs:
        stage = run.stage if run.ssl in (None, "ours") else f"{run.stage} ({run.ssl})"
        table.add_row(
            run.name,
            stage,
            run.model,
            f"[{COLOURS[run.status]}]{run.status}[/]",
            f"{run.step:,}/{'?' if run.steps is None else f'{run.steps:,}'}",
            validation_text(run.best),
            validation_text(run.last),
            "-" if run.parent is None else Path(run.parent).name,
            run.shards.rstrip("/").rpartition("/")[2],
            _local(run.started),
            str(timedelta(seconds=round(run.wall_seconds))),
        )
    if runs:
        Console(width=None if sys.stdout.isatty() else WIDE, highlight=False).print(table)


def _local(started: str) -> str:
    """The time in UTC as run.json has it, in this machine's zone and to the minute."""
    return datetime.fromisoformat(started).astimezone().strftime("%Y-%m-%d %H:%M")


def _draw(runs: list[RunLine]) -> None:
    from mstl.curves import draw_curves
    from shards.errors import MstlError

    for run in runs:
        try:
            click.echo(f"wrote {draw_curves(Path(run.path))}", err=True)
        except MstlError as error:
            click.echo(str(error), err=True)
