"""`mstl leakage`: whether splits that must share nothing do."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mstl.cli.store_options import FOLDER, SHARD_SET, cache_options

if TYPE_CHECKING:
    from shards.leakage import Finding
    from shards.verdicts import Verdict


@click.command("leakage")
@click.argument("places", metavar="SET...", nargs=-1, required=True, type=SHARD_SET)
@click.option("--out", type=FOLDER, default=Path("runs/leakage"), show_default=True,
              help="Folder for the pairs found: pairs.csv and pairs.png.")  # fmt: skip
@click.option("--same-patients", is_flag=True,
              help="Equal patient ids mean the same people in all SETs, wherever they come from.")  # fmt: skip
@click.option("--workers", type=click.IntRange(1), default=lambda: len(os.sched_getaffinity(0)),
              show_default="CPU cores", help="Processes that decode.")  # fmt: skip
@cache_options
def command(
    places: tuple[str | Path, ...],
    out: Path,
    same_patients: bool,
    workers: int,
    cache: Path | None,
    cache_limit: int | None,
) -> None:
    """Compare the splits of shard SETs that must share nothing, and remember the verdicts beside each set.

    For a set at a URL that is beside its local copy and, where it may be written, in the store.

    Within a set: train, val and test. Across sets: the train split of each with the val and test splits of the others.
    Three checks: the patient id, the content (SHA-256 of the source file) and likeness (a perceptual hash: the same
    picture saved again, resized, brightened or cropped by a pixel; often neighbouring slices of one CT, too).

    "unknown" is not "none": images without a patient id cannot be checked for it, and equal ids in unrelated sets may
    be different people (--same-patients says that they are not). Related are sets made of the same files, and all sets
    of one published source (covidx, covid19-ct, imagenet).

    Exits with 1 when anything is found. `mstl train` then refuses the set, unless --waive-leakage names the finding.

    \b
    Examples:
      mstl leakage data/shards/covid19-ct
      mstl leakage data/shards/covidx data/shards/covid19-ct --out leaks
    """
    from mstl.cli.progress import rich_progress
    from shards.cache import CacheOptions, local_set
    from shards.leakage import compare, open_sets
    from shards.leakage_files import PAIRS_NAME, SHEET_NAME, write_pairs, write_sheet
    from shards.remote_store import is_url, shown
    from shards.verdicts import LEAKAGE_NAME, save_verdicts

    _check_out(out)
    copies = CacheOptions(folder=cache, limit_bytes=cache_limit)
    with rich_progress() as progress:
        folders = [local_set(place, cache=copies, tars=True, progress=progress) for place in places]
        called = [shown(place) if is_url(place) else str(Path(place).resolve()) for place in places]
        sets = open_sets(folders, called)
        findings = compare(sets, same_patients=same_patients, workers=workers, progress=progress)
    if not findings:
        click.echo("Nothing to compare: only one split is there")
        return
    _show(findings)
    write_pairs(out, findings)
    on_sheet = write_sheet(out, findings)
    verdicts = [finding.verdict for finding in findings]
    for shard_set in sets:
        save_verdicts(shard_set.folder, shard_set.digest, verdicts)
    click.echo(f"Verdicts: {LEAKAGE_NAME} in {', '.join(str(s.folder) for s in sets)}")
    for place, shard_set in zip(places, sets, strict=True):
        if isinstance(place, str):
            _publish(place, shard_set.folder, verdicts)
    unknown = sum(finding.verdict.unknown > 0 for finding in findings)
    if unknown:
        click.echo(f"{unknown} of {len(findings)} checks could not be made in full, and say nothing there")
    found = [finding for finding in findings if finding.verdict.outcome == "found"]
    if not found:
        click.echo("Nothing found")
        return
    pairs = sum(len(finding.pairs) for finding in found)
    click.echo(
        f"Leakage found: {pairs:,} pairs in {out / PAIRS_NAME}, {on_sheet:,} of them shown in {out / SHEET_NAME}"
    )
    for finding in found:
        click.echo(f"  {finding.verdict.name}")
    click.echo("mstl train refuses these sets, unless each finding is waived: --waive-leakage NAME")
    sys.exit(1)


def _check_out(out: Path) -> None:
    """Make the folder of the pairs before the work; raises MstlError where they cannot lie."""
    from shards.errors import MstlError
    from shards.schema import MANIFEST_NAME

    if (out / MANIFEST_NAME).exists():
        raise MstlError(f"--out {out}", why="it is a shard set, which holds nothing else", remedy="Name another folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MstlError(f"--out {out}", why=f"it cannot be made ({error.strerror})", remedy="Name a folder") from error


def _publish(url: str, folder: Path, verdicts: Sequence[Verdict]) -> None:
    """Put the verdicts beside the set at its URL too, or say that they are not there."""
    from shards.errors import MstlError
    from shards.remote import publish_verdicts
    from shards.remote_store import shown
    from shards.verdicts import LEAKAGE_NAME

    try:
        publish_verdicts(folder, url, verdicts)
    except MstlError as error:
        click.secho(
            f"WARNING: {shown(url)} does not have these verdicts, and jobs on other machines will not know of them: "
            f"{error.what}: {error.why}. Put {folder / LEAKAGE_NAME} there by other means",
            fg="red", err=True,
        )  # fmt: skip
        return
    click.echo(f"Verdicts: {LEAKAGE_NAME} at {shown(url)}")


def _show(findings: Sequence[Finding]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from shards.verdicts import CHECKS, pair_name

    styles = {"found": "red", "unknown": "yellow", "none": "green"}
    table = Table(title="Leakage")
    table.add_column("splits", no_wrap=True)
    for check in CHECKS:
        table.add_column(check)
    rows: dict[str, dict[str, Text]] = {}
    for finding in findings:
        verdict = finding.verdict
        text = Text(verdict.text(), style=styles[verdict.outcome])
        rows.setdefault(pair_name(verdict.a, verdict.b), {})[verdict.check] = text
    for name, texts in rows.items():
        table.add_row(Text(name), *(texts[check] for check in CHECKS))
    Console().print(table)
