"""`mstl doctor`: whether this machine, and the nodes of a hostfile, can train."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mstl.cli.nodes import PORT

if TYPE_CHECKING:
    from mstl.doctor.findings import Finding


@click.command("doctor", context_settings={"show_default": True})
@click.argument("paths", nargs=-1, metavar="[PATH]...", type=click.Path(path_type=Path))
@click.option("--hostfile", type=click.Path(path_type=Path), metavar="FILE",
              help="Look at these nodes too, over ssh: a line `NODE slots=PROCESSES` for each.")  # fmt: skip
@click.option("--master-port", type=click.IntRange(1, 65535), default=PORT, help="The port where nodes would meet.")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def command(paths: tuple[Path, ...], hostfile: Path | None, master_port: int, as_json: bool) -> None:
    """Check GPUs, driver, libraries, limits and the folders PATH; exits with 1 when something would not work.

    Shards and runs are to lie in PATH (default: the current folder); 64 MiB are written there and removed. With
    --hostfile, every node must be reached by ssh without a password, have the same versions, see the same PATH, and
    reach every other node.

    \b
    mstl doctor data/shards runs
    mstl doctor --hostfile hostfile /shared/mstl
    """
    findings = _shown(_all(paths or (Path(),), hostfile, master_port), as_json)
    sys.exit(1 if any(finding.state == "fail" for finding in findings) else 0)


def _all(paths: tuple[Path, ...], hostfile: Path | None, port: int) -> Iterator[Finding]:
    from mstl.doctor.devices import check_devices
    from mstl.doctor.machine import check_machine
    from mstl.doctor.nodes import check_nodes
    from mstl.doctor.storage import check_path
    from mstl.hostfile import read_hostfile

    hosts = None if hostfile is None else read_hostfile(hostfile)
    yield from check_machine(port)
    yield from check_devices()
    for path in paths:
        yield from check_path(path)
    if hosts is not None:
        yield from check_nodes(hosts, paths, port)


def _shown(findings: Iterable[Finding], as_json: bool) -> list[Finding]:
    """Show the findings, as they come where it is a log."""
    if as_json:
        found = list(findings)
        click.echo(json.dumps({"findings": [asdict(finding) for finding in found]}, indent=1, ensure_ascii=False))
    elif sys.stdout.isatty():
        found = _table(findings)
    else:
        found = []
        for finding in findings:
            found.append(finding)
            remedy = f". {finding.remedy}" if finding.remedy else ""
            click.echo(f"{finding.state:4}  {finding.where}: {finding.name}: {finding.found}{remedy}")
    if not as_json:
        count = {state: sum(finding.state == state for finding in found) for state in ("ok", "warn", "fail")}
        click.echo(f"{count['ok']} ok, {count['warn']} to look at, {count['fail']} to mend")
    return found


def _table(findings: Iterable[Finding]) -> list[Finding]:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console, found = Console(), []
    with console.status("looking"):
        for finding in findings:
            found.append(finding)
    colours = {"ok": "green", "warn": "yellow", "fail": "bold red"}
    for where in dict.fromkeys(finding.where for finding in found):
        table = Table(title=where, title_justify="left", box=None, pad_edge=False)
        for title in ("", "", "found", "remedy"):
            table.add_column(title, overflow="fold")
        for finding in found:
            if finding.where == where:
                words = (finding.name, finding.found, finding.remedy)
                table.add_row(Text(finding.state, style=colours[finding.state]), *map(Text, words))
        console.print(table)
    return found
