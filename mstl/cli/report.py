"""`mstl report`: several runs on one page."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("report", context_settings={"show_default": True})
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The HTML file to write.")
@click.option("--title", default="Multi-stage attentive transfer learning", help="Headline of the page.")
def command(runs: tuple[Path, ...], out: Path, title: str) -> None:
    """Write one self-contained HTML file on the RUNs, in the order named.

    \b
    mstl report runs/stl_n runs/stl_m runs/sstl_m runs/finetune --out report.html
    mstl report runs/finetune runs/scratch --out compare.html --title "With and without transfer"

    It shows what lies in the run folders: `mstl evaluate` and `mstl explain` fill in test results and heatmaps.
    """
    from mstl.study.records import heatmaps
    from mstl.study.report import write_report

    write_report(out, title=title, runs=runs, images=heatmaps(runs))
    click.echo(f"Wrote {out}")
