"""`mstl report`: several runs on one page, or a study in the paper's tables."""

from __future__ import annotations

from pathlib import Path

import click

_TITLE = "Multi-stage attentive transfer learning"


@click.command("report", context_settings={"show_default": True})
@click.argument("folders", metavar="STUDY|RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="The HTML file to write.  [default: STUDY/report.html]")
@click.option("--title", help=f"Headline of the page.  [default: the study's, or {_TITLE}]")
def command(folders: tuple[Path, ...], out: Path | None, title: str | None) -> None:
    """Write one self-contained HTML file on a STUDY that `mstl run` made, or on RUNs in the order named.

    \b
    mstl report runs/local
    mstl report runs/stl_n runs/stl_m runs/sstl_m runs/finetune --out report.html
    mstl report runs/finetune runs/scratch --out compare.html --title "With and without transfer"

    Of a study: Tables 1 to 6 as measured beside the paper's, gains, Figures 3 and 4, recipes and records, as far as it
    has come; the tables also as CSVs, in REPORT-tables/ beside REPORT.html. Of runs: what lies in their folders;
    `mstl evaluate` and `mstl explain` fill in test results and heatmaps.
    """
    from mstl.study.study_files import is_study

    if any(is_study(folder) for folder in folders):
        from mstl.study.study_report import check_only_study, write_study_report

        check_only_study(folders)
        page = out or folders[0] / "report.html"
        tables = write_study_report(folders[0], page, title=title)
        click.echo(f"Wrote {page} and {tables}/*.csv")
        return
    if out is None:
        raise click.UsageError(
            "--out is missing: name the HTML file to write (a study, with its study.json, needs none)"
        )
    from mstl.study.records import heatmaps
    from mstl.study.report import write_report

    write_report(out, title=title or _TITLE, runs=folders, images=heatmaps(folders))
    click.echo(f"Wrote {out}")
