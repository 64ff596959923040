"""Contact sheets: many small images with captions in one picture, to look at."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

GAP_PX = 8
LINE_PX = 16  # of a caption
_FONT_PX = 12
_LONGEST = 300  # characters looked at; more never fit
_PAPER, _SQUARE, _INK = (255, 255, 255), (208, 208, 208), (24, 24, 24)


@dataclass(frozen=True, slots=True)
class Cell:
    """An image of any mode (None: the cell stays empty) and the lines of text below it."""

    image: Image.Image | None
    lines: tuple[str, ...]


def contact_sheet(cells: Sequence[Cell], *, columns: int, cell_px: int = 160) -> Image.Image:
    """All cells row by row in one RGB image.

    Each image fills a grey square of `cell_px` pixels as far as its proportions let it. A line of text that is wider
    than the square ends in an ellipsis. Images of more than 8 bits are shown from their lowest to their highest value,
    transparent ones on the grey.
    """
    assert columns >= 1 and cell_px >= 16, "a sheet needs a column and visible cells"
    columns = max(1, min(columns, len(cells)))
    rows = -(-len(cells) // columns)
    line_count = max((len(cell.lines) for cell in cells), default=0)
    row_px = cell_px + line_count * LINE_PX + GAP_PX
    sheet = Image.new("RGB", (GAP_PX + columns * (cell_px + GAP_PX), GAP_PX + max(rows, 1) * row_px), _PAPER)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(_FONT_PX)
    for place, cell in enumerate(cells):
        left, top = GAP_PX + place % columns * (cell_px + GAP_PX), GAP_PX + place // columns * row_px
        sheet.paste(_square(cell.image, cell_px), (left, top))
        for number, line in enumerate(cell.lines):
            draw.text((left, top + cell_px + number * LINE_PX), _cut(line, cell_px, font), fill=_INK, font=font)
    return sheet


def eight_bit(image: Image.Image) -> Image.Image:
    """An image of more than 8 bits as grey, its lowest value black and its highest white; any other as it is."""
    if image.mode[0] not in "IF":  # I, I;16, I;16B, F
        return image
    values = np.nan_to_num(np.asarray(image).astype(np.float64))
    low, high = values.min(), values.max()
    return Image.fromarray(((values - low) * (255 / (high - low) if high > low else 0)).round().astype(np.uint8))


def _square(image: Image.Image | None, side: int) -> Image.Image:
    square = Image.new("RGB", (side, side), _SQUARE)
    if image is None:
        return square
    plain = eight_bit(image)
    shown = plain.convert("RGBA" if plain.has_transparency_data else "RGB")
    scale = side / max(shown.size)
    size = (max(1, round(shown.width * scale)), max(1, round(shown.height * scale)))
    shown = shown.resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC)
    corner = ((side - size[0]) // 2, (side - size[1]) // 2)
    square.paste(shown, corner, shown if shown.mode == "RGBA" else None)
    return square


def _cut(line: str, width: int, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> str:
    """The line, or as much of it as fits with an ellipsis; the font has no accents and no multiplication sign."""
    letters = unicodedata.normalize("NFKD", " ".join(line[:_LONGEST].split()).replace("×", "x"))
    text = "".join(letter for letter in letters if not unicodedata.combining(letter))
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
