"""Contact sheets: where images land, what is drawn around them, and how unusual ones are shown."""

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from shards.sheet import GAP_PX, LINE_PX, Cell, contact_sheet, eight_bit

GREY, WHITE = (208, 208, 208), (255, 255, 255)


def plain(size, colour, mode="RGB"):
    return Image.new(mode, size, colour)


def square(sheet, column, row, lines, side):
    """The pixels of a cell's square."""
    left, top = GAP_PX + column * (side + GAP_PX), GAP_PX + row * (side + lines * LINE_PX + GAP_PX)
    return np.asarray(sheet.crop((left, top, left + side, top + side)))


def caption(sheet, column, row, line, lines, side):
    """The pixels of a line of text."""
    left = GAP_PX + column * (side + GAP_PX)
    top = GAP_PX + row * (side + lines * LINE_PX + GAP_PX) + side + line * LINE_PX
    return np.asarray(sheet.crop((left, top, left + side, top + LINE_PX)))


def test_images_land_row_by_row():
    colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200), (9, 9, 9), (99, 0, 99)]
    sheet = contact_sheet([Cell(plain((50, 50), c), ("x",)) for c in colours], columns=3, cell_px=40)
    assert sheet.mode == "RGB" and sheet.size == (8 + 3 * 48, 8 + 2 * (40 + 16 + 8))
    for place, colour in enumerate(colours):
        assert (square(sheet, place % 3, place // 3, 1, 40) == colour).all()
    assert (square(sheet, 2, 1, 1, 40) == WHITE).all()
    assert (np.asarray(sheet)[:GAP_PX] == WHITE).all() and (np.asarray(sheet)[: GAP_PX + 40, :GAP_PX] == WHITE).all()


@pytest.mark.parametrize(("size", "box"), [((80, 40), (0, 10, 40, 30)), ((4, 8), (10, 0, 30, 40))])
def test_proportions_are_kept_in_the_middle_of_grey(size, box):
    shown = square(contact_sheet([Cell(plain(size, (200, 0, 0)), ())], columns=1, cell_px=40), 0, 0, 0, 40)
    inside = np.zeros((40, 40), bool)
    inside[box[1] : box[3], box[0] : box[2]] = True
    assert (shown[inside] == (200, 0, 0)).all() and (shown[~inside] == GREY).all()


def test_an_extreme_image_still_shows_a_line():
    shown = square(contact_sheet([Cell(plain((4000, 2), (200, 0, 0)), ())], columns=1, cell_px=40), 0, 0, 0, 40)
    assert ((shown == (200, 0, 0)).all(axis=-1).sum(axis=0) == 1).all()


def test_an_empty_cell_keeps_its_place_and_its_caption():
    sheet = contact_sheet([Cell(None, ("gone",)), Cell(plain((9, 9), 0), ())], columns=2, cell_px=40)
    assert (square(sheet, 0, 0, 1, 40) == GREY).all() and (square(sheet, 1, 0, 1, 40) == 0).all()
    assert caption(sheet, 0, 0, 0, 1, 40).min() < 100 and (caption(sheet, 1, 0, 0, 1, 40) == 255).all()


def drawn(text, side):
    """A line of text as it looks on a sheet."""
    image = Image.new("RGB", (side, LINE_PX), WHITE)
    ImageDraw.Draw(image).text((0, 0), text, fill=(24, 24, 24), font=ImageFont.load_default(12))
    return np.asarray(image)


@pytest.mark.parametrize(("line", "as_shown"), [
    ("COVID-19", "COVID-19"), ("two\nlines", "two lines"), ("512 × 412", "512 x 412"), ("café", "cafe"), ("", ""),
])  # fmt: skip
def test_captions_stand_line_by_line(line, as_shown):
    sheet = contact_sheet([Cell(None, ("first", line))], columns=1, cell_px=100)
    assert np.array_equal(caption(sheet, 0, 0, 0, 2, 100), drawn("first", 100))
    assert np.array_equal(caption(sheet, 0, 0, 1, 2, 100), drawn(as_shown, 100))


def test_long_captions_end_in_an_ellipsis_inside_their_column():
    line = "2020.02.24.20027052-p8-73%3.png and more of it" * 20
    sheet = contact_sheet([Cell(None, (line,)), Cell(None, ())], columns=2, cell_px=100)
    font = ImageFont.load_default(12)
    fits = max(n for n in range(len(line)) if font.getlength(line[:n] + "…") <= 100)
    assert fits > 8 and np.array_equal(caption(sheet, 0, 0, 0, 1, 100), drawn(line[:fits] + "…", 100))
    assert (np.asarray(sheet)[-LINE_PX:, 100 + GAP_PX :] == WHITE).all()


@pytest.mark.parametrize("values", [
    np.array([[1000, 2000], [3000, 5000]], np.uint16), np.array([[-4, -3], [-2, 0]], np.int32),
    np.array([[0.1, 0.2], [0.3, 0.5]], np.float32),
])  # fmt: skip
def test_deep_images_are_shown_from_lowest_to_highest(values):
    assert np.asarray(eight_bit(Image.fromarray(values))).tolist() == [[0, 64], [128, 255]]
    shown = square(contact_sheet([Cell(Image.fromarray(values), ())], columns=1, cell_px=40), 0, 0, 0, 40)
    assert shown[2, 2].max() < 30 and shown[-3, -3].min() > 225


def test_a_flat_deep_image_is_black_and_holes_in_numbers_are_no_matter():
    assert not np.asarray(eight_bit(Image.fromarray(np.full((2, 2), 40000, np.uint16)))).any()
    assert np.asarray(eight_bit(Image.fromarray(np.array([[np.nan, 1.0]], np.float32)))).tolist() == [[0, 255]]


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK", "I;16"])
def test_images_of_any_mode_are_shown(mode):
    image = Image.new(mode, (8, 8))
    shown = square(contact_sheet([Cell(image, ())], columns=1, cell_px=40), 0, 0, 0, 40)
    assert (shown == {"LA": GREY, "RGBA": GREY, "CMYK": WHITE}.get(mode, (0, 0, 0))).all()


def test_a_sheet_of_nothing_is_blank():
    sheet = contact_sheet([], columns=4, cell_px=40)
    assert sheet.mode == "RGB" and (np.asarray(sheet) == 255).all()
