"""The files of a leakage check: the pairs as a table, and a contact sheet of them side by side."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image as Pillow

from shards.files import write_atomic
from shards.leakage import Finding, Pair
from shards.read import read_image
from shards.sheet import Cell, contact_sheet
from shards.split_images import Image
from shards.verdicts import Part

PAIRS_NAME = "pairs.csv"
SHEET_NAME = "pairs.png"
MOST_SHOWN = 60  # pairs on the sheet; the table has all
_PAIRS_A_ROW = 4
_COLUMNS = (
    "finding", "reason", "a_set", "a_split", "a_id", "a_key", "a_patient",
    "b_set", "b_split", "b_id", "b_key", "b_patient", "bits", "correlation",
)  # fmt: skip


def write_pairs(out: Path, findings: Sequence[Finding]) -> None:
    """Write pairs.csv into a folder: a line for each affected image of the split that is measured on.

    bits: of 256 that differ in the perceptual hash, empty in the other checks.
    """
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(_COLUMNS)
    for finding in findings:
        verdict = finding.verdict
        for pair in finding.pairs:
            bits = "" if pair.bits is None else pair.bits
            correlation = "" if pair.correlation is None else f"{pair.correlation:.3f}"
            sides = (*_side(verdict.a, pair.a), *_side(verdict.b, pair.b))
            table.writerow((verdict.name, _reason(finding, pair), *sides, bits, correlation))
    write_atomic(out / PAIRS_NAME, text.getvalue().encode())


def write_sheet(out: Path, findings: Sequence[Finding]) -> int:
    """Write pairs.png into a folder: pairs side by side, from each finding as many; returns how many are shown.

    Without any pair an old sheet is removed.
    """
    found = [finding for finding in findings if finding.pairs]
    if not found:
        (out / SHEET_NAME).unlink(missing_ok=True)
        return 0
    cells: list[Cell] = []
    for finding in found:
        for pair in finding.pairs[: max(1, MOST_SHOWN // len(found))]:
            cells += _cells(finding, pair)
    image = io.BytesIO()
    contact_sheet(cells, columns=2 * _PAIRS_A_ROW).save(image, "PNG")
    write_atomic(out / SHEET_NAME, image.getvalue())
    return len(cells) // 2


def _side(part: Part, image: Image) -> tuple[str, str, int, str, str]:
    return part.name, part.split, image.sample_id, image.key, image.patient or ""


def _reason(finding: Finding, pair: Pair) -> str:
    if finding.verdict.check == "patient":
        return "same patient"
    if finding.verdict.check == "content":
        return "same file"
    return f"same picture ({pair.bits} of 256 bits differ, correlation {pair.correlation:.2f})"


def _cells(finding: Finding, pair: Pair) -> list[Cell]:
    verdict = finding.verdict
    likeness = "" if pair.bits is None else f"{pair.bits} bits, r {pair.correlation:.2f}"
    return [
        Cell(
            Pillow.open(io.BytesIO(read_image(folder, image.sample_id))),
            (f"{part.name}:{part.split}", image.key, image.patient or "patient unknown", note),
        )
        for folder, part, image, note in (
            (finding.folders[0], verdict.a, pair.a, f"{verdict.check}:"),
            (finding.folders[1], verdict.b, pair.b, likeness),
        )
    ]
