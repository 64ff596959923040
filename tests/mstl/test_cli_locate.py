"""`mstl locate`: boxes, sheets, what is refused, and the shapes of input."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from mstl.cli.locate import command
from pipelines.loader import Loader
from pipelines.recipe import multi_view_ct
from shards.errors import MstlError
from shards.schema import load_manifest


def run(*arguments):
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def slice_of_a_chest(side=160):
    """Two dark lungs in a bright body; the lung box is x 0.22 … 0.78, y 0.26 … 0.68 of the image."""
    y, x = np.mgrid[:side, :side] / side
    image = np.where(((x - 0.5) / 0.46) ** 2 + ((y - 0.48) / 0.38) ** 2 < 1, 180, 5)
    for middle in (0.34, 0.66):
        image[((x - middle) / 0.12) ** 2 + ((y - 0.47) / 0.21) ** 2 < 1] = 30
    return image.astype(np.uint8)


def boxes(folder):
    body = json.loads((folder / "boxes.json").read_text())
    return {one["image"].rsplit("/", 1)[-1]: one for one in body["images"]}, body["refused"]


@pytest.fixture
def folder(tmp_path):
    """The same slice as grey, RGBA, 16-bit, inverted and turned JPEG, a plain image and two broken ones."""
    where = tmp_path / "in"
    (where / "deeper").mkdir(parents=True)
    pixels = slice_of_a_chest()
    grey = Image.fromarray(pixels)
    grey.save(where / "grey.png")
    rgba = grey.convert("RGBA")
    rgba.putalpha(Image.new("L", grey.size, 40))
    rgba.save(where / "rgba.png")
    Image.fromarray(pixels.astype(np.uint16) * 257).save(where / "deep.png")
    Image.fromarray(255 - pixels).save(where / "deeper" / "inverted.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by a quarter to the right
    grey.rotate(90).save(where / "turned.jpg", quality=95, exif=exif)
    Image.new("L", (50, 40), 90).save(where / "plain.png")
    (where / "broken.png").write_bytes((where / "grey.png").read_bytes()[:300])
    (where / "empty.jpg").write_bytes(b"")
    (where / "notes.txt").write_text("no image")
    return where


def test_every_kind_of_image_has_the_same_boxes(folder, tmp_path):
    out = tmp_path / "out"
    result = run(folder, "--out", out)
    assert result.exit_code == 0, result.output
    assert f"{out}: 6 images, lungs found in 5, 1 fell back to the whole image, 2 could not be read" in result.stdout
    found, refused = boxes(out)
    assert sorted(found) == ["deep.png", "grey.png", "inverted.png", "plain.png", "rgba.png", "turned.jpg"]
    assert [one["image"].rsplit("/", 1)[-1] for one in refused] == ["broken.png", "empty.jpg"]
    assert refused[1]["reason"] == "the file is empty"
    for name in ("deep.png", "grey.png", "inverted.png", "rgba.png", "turned.jpg"):
        one = found[name]
        assert not one["fallback"] and (one["width"], one["height"]) == (160, 160)
        assert np.abs(np.array(one["lungs"]) - 160 * np.array([0.22, 0.26, 0.78, 0.68])).max() < 2.5, name
    x0, y0, x1, y1 = found["grey.png"]["lungs"]
    wide, high = x1 - x0, y1 - y0
    regions = found["grey.png"]["regions"]
    assert list(regions) == ["ru", "rm", "rl", "lu", "ll"]
    assert np.allclose(regions["ru"], [x0, y0, x0 + wide / 2, y0 + high / 3], atol=0.02)
    assert np.allclose(regions["ll"], [x0 + wide / 2, y0 + high / 2, x1, y1], atol=0.02)
    assert found["plain.png"]["fallback"] and found["plain.png"]["lungs"] == [0, 0, 50, 40]


def test_the_sheet_shows_the_boxes(folder, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "sheet-007.png").write_bytes(b"of an earlier run")
    assert run(folder / "grey.png", folder / "plain.png", "--out", out).exit_code == 0
    assert sorted(path.name for path in out.iterdir()) == ["boxes.json", "sheet-001.png"]
    with Image.open(out / "sheet-001.png") as sheet:
        pixels = np.asarray(sheet).astype(int)
    scale = 200 / 160
    left, top = boxes(out)[0]["grey.png"]["lungs"][:2]
    row = pixels[round(8 + (top + 30) * scale), 8 : 8 + 200]
    green = np.flatnonzero((row == (40, 220, 60)).all(-1))
    assert abs(green[0] - left * scale) <= 1.5
    assert ((pixels == (255, 60, 40)).all(-1)).any(), "the fallback is drawn in red"


def test_a_shard_set_and_its_splits(sample_sets, tmp_path):
    shard_set = sample_sets / "covid19-ct"
    manifest = load_manifest(shard_set)
    assert run(shard_set, "--split", "val", "--out", tmp_path / "val").exit_code == 0
    assert run(shard_set, "--out", tmp_path / "all").exit_code == 0
    assert len(boxes(tmp_path / "val")[0]) == manifest.samples("val")
    assert len(boxes(tmp_path / "all")[0]) == sum(manifest.samples(split) for split in manifest.splits)


def test_boxes_are_those_of_training(sample_sets, tmp_path):
    """Value by value: the same square of the image is looked at."""
    shard_set = sample_sets / "covid19-ct"
    assert run(shard_set, "--split", "val", "--out", tmp_path / "out").exit_code == 0
    shown = json.loads((tmp_path / "out/boxes.json").read_text())["images"]
    loader = Loader(
        multi_view_ct(), shard_set, "val", rank=0, world=1, batch=len(shown), epochs=1, device="cpu", seed=1,
        shuffle=False, remainder="keep",
    )  # fmt: skip
    [batch] = list(loader)
    sizes = np.array([[one["width"], one["height"]] * 2 for one in shown])
    order = np.argsort(batch.sample_ids.numpy())
    assert np.abs(batch.boxes.numpy()[order] * sizes - [one["lungs"] for one in shown]).max() <= 0.006  # as rounded
    assert batch.located.numpy()[order].tolist() == [not one["fallback"] for one in shown]


def test_what_cannot_work_is_told(folder, tmp_path):
    for arguments, why in (
        ((tmp_path / "nowhere.png",), "there is no such file"),
        ((folder / "deeper" / "..", folder / "broken.png"), None),
        ((folder / "broken.png", folder / "empty.jpg"), "none of them can be read"),
    ):
        result = run(*arguments, "--out", tmp_path / "out")
        if why is None:
            assert result.exit_code == 0
        else:
            assert isinstance(result.exception, MstlError) and why in str(result.exception)
    (tmp_path / "bare").mkdir()
    result = run(tmp_path / "bare", "--out", tmp_path / "out")
    assert isinstance(result.exception, MstlError) and "no images are there" in str(result.exception)
    assert run("--out", tmp_path / "out").exit_code == 2
