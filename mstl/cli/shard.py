"""`mstl shard`: raw data to a shard set."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mstl.cli.store_options import FOLDER
from shards.errors import MstlError
from shards.schema import MAX_SEED
from shards.source_options import MODALITIES, Modality

if TYPE_CHECKING:
    from shards.schema import Manifest
    from shards.sources import Listing


class Fraction(click.ParamType[float]):
    """A fraction between 0 and 1, also written as per cent."""

    name = "fraction"

    def convert(self, value: float | str, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """ "1%" and "0.01" are the same."""
        text = str(value).strip()
        try:
            number = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            self.fail(f"{text!r} is neither a number nor per cent, such as 0.01 or 1%", param, ctx)
        if not 0 <= number <= 1:
            self.fail(f"{text!r} is not between 0 and 1 (0 % and 100 %)", param, ctx)
        return number


class PartNumber(click.ParamType[tuple[int, int]]):
    """Which share of how many, written 3/8."""

    name = "part"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """The two numbers."""
        number, _, of = value.partition("/")
        if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
            self.fail(f"{value!r} does not read NUMBER/OF, such as 3/8 (from 1/8 to 8/8)", param, ctx)
        return int(number), int(of)


@click.command(
    name="shard",
    epilog="The build can be interrupted: the same command goes on where it stopped and ends with the same bytes "
    "(with --force it starts anew).",
)
@click.option(
    "--src", required=True, metavar="NAME",
    help="Layout of the raw data: imagenet, covidx, covid19-ct, folder, webdataset, dicom, nifti.",
)  # fmt: skip
@click.option("--root", type=FOLDER, help="Where the raw data lies.  [default: data/raw/NAME]")
@click.option("--out", type=FOLDER, help="The shard set to make.  [default: data/shards/NAME]")
@click.option("--labels", type=click.Path(path_type=Path), metavar="FILE.csv",
              help="Table path,label[,patient,split] instead of class folders (folder, dicom, nifti).")  # fmt: skip
@click.option("--modality", type=click.Choice(MODALITIES),
              help="What the images are: folder and webdataset take them for natural, dicom tells ct and cxr by their "
              "headers and wants to be told where both are there.")  # fmt: skip
@click.option("--window", metavar="NAME|CENTER,WIDTH",
              help="Hounsfield window of dicom and nifti: lung, mediastinum or two numbers.  [default: lung for CT; a "
              "radiograph's own]")  # fmt: skip
@click.option("--bits", type=click.Choice([8, 16]), help="Of the PNGs made of dicom and nifti: 8 or 16.  [default: 8]")
@click.option("--strict", is_flag=True, help="Refuse a source whose counts are not the published ones.")
@click.option(
    "--seed",
    type=click.IntRange(0, MAX_SEED),
    default=0,
    show_default=True,
    help="Decides the order of samples and the carved validation part.",
)
@click.option("--samples-per-shard", type=click.IntRange(1), default=1000, show_default=True, help="Samples in a tar.")
@click.option("--resize", type=click.IntRange(16), metavar="N",
              help="Shorter side in pixels for larger images; without it the original bytes are kept.")  # fmt: skip
@click.option("--quality", type=click.IntRange(1, 100), default=90, show_default=True,
              help="JPEG quality of what --resize makes smaller; it makes PNGs of PNGs and of all medical images."
              )  # fmt: skip
@click.option("--val-fraction", type=Fraction(), default="10%", show_default=True,
              help="Training patients that become val when the source has no val part.")  # fmt: skip
@click.option("--check", type=click.Choice(["full", "header"]), default="full", show_default=True,
              help="Decode every image in full, or believe its header (fast, for images checked before).")  # fmt: skip
@click.option("--max-bad", type=Fraction(), default="1%", show_default=True,
              help="Images that may be refused (see quarantine.jsonl) before the build fails; three at least, but "
              "none with 0.")  # fmt: skip
@click.option("--workers", type=click.IntRange(1), default=lambda: len(os.sched_getaffinity(0)),
              show_default="CPU cores", help="Processes that decode and write.")  # fmt: skip
@click.option("--force", is_flag=True, help="Build anew, and replace what is there once that is complete.")
@click.option("--part", type=PartNumber(), metavar="I/N",
              help="Write only the I-th of N parts, for a Slurm array or several hosts that share --out; "
              "close with --merge.")  # fmt: skip
@click.option("--merge", is_flag=True, help="Publish what all parts have written.")
@click.option("--remote", metavar="URL", help="Also put the finished set there: s3://bucket/name, or any fsspec URL.")
def command(
    src: str,
    root: Path | None,
    out: Path | None,
    labels: Path | None,
    modality: Modality | None,
    window: str | None,
    bits: int | None,
    strict: bool,
    seed: int,
    samples_per_shard: int,
    resize: int | None,
    quality: int,
    val_fraction: float,
    check: str,
    max_bad: float,
    workers: int,
    force: bool,
    part: tuple[int, int] | None,
    merge: bool,
    remote: str | None,
) -> None:
    """Convert raw data to WebDataset shards: tars with indexes for DALI, and a manifest.

    Every image is decoded once; broken ones are left out and listed. Samples are shuffled once with the seed. What is
    there already with the same options is kept.

    \b
    Examples:
      mstl shard --src covid19-ct                      data/raw/covid19-ct -> data/shards/covid19-ct
      mstl shard --src imagenet --root /mnt/ilsvrc --resize 256 --workers 16
      mstl shard --src folder --root my_images --labels my_images/table.csv --out data/shards/mine
      mstl shard --src dicom --root studies --window lung --out data/shards/ct
    \b
    On eight hosts (or as a Slurm array), then once anywhere:
      mstl shard --src imagenet --part $SLURM_ARRAY_TASK_ID/8
      mstl shard --src imagenet --merge
    """
    from mstl.cli.progress import rich_progress
    from shards.building import occupied
    from shards.remote import upload
    from shards.remote_store import open_store, shown
    from shards.sources import SourceOptions, read_source
    from shards.writer import Part, WriteOptions, find_built, merge_parts, write_part, write_shards

    if part and (merge or force or remote):
        raise click.UsageError(
            "--part only writes a share: --merge, --force and --remote belong to the closing command"
        )
    root, out = root or Path("data/raw") / src, out or Path("data/shards") / src
    # What cannot be used is better known before the work than behind it.
    if out.resolve().is_relative_to(root.resolve()):
        raise MstlError(
            f"--out {out}",
            why=f"it lies in the source {root}, where unfinished shards would be taken for images",
            remedy="Choose an --out beside the source",
        )
    occupied(out)
    if remote is not None:
        open_store(remote).sizes()
    options = WriteOptions(
        seed=seed,
        samples_per_shard=samples_per_shard,
        resize=resize,
        quality=quality,
        val_fraction=val_fraction,
        decode=check == "full",
        max_bad=max_bad,
        workers=workers,
    )
    source_options = SourceOptions(labels=labels, modality=modality, window=window, bits=bits)
    with rich_progress() as progress:
        listing = read_source(src, root, source_options, progress)
    _tell(listing, strict=strict)
    # What parts write is published by --merge alone, so they do not mind another set at --out.
    manifest = None if force else find_built(listing, out, options, other_welcome=part is not None)
    if manifest is not None:
        click.echo(
            f"{out} is there already, built from files of the same names and sizes with the same options: nothing to do"
            + (f" ({_images(manifest.refused)} refused; --force tries them again)" if manifest.refused else "")
        )
    elif part is not None:
        with _told_when_stopped(), rich_progress() as progress:
            written, refused = write_part(listing, out, options, Part(*part), progress)
        click.echo(
            f"part {part[0]} of {part[1]}: {written:,} shards are written, {_images(refused)} refused; "
            "when all parts are done, close the set with --merge in place of --part"
        )
        return
    else:
        build = merge_parts if merge else write_shards
        with _told_when_stopped(), rich_progress() as progress:
            manifest = build(listing, out, options, progress, force=force)
    _show(manifest, out)
    if remote is not None:
        with rich_progress() as progress:
            upload(out, remote, progress, force=force)
        click.echo(f"the set is at {shown(remote)} too")


@contextmanager
def _told_when_stopped() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        click.echo("Stopped. Finished shards are kept: the same command (without --force) goes on.", err=True)
        raise


def _tell(listing: Listing, *, strict: bool) -> None:
    """Say what the user should hear of a listing; `strict` makes an error of counts that are not the published ones."""
    for note in listing.notes:
        click.secho(f"note: {note}", fg="yellow", err=True)
    for mismatch in listing.mismatches:
        click.secho(f"WARNING: {mismatch}: this is not the published data set", fg="red", bold=True, err=True)
    if strict and listing.expected is None:
        raise MstlError(
            f"source {listing.source}",
            why="no published counts of it are known, so --strict has nothing to hold it against",
            remedy="Leave --strict out",
        )
    if strict and listing.mismatches:
        raise MstlError(
            f"source {listing.source}",
            why="; ".join(listing.mismatches),
            remedy="Get the published files, or convert what there is without --strict",
        )


def _show(manifest: Manifest, out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{manifest.source}: {out}")
    table.add_column("split")
    for title in ("samples", "shards", "MB"):
        table.add_column(title, justify="right")
    table.add_column("samples per class")
    for split in manifest.splits:
        shards, counts = manifest.shards(split), manifest.class_counts[split]
        if len(counts) <= 10:
            classes = ", ".join(f"{name} {count}" for name, count in zip(manifest.classes, counts, strict=True))
        else:
            low, high = min(counts), max(counts)
            classes = f"{len(counts)} classes, {low if low == high else f'{low} to {high}'} each"
        size = sum(shard.bytes for shard in shards) / 1e6
        table.add_row(split, f"{manifest.samples(split):,}", f"{len(shards)}", f"{size:,.1f}", classes)
    console = Console()
    console.print(table)
    if manifest.refused:
        click.secho(f"{_images(manifest.refused)} refused: {out / 'quarantine.jsonl'}", fg="yellow")
    if manifest.duplicates:
        click.secho(
            f"{_images(manifest.duplicates)} byte for byte the same as another one: mstl inspect {out} names them",
            fg="yellow",
        )


def _images(count: int) -> str:
    return "1 image was" if count == 1 else f"{count:,} images were"
