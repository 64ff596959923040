"""Asking a run about image files: the same probabilities as its evaluation gives, and what is said of odd images."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from tiny_runs import SIDE, make_run, make_shards

from mstl.cli.main import group
from mstl.evaluation.evaluate import evaluate_run
from mstl.evaluation.operating import read_operating
from mstl.runs import open_run
from mstl.use.predict import Predicted, predict_files
from mstl.weights import load_weights, save_weights
from pipelines.recipe import Inputs
from shards.errors import MstlError
from shards.files import sha256_file
from shards.progress import QUIET
from shards.read import iter_records
from shards.schema import Manifest, load_manifest
from shards.source_options import SourceOptions
from shards.sources import read_source
from shards.writer import WriteOptions, write_shards


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("predict") / "shards"
    make_shards(folder)
    return folder


@pytest.fixture(scope="module")
def run(shards: Path) -> Path:
    """Never evaluated."""
    return make_run(shards.with_name("run"), shards, load_manifest(shards))


@pytest.fixture(scope="module")
def evaluated(shards: Path) -> Path:
    """Evaluated on test, with an operating point and a temperature from val."""
    path = make_run(shards.with_name("evaluated"), shards, load_manifest(shards))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mstl.evaluation.plots.draw", lambda *_: {})
        evaluate_run(path, split="test", resamples=100)
    return path


def raw(shards: Path) -> Path:
    return shards.with_name("shards-raw")


def positive(done: Predicted) -> dict[str, float]:
    """Probability of the positive class by the stem of the file."""
    assert done.network.positive is not None
    return {answer.image.named.path.stem: answer.probabilities[done.network.positive] for answer in done.answers}


def evaluation_table(run: Path, split: str) -> dict[int, float]:
    rows = csv.DictReader((run / "evaluation" / split / "predictions.csv").open())
    return {int(row["sample_id"]): float(row["probability"]) for row in rows}


def test_an_image_of_the_set_gets_the_probability_of_its_evaluation(evaluated: Path, shards: Path) -> None:
    files = sorted(raw(shards).glob("test-*.png"))
    done = predict_files(evaluated, files, batch=4)  # 10 images: the last batch is padded
    assert [answer.image.named.path for answer in done.answers] == files and done.bad == ()
    known = evaluation_table(evaluated, "test")
    origins = {record.sample_id: Path(record.origin).stem for record in iter_records(shards, "test")}
    expected = {origins[sample_id]: probability for sample_id, probability in known.items()}
    assert len(set(expected.values())) == 10
    assert positive(done) == pytest.approx(expected, abs=1e-6)

    chosen = read_operating(evaluated)
    assert chosen is not None and chosen.threshold is not None and chosen.temperature is not None
    for answer in done.answers:
        share = answer.probabilities[1]
        assert answer.says == int(share >= chosen.threshold)
        odds = (share / (1 - share)) ** (1 / chosen.temperature)
        assert answer.calibrated is not None and answer.calibrated[1] == pytest.approx(odds / (1 + odds), abs=1e-5)
    assert {answer.says for answer in done.answers} == {0, 1}


def _changed_inputs(path: Path, shards: Path, manifest: Manifest, **changes: Any) -> Path:
    made = make_run(path, shards, manifest)
    body = open_run(made).body
    inputs = replace(Inputs.from_dict(body["inputs"]["evaluation"]), **changes).to_dict()
    (made / "run.json").write_text(json.dumps({**body, "inputs": {**body["inputs"], "evaluation": inputs}}))
    return made


def _grey_16(folder: Path, random: np.random.Generator) -> None:
    for number in range(3):
        deep = random.integers(0, 65_536, (90, 60), dtype=np.uint16)
        Image.fromarray(deep).save(folder / f"deep-{folder.name}-{number}.png")
        Image.fromarray((deep >> 8).astype(np.uint8)).save(folder / f"plain-{folder.name}-{number}.jpg")


def test_images_are_resized_and_read_as_deep_as_the_run_had_them(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    for split in ("train", "val"):
        for name in ("a", "b"):
            folder = tmp_path / "raw" / split / name
            folder.mkdir(parents=True)
            _grey_16(folder, random)
    listing = read_source("folder", tmp_path / "raw", SourceOptions(modality="ct"))
    manifest = write_shards(listing, tmp_path / "set", WriteOptions(resize=40), QUIET)
    assert manifest.deep > 0
    run = _changed_inputs(tmp_path / "run", tmp_path / "set", manifest, channels="grey", bits=16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mstl.evaluation.plots.draw", lambda *_: {})
        evaluate_run(run, split="val", resamples=100)
    known = evaluation_table(run, "val")
    expected = {Path(r.origin).stem: known[r.sample_id] for r in iter_records(tmp_path / "set", "val")}
    assert positive(predict_files(run, [tmp_path / "raw/val"])) == pytest.approx(expected, abs=1e-6)
    # An 8-bit image by itself is read as among deep ones: its neighbours do not decide.
    alone = positive(predict_files(run, [tmp_path / "raw/val/a/plain-a-0.jpg"]))
    assert alone["plain-a-0"] == pytest.approx(expected["plain-a-0"], abs=1e-6)


def test_broken_and_missing_images_are_named_and_the_others_go_on(run: Path, shards: Path, tmp_path: Path) -> None:
    good = raw(shards) / "test-0-0.png"
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:400])
    (tmp_path / "text.png").write_text("no image")
    words = ["predict", run, good, tmp_path / "cut.png", tmp_path / "gone.png", tmp_path / "text.png"]
    pattern = str(raw(shards) / "test-1-[01].png")
    result = CliRunner().invoke(group, [*map(str, words), pattern, "--out", str(tmp_path / "out.json")])
    assert isinstance(result.exception, MstlError)  # exit code 1 by the boundary
    assert "3 of 6 images" in str(result.exception)
    assert "gone.png: cannot be used: there is no such file" in result.output
    body = json.loads((tmp_path / "out.json").read_text())
    assert [Path(one["image"]).name for one in body["images"]] == ["test-0-0.png", "test-1-0.png", "test-1-1.png"]
    assert {Path(one["image"]).name for one in body["refused"]} == {"cut.png", "gone.png", "text.png"}
    assert body["run"]["weights_sha256"] == sha256_file(run / "weights.safetensors")
    assert body["images"][0]["sha256"] == sha256_file(good)
    assert body["operating"]["threshold"] == 0.5 and body["operating"]["chosen"] is None
    assert "No operating point was chosen, so 0.5 is taken" in result.output
    assert "not a medical device" in result.output
    for one in body["images"]:
        assert one["says"] == ("COVID" if one["probability"] >= 0.5 else "NonCOVID") and one["calibrated"] is None


def test_when_nothing_can_be_read_every_reason_is_told(run: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.png").write_text("no image")
    result = CliRunner().invoke(group, ["predict", str(run), str(tmp_path / "empty"), str(tmp_path / "text.png")])
    assert isinstance(result.exception, MstlError) and "2 of 2 images" in str(result.exception)
    assert "empty: cannot be used: no images are there" in result.output


def test_more_classes_are_told_by_name(tmp_path: Path) -> None:
    manifest = make_shards(tmp_path / "shards", classes=("a", "b", "c"), per_class=1)
    run = make_run(tmp_path / "run", tmp_path / "shards", manifest, stage="stl_m")
    done = predict_files(run, [tmp_path / "shards-raw"], heatmaps=tmp_path / "heat")
    assert len(done.answers) == 9 == len(list((tmp_path / "heat").glob("*-heatmap.png")))
    for answer in done.answers:
        assert answer.says == int(np.argmax(answer.probabilities)) and answer.calibrated is None
    body = done.body()
    assert body["positive"] is None and body["images"][0]["probability"] is None
    assert set(body["images"][0]["probabilities"]) == {"a", "b", "c"}


def test_heatmaps_of_equal_names_do_not_hide_each_other_nor_overwrite_an_image(
    run: Path, shards: Path, tmp_path: Path
) -> None:
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "same.png").write_bytes((raw(shards) / "test-0-0.png").read_bytes())
        (tmp_path / place / "same_mask.png").write_bytes((raw(shards) / "test-0-0.png").read_bytes())
        (tmp_path / place / ".hidden.png").write_bytes(b"")
    done = predict_files(run, [tmp_path], heatmaps=tmp_path / "heat")
    names = ["same-2-heatmap.png", "same-heatmap.png"]
    assert sorted(path.name for path in (tmp_path / "heat").iterdir()) == names
    assert [answer.heatmap and answer.heatmap.name for answer in done.answers] == names[::-1]
    with Image.open(tmp_path / "heat" / names[0]) as picture:
        assert picture.width > 2 * SIDE
    kept = (tmp_path / "heat" / names[1]).read_bytes()
    source = tmp_path / "heat" / "same.png"
    source.write_bytes((raw(shards) / "test-0-0.png").read_bytes())
    with pytest.raises(MstlError, match="it is one of the images"):
        predict_files(run, [source, tmp_path / "heat" / "same-heatmap.png"], heatmaps=tmp_path / "heat")
    assert (tmp_path / "heat" / names[1]).read_bytes() == kept


def _picture(mode: str, size: tuple[int, int], paint: Callable[[np.random.Generator], Any]) -> Image.Image:
    values = np.broadcast_to(paint(np.random.default_rng(0)), (size[1], size[0], len(mode))).astype(np.uint8)
    return Image.fromarray(values if mode == "RGB" else np.ascontiguousarray(values[:, :, 0]))


@pytest.mark.parametrize(
    ("picture", "said"),
    [
        (_picture("L", (200, 200), lambda random: random.integers(0, 255, (200, 200, 1))), ""),
        (_picture("RGB", (200, 200), lambda random: random.integers(0, 255, (200, 200, 1))), ""),
        (_picture("RGB", (200, 200), lambda _: [200, 90, 40]), "in colour"),
        (_picture("L", (27, 200), lambda random: random.integers(0, 255, (200, 27, 1))), "enlarged more than twice"),
        (_picture("L", (200, 200), lambda _: 7), "it shows nothing"),
    ],
    ids=["grey", "grey as RGB", "colour", "small", "flat"],
)
def test_plain_rules_tell_of_images_unlike_those_trained_on(
    shards: Path, tmp_path: Path, picture: Image.Image, said: str
) -> None:
    run = _changed_inputs(tmp_path / "run", shards, load_manifest(shards), channels="grey")
    picture.save(tmp_path / "image.png")
    (answer,) = predict_files(run, [tmp_path / "image.png"]).answers
    if said:
        assert any(said in caution for caution in answer.image.cautions)
    else:
        assert answer.image.cautions == ()


def _slices(folder: Path, *, seed: int, frames: int = 1, modality: str = "CT") -> Path:
    """A CT file of 60 x 60 values in Hounsfield units."""
    values = np.random.default_rng(seed).integers(-1300, 500, (frames, 60, 60)).astype(np.int16)
    file = Dataset()
    file.file_meta = FileMetaDataset()
    file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file.file_meta.MediaStorageSOPClassUID = file.SOPClassUID = CTImageStorage
    file.file_meta.MediaStorageSOPInstanceUID = file.SOPInstanceUID = f"1.2.{seed}"
    fields = {
        "Modality": modality, "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"], "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2", "Rows": 60, "Columns": 60, "BitsAllocated": 16, "BitsStored": 16,
        "HighBit": 15, "PixelRepresentation": 1, "RescaleSlope": 1, "RescaleIntercept": 0,
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "PixelData": values.tobytes(),
    }  # fmt: skip
    if frames > 1:
        fields["NumberOfFrames"] = frames
    for name, value in fields.items():
        setattr(file, name, value)
    folder.mkdir(parents=True, exist_ok=True)
    file.save_as(folder / f"slice{seed}", enforce_file_format=True)  # without an ending, as scanners write them
    return folder / f"slice{seed}"


def test_dicom_is_shown_through_the_window_of_the_set(tmp_path: Path) -> None:
    for place, split in enumerate(("train", "val")):
        for label, name in enumerate(("NonCOVID", "COVID")):
            for number in range(2):
                _slices(tmp_path / "raw" / split / name, seed=8 * place + 4 * label + number)
    listing = read_source("dicom", tmp_path / "raw", SourceOptions(window="-300,900"))
    manifest = write_shards(listing, tmp_path / "set", WriteOptions(), QUIET)
    run = _changed_inputs(tmp_path / "run", tmp_path / "set", manifest, channels="grey")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mstl.evaluation.plots.draw", lambda *_: {})
        evaluate_run(run, split="val", resamples=100)
    known = evaluation_table(run, "val")
    expected = {Path(r.origin).stem: known[r.sample_id] for r in iter_records(tmp_path / "set", "val")}
    done = predict_files(run, [tmp_path / "raw/val"])
    assert positive(done) == pytest.approx(expected, abs=1e-6)
    assert {answer.image.named.window for answer in done.answers} == {
        "window -300,900 (as the run's shard set was made)"
    }
    assert any("4 images shown through window -300,900" in note for note in done.notes)
    asked = predict_files(run, [tmp_path / "raw/val"], window="lung")
    assert asked.answers[0].image.named.window == "window -600,1500 (as asked)"
    assert max(abs(positive(asked)[name] - expected[name]) for name in expected) > 1e-5

    several = _slices(tmp_path / "more", seed=99, frames=2)
    other = _slices(tmp_path / "more", seed=98, modality="MR")
    found = predict_files(run, [several, other], heatmaps=tmp_path / "heat")
    assert [answer.image.named.name for answer in found.answers] == [f"{several}, frame 1", f"{several}, frame 2"]
    assert {file.name for file in (tmp_path / "heat").iterdir()} == {
        f"slice99-frame-{number:04d}-heatmap.png" for number in (1, 2)
    }
    assert found.bad[0][0] == str(other) and "modality MR" in found.bad[0][1]


def test_dicom_of_another_kind_or_an_unknown_window_is_said(run: Path, shards: Path, tmp_path: Path) -> None:
    file = _slices(tmp_path / "ct", seed=5)
    (answer,) = predict_files(run, [file]).answers
    assert answer.image.named.window is not None
    assert "-600,1500 (by default: how the run's images were windowed is not known)" in answer.image.named.window
    listing = read_source("folder", _class_folders(tmp_path, raw(shards)), SourceOptions(modality="cxr"))
    manifest = write_shards(listing, tmp_path / "set", WriteOptions(), QUIET)
    radiographs = make_run(tmp_path / "run", tmp_path / "set", manifest)
    (answer,) = predict_files(radiographs, [file]).answers
    assert answer.image.cautions == ("it is a CT slice, and the network was trained on radiographs",)


def _class_folders(tmp_path: Path, images: Path) -> Path:
    for name in ("NonCOVID", "COVID"):
        (tmp_path / "raw" / name).mkdir(parents=True)
        for number in range(3):
            source = images / f"train-{int(name == 'COVID')}-{number}.png"
            (tmp_path / "raw" / name / source.name).write_bytes(source.read_bytes())
    return tmp_path / "raw"


def test_a_run_whose_shards_are_gone_is_used_and_says_so(shards: Path, tmp_path: Path) -> None:
    manifest = load_manifest(shards)
    moved = make_run(tmp_path / "run", tmp_path / "gone", manifest)
    here = make_run(tmp_path / "here", shards, manifest)
    files = sorted(raw(shards).glob("test-0-*.png"))
    done = predict_files(moved, files)
    assert any("own shard set is not at hand" in note for note in done.notes)
    assert positive(done) == pytest.approx(positive(predict_files(here, files)), abs=1e-6)


def test_an_unfinished_run_is_refused(shards: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", shards, load_manifest(shards), changes={"status": "interrupted"})
    (run / "weights.safetensors").unlink()
    with pytest.raises(MstlError, match=r"it has no weights \(status: interrupted\)"):
        predict_files(run, [raw(shards)])


def test_a_diverged_network_is_named(shards: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", shards, load_manifest(shards))
    weights = load_weights(run / "weights.safetensors")
    save_weights(run / "weights.safetensors", {**weights, "fc.bias": torch.full((2,), torch.nan)})
    with pytest.raises(MstlError, match="what is no number"):
        predict_files(run, [raw(shards)])


def test_what_evaluation_draws_at_random_is_left_out_and_said(shards: Path, tmp_path: Path) -> None:
    plain = _changed_inputs(tmp_path / "plain", shards, load_manifest(shards))
    printed = _changed_inputs(
        tmp_path / "printed", shards, load_manifest(shards), flip=0.5, jitter=0.5, brightness=0.4, grayscale=0.5
    )
    files = sorted(raw(shards).glob("test-*.png"))
    done = predict_files(printed, files)
    assert positive(done) == pytest.approx(positive(predict_files(plain, files)), abs=1e-6)
    assert any("nothing is drawn at random" in note for note in done.notes)
