"""`mstl inspect`: what is in a shard set."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mstl.cli.store_options import SHARD_SET, cache_options
from shards.schema import MAX_SEED, SPLITS

if TYPE_CHECKING:
    from rich.table import Table

    from shards.inspect import SetFacts, Spread

_MOST_CLASSES = 20  # more than these are not all listed
_AT_EACH_END = 10
_MOST_REASONS = 5


@click.command("inspect")
@click.argument("where", metavar="DIR|URL", type=SHARD_SET)
@click.option("--split", type=click.Choice(SPLITS), help="Look at this split alone.")
@click.option("--sheet", type=click.Path(path_type=Path), metavar="FILE.png",
              help="Draw random samples, as many of each class.")  # fmt: skip
@click.option("--count", type=click.IntRange(1, 1000), default=48, show_default=True, help="Samples on the sheet.")
@click.option("--seed", type=click.IntRange(0, MAX_SEED), default=0, show_default=True, help="Chooses the samples.")
@click.option("--json", "as_json", is_flag=True, help="Print all of it as JSON, every class included.")
@cache_options
def command(
    where: str | Path,
    split: str | None,
    sheet: Path | None,
    count: int,
    seed: int,
    as_json: bool,
    cache: Path | None,
    cache_limit: int | None,
) -> None:
    """Count what is in a shard set: splits, classes, sizes, modes, patients, equal images, refused ones.

    Reads the small records beside the images, not the images; `mstl verify` checks those. The records lie in the tars:
    of a set at a URL all tars that the cache does not have are fetched (--split for those of one split alone), and how
    many bytes that takes is said first.

    \b
    Examples:
      mstl inspect data/shards/covid19-ct --sheet ct.png
      mstl inspect data/shards/imagenet --split val --json
    """
    from mstl.cli.progress import rich_progress
    from shards.cache import CacheOptions, bytes_to_fetch, local_set
    from shards.inspect import inspect_set
    from shards.inspect_sheet import check_sheet_path, write_sheet
    from shards.remote_store import is_url, shown
    from shards.schema import load_manifest

    if sheet is not None:
        check_sheet_path(sheet)
    copies = CacheOptions(folder=cache, limit_bytes=cache_limit)
    splits = None if split is None else [split]
    if is_url(where):
        copy = local_set(where, cache=copies, splits=(), tars=False)
        missing = bytes_to_fetch(copy, load_manifest(copy), splits)
        if missing:
            click.echo(f"Fetching {missing / 1e6:,.1f} MB ({missing:,} bytes) of tars into {copies.place}", err=True)
    with rich_progress() as progress:
        folder = local_set(where, cache=copies, splits=splits, tars=True, progress=progress)
        facts = replace(inspect_set(folder, split, progress), folder=shown(where))
        drawn = None if sheet is None else write_sheet(folder, sheet, split, count=count, seed=seed, progress=progress)
    if as_json:
        click.echo(json.dumps(asdict(facts), indent=1, ensure_ascii=False))
    else:
        _show(facts)
    if drawn is not None:
        click.echo(f"{sheet}: {drawn} samples", err=as_json)


def _show(facts: SetFacts) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    console.print(_splits_table(facts))
    console.print(_classes_table(facts))
    for line in _lines(facts):
        console.print(line, markup=False, soft_wrap=True)


def _splits_table(facts: SetFacts) -> Table:
    from rich.table import Table

    table = Table(title=f"{facts.source} ({facts.modality}): {facts.folder}")
    table.add_column("")
    for name in facts.splits:
        table.add_column(name, justify="right")
    splits = facts.splits.values()
    for title, cells in (
        ("samples", [f"{s.samples:,}" for s in splits]),
        ("shards", [f"{s.shards:,}" for s in splits]),
        ("MB", [f"{s.bytes / 1e6:,.1f}" for s in splits]),
        ("samples a shard (min, median, max)", [_spread(s.shard_samples) for s in splits]),
        ("MB a shard", [_megabytes(s.shard_bytes) for s in splits]),
        ("width in pixels", [_spread(s.width) for s in splits]),
        ("height in pixels", [_spread(s.height) for s in splits]),
        ("modes", [_counts(s.modes) for s in splits]),
        ("formats", [_counts(s.formats) for s in splits]),
        ("stored as they came", [f"{s.as_they_came:,}" for s in splits]),
        ("known patients", [f"{s.patients:,}" for s in splits]),
        ("images of unknown patients", [f"{s.patient_unknown:,}" for s in splits]),
    ):
        table.add_row(title, *cells)
    return table


def _classes_table(facts: SetFacts) -> Table:
    from rich.table import Table

    totals = [sum(counts) for counts in zip(*(s.class_counts for s in facts.splits.values()), strict=True)]
    shown = list(range(len(totals)))
    title = f"{len(totals):,} classes"
    gap = None
    if len(totals) > _MOST_CLASSES:
        ranked = sorted(shown, key=lambda label: (-totals[label], label))
        shown, gap = [*ranked[:_AT_EACH_END], *ranked[-_AT_EACH_END:]], _AT_EACH_END
        most, median, least = (totals[ranked[place]] for place in (0, len(ranked) // 2, -1))
        each = f"{most:,}" if most == least else f"{least:,} to {most:,} (median {median:,})"
        title += f" of {each} {'sample' if most == 1 else 'samples'}: the {_AT_EACH_END} largest and smallest"
    table = Table(title=title)
    table.add_column("class")
    if facts.titles:
        table.add_column("title")
    for name in (*facts.splits, "all"):
        table.add_column(name, justify="right")
    for place, label in enumerate(shown):
        if place == gap:
            table.add_section()
        name = facts.classes[label]
        titles = [_plain(facts.titles.get(name, ""))] if facts.titles else []
        counts = [s.class_counts[label] for s in facts.splits.values()]
        table.add_row(_plain(name), *titles, *(f"{count:,}" for count in (*counts, totals[label])))
    return table


def _lines(facts: SetFacts) -> list[str]:
    unknown = sum(s.patient_unknown for s in facts.splits.values())
    samples = sum(s.samples for s in facts.splits.values())
    missing = f"; unknown for {unknown:,} of {samples:,} images" if unknown else ""
    straddling = f"{facts.straddling:,} known" if unknown < samples else "none is known"
    lines = [f"patients in more than one split: {straddling}{missing}"] if len(facts.splits) > 1 else []
    inside = ", ".join(f"{name} {count:,}" for name, count in facts.duplicates.items())
    lines.append(
        f"equal images (same bytes): {inside}; in more than one split {facts.duplicates_across:,}; "
        f"in more than one class {facts.contradicting:,}"
    )
    for equal in facts.equal_images:
        more = equal.images - len(equal.keys)
        lines.append("  " + " = ".join((*equal.keys, *([f"{more:,} more"] if more else []))))
    lines.append(f"refused: {facts.refused:,}{' (quarantine.jsonl)' if facts.refused else ''}")
    lines += [f"  {count:,} × {reason}" for reason, count in facts.reasons[:_MOST_REASONS]]
    lines.append("leakage:" + ("" if facts.leakage else f" never checked (mstl leakage {facts.folder})"))
    lines += [f"  {name}: {verdict}" for name, verdict in facts.leakage.items()]
    options = ", ".join(f"{name} {value}" for name, value in sorted(facts.options.items()) if name != "listing_digest")
    lines.append(f"built by MSTL {facts.tool_version} with seed {facts.seed}, {options}")
    lines.append(f"digest {facts.digest}")
    return lines


def _spread(spread: Spread) -> str:
    return _three(f"{value:,}" for value in (spread.least, spread.median, spread.most))


def _megabytes(spread: Spread) -> str:
    return _three(f"{value / 1e6:,.1f}" for value in (spread.least, spread.median, spread.most))


def _three(texts: Iterable[str]) -> str:
    """Least, median and most, or one of them where all are the same."""
    shown = list(texts)
    return shown[0] if len(set(shown)) == 1 else ", ".join(shown)


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


def _plain(text: str) -> str:
    """A name as it is, whatever brackets it has."""
    from rich.markup import escape

    return escape(text)
