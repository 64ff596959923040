"""The embedded sample: real layouts, equal bytes for equal seeds, honest patients, true boxes, learnable classes."""

from __future__ import annotations

import csv
import io
import json
import shutil
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from shards.errors import MstlError
from shards.files import sha256_file
from shards.sample import SampleSize, ct, cxr, natural, write_samples
from shards.sample.lung import infiltrate, mottle
from shards.sample.paint import edge, ellipse

SMALL = SampleSize(
    imagenet_classes=3, imagenet_train=4, imagenet_val=2, covidx_train=8, covidx_test=4, ct_train=8, ct_val=2, ct_test=4
)


class Counting:
    """Progress that remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[list[Any]] = []

    def start(self, total: int, what: str) -> None:
        self.told.append([what, total, 0])

    def advance(self, n: int = 1) -> None:
        self.told[-1][2] += n


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sample")
    progress = Counting()
    write_samples(out, seed=3, size=SMALL, progress=progress)
    assert progress.told == [
        ["drawing imagenet", 18, 18],
        ["drawing covidx", 36, 36],
        ["drawing covid19-ct", 28, 28],
    ]
    return out


def digests(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): sha256_file(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def ct_lists(root: Path) -> dict[tuple[str, str], list[str]]:
    return {
        (name, split): (root / "Data-split" / name / f"{split}CT_{name}.txt").read_text().splitlines()
        for name in ct.CLASSES
        for split in ("train", "val", "test")
    }


def test_imagenet_is_a_tar_of_class_tars_and_val_folders(sample: Path) -> None:
    root = sample / "imagenet"
    wnids = [wnid for wnid, _ in natural.CLASSES[:3]]
    with tarfile.open(root / "ILSVRC2012_img_train.tar") as outer:
        assert outer.getnames() == [f"{wnid}.tar" for wnid in wnids]
        for wnid in wnids:
            with tarfile.open(fileobj=outer.extractfile(f"{wnid}.tar")) as inner:
                assert inner.getnames() == [f"{wnid}_{number}.JPEG" for number in (1, 2, 3, 4)]
                for member in inner:
                    data = inner.extractfile(member)
                    assert data is not None
                    picture = Image.open(data)
                    assert picture.format == "JPEG"
                    assert min(picture.size) >= 100 and max(picture.size) <= 260
    assert sorted(folder.name for folder in (root / "val").iterdir()) == wnids
    val = sorted(path.name for path in (root / "val").rglob("*.JPEG"))
    assert len(val) == len(set(val)) == 6


def test_covidx_lists_match_its_files_and_patients_stay_in_one_split(sample: Path) -> None:
    root, patients = sample / "covidx", {}
    for split, images in (("train", 8), ("test", 4)):
        rows = [line.split() for line in (root / f"{split}_COVIDx.txt").read_text().splitlines()]
        assert Counter(row[2] for row in rows) == dict.fromkeys(cxr.CLASSES, images)
        assert sorted(row[1] for row in rows) == sorted(path.name for path in (root / "data" / split).iterdir())
        patients[split] = Counter(row[0] for row in rows)
        assert len({(row[0], row[2]) for row in rows}) == len(patients[split]), "a patient has one diagnosis"
    assert not patients["train"].keys() & patients["test"].keys()
    assert sorted(patients["train"].values()) == [1] * 6 + [1] * 3 + [2] * 3 + [3] * 3


def test_covid19_ct_lists_zips_tables_and_boxes_agree(sample: Path) -> None:
    root = sample / "covid19-ct"
    lists, boxes = ct_lists(root), json.loads((root / "lung_boxes.json").read_text())
    assert {key: len(names) for key, names in lists.items()} == {
        (name, split): count for name in ct.CLASSES for split, count in (("train", 8), ("val", 2), ("test", 4))
    }
    every = [file for names in lists.values() for file in names]
    assert len(set(every)) == len(every) and set(boxes) == set(every)
    columns = {"COVID": ("File name", "Patient ID"), "NonCOVID": ("image name", "patient id")}
    for name, (file_column, patient_column) in columns.items():
        with zipfile.ZipFile(root / "Images-processed" / f"CT_{name}.zip") as archive:
            listed = {f"CT_{name}/{file}" for split in ("train", "val", "test") for file in lists[name, split]}
            assert set(archive.namelist()) == listed
            for member in listed:
                image = Image.open(io.BytesIO(archive.read(member)))
                image.load()
                x0, y0, x1, y1 = boxes[member.split("/")[1]]
                assert 0 <= x0 < x1 <= image.width and 0 <= y0 < y1 <= image.height
        with (root / "Info" / f"{name}-CT-MetaInfo.csv").open(newline="") as file:
            patient = {row[file_column]: row[patient_column] for row in csv.DictReader(file)}
        owners = [{patient[file] for file in lists[name, split]} for split in ("train", "val", "test")]
        assert [len(group) for group in owners] == [5, 2, 3]
        assert len(set.union(*owners)) == 10


def test_equal_seeds_give_equal_bytes_and_other_seeds_other_images(sample: Path, tmp_path: Path) -> None:
    write_samples(tmp_path / "again", seed=3, size=SMALL)
    assert digests(tmp_path / "again") == digests(sample)
    write_samples(tmp_path / "other", seed=4, size=SMALL)
    first, other = digests(sample), digests(tmp_path / "other")
    images = [name for name in first if name.endswith((".JPEG", ".tar", ".zip"))]
    assert images and all(first[name] != other[name] for name in images)


def test_a_larger_sample_holds_the_smaller_one(sample: Path, tmp_path: Path) -> None:
    larger = SampleSize(
        imagenet_classes=4,
        imagenet_train=5,
        imagenet_val=3,
        covidx_train=9,
        covidx_test=5,
        ct_train=9,
        ct_val=3,
        ct_test=5,
    )
    write_samples(tmp_path, seed=3, size=larger)
    for source, ending in (("imagenet", ".JPEG"), ("covidx", "g")):
        small = {name: digest for name, digest in digests(sample / source).items() if name.endswith(ending)}
        large = digests(tmp_path / source)
        assert len(small) > 5 and all(large[name] == digest for name, digest in small.items())
    for name in ct.CLASSES:
        archives = [
            zipfile.ZipFile(root / "covid19-ct" / "Images-processed" / f"CT_{name}.zip") for root in (sample, tmp_path)
        ]
        assert all(archives[0].read(member) == archives[1].read(member) for member in archives[0].namelist())
        for archive in archives:
            archive.close()


def test_a_finished_source_is_kept_and_a_missing_one_drawn(sample: Path, tmp_path: Path) -> None:
    shutil.copytree(sample, tmp_path, dirs_exist_ok=True)
    kept = tmp_path / "imagenet" / "ILSVRC2012_img_train.tar"
    inode = kept.stat().st_ino
    shutil.rmtree(tmp_path / "covidx")
    (tmp_path / ".covidx.building").mkdir()
    (tmp_path / ".covidx.building" / "half").write_text("left by a killed run")
    again = Counting()
    write_samples(tmp_path, seed=3, size=SMALL, progress=again)
    assert again.told == [["drawing covidx", 36, 36]]
    assert kept.stat().st_ino == inode
    assert digests(tmp_path / "covidx") == digests(sample / "covidx")
    assert not list(tmp_path.glob(".*"))


def test_folders_that_are_not_this_sample_are_refused_untouched(tmp_path: Path) -> None:
    mine = tmp_path / "covid19-ct"
    mine.mkdir()
    (mine / "precious").write_text("real data")
    with pytest.raises(MstlError, match="is not a sample of this program"):
        write_samples(tmp_path, size=SMALL)
    assert [path.name for path in tmp_path.rglob("*")] == ["covid19-ct", "precious"], (
        "nothing was drawn before refusing"
    )


def test_another_seed_or_size_is_refused(sample: Path) -> None:
    before = digests(sample)
    with pytest.raises(MstlError, match="another sample \\(seed 3"):
        write_samples(sample, seed=5, size=SMALL)
    with pytest.raises(MstlError, match="another sample"):
        write_samples(sample, seed=3)
    assert digests(sample) == before


@pytest.mark.parametrize(
    ("seed", "size", "words"),
    [
        (-1, SMALL, "it is negative"),
        (0, SampleSize(imagenet_classes=7), "7 sample classes"),
        (0, SampleSize(ct_val=0), "covid19-ct val 0"),
        (0, SampleSize(covidx_test=1501), "covidx test 1501"),
    ],
)
def test_impossible_samples_are_refused(tmp_path: Path, seed: int, size: SampleSize, words: str) -> None:
    with pytest.raises(MstlError, match=words):
        write_samples(tmp_path, seed=seed, size=size)
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_an_expected_failure(tmp_path: Path) -> None:
    (tmp_path / ".imagenet.building").write_text("in the way")
    with pytest.raises(MstlError, match=r"cannot be written .*Mend that or choose another folder"):
        write_samples(tmp_path, size=SMALL)


def test_slices_vary_in_mode_format_size_and_surround() -> None:
    slices = [ct.draw(0, index % 2, (0, index % 2, index // 2), 0) for index in range(60)]
    assert {(s.image.mode, s.form) for s in slices} >= {("L", "PNG"), ("RGB", "PNG"), ("RGBA", "PNG"), ("RGB", "JPEG")}
    widths = [s.image.width for s in slices]
    assert min(widths) < 150 and max(widths) > 330
    corners = [np.asarray(s.image.convert("L"), float)[0, s.image.width // 3] for s in slices]
    assert min(corners) < 5 and max(corners) > 250


def test_radiographs_vary_in_mode_format_and_size() -> None:
    drawn = [cxr.draw(0, index % 3, (0, index % 3, index), 0) for index in range(24)]
    assert {d.image.mode for d in drawn} == {"L", "RGB"} and {d.form for d in drawn} == {"PNG", "JPEG"}
    assert len({d.image.size for d in drawn}) > 15


def test_the_label_changes_the_lungs_and_nothing_else() -> None:
    """Nothing but the disease may tell the classes apart: no size, format, frame, letter or exposure."""
    for place in range(8):
        healthy, ill = (ct.draw(0, label, (0, 0, place), 1) for label in (0, 1))
        assert (healthy.form, healthy.quality, healthy.lung_box) == (ill.form, ill.quality, ill.lung_box)
        assert (healthy.image.mode, healthy.image.size) == (ill.image.mode, ill.image.size)
        changed = np.abs(
            np.asarray(healthy.image.convert("L"), int) - np.asarray(ill.image.convert("L"), int),
        )
        x0, y0, x1, y1 = healthy.lung_box
        inside = changed[y0:y1, x0:x1]
        assert (inside > 20).mean() > 0.02
        changed[max(0, y0 - 6) : y1 + 6, max(0, x0 - 6) : x1 + 6] = 0
        assert changed.max() == 0
        radiographs = [cxr.draw(0, label, (0, 0, place), 1) for label in range(3)]
        assert len({(r.form, r.quality, r.image.mode, r.image.size) for r in radiographs}) == 1
        assert len({r.image.tobytes() for r in radiographs}) == 3


def test_the_lung_box_holds_the_lungs_and_only_just() -> None:
    dark_inside, dark_around = [], []
    for patient in range(24):
        drawn = ct.draw(0, 0, (0, 0, patient), 1)
        grey = np.asarray(drawn.image.convert("L"), float)
        x0, y0, x1, y1 = drawn.lung_box
        inside = grey[y0:y1, x0:x1]
        dark = grey < (np.percentile(inside, 15) + np.percentile(inside, 90)) / 2
        dark_inside.append(dark[y0:y1, x0:x1].mean())
        margin_x, margin_y = max(2, round(0.025 * (x1 - x0))), max(2, round(0.025 * (y1 - y0)))
        dark[y0:y1, x0:x1] = False
        wider = np.s_[max(0, y0 - margin_y) : y1 + margin_y, max(0, x0 - margin_x) : x1 + margin_x]
        dark_around.append(dark[wider].mean())
    assert min(dark_inside) > 0.3
    assert max(dark_around) < 0.05


def test_an_infiltrate_stays_near_its_place() -> None:
    y, x = np.mgrid[-1:1:120j, -1:1:120j].astype(np.float32)
    grain = mottle(np.random.default_rng(0), 120, 120, 1.0)
    opacity = infiltrate(x, y, grain, (0.4, -0.3), (0.3, 0.2), 0.0)
    near = ellipse(x, y, (0.4, -0.3), (0.2, 0.12)) > 0.5
    far = ellipse(x, y, (0.4, -0.3), (0.75, 0.6)) < 0.5
    assert opacity.min() >= 0 and opacity.max() <= 1
    assert opacity[near].mean() > 0.4 and opacity[far].mean() < 0.01


def test_edge_is_a_step_of_the_given_width() -> None:
    np.testing.assert_allclose(edge(np.array([-1, -0.1, 0, 0.1, 1], np.float32), 0.2), [0, 0, 0.5, 1, 1], atol=1e-6)


def mean_colour(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"), float).mean((0, 1)) / 255


def shape_and_texture(image: Image.Image) -> np.ndarray:
    """A thumbnail, how much its halves differ, and where it has edges."""
    grey = np.asarray(image.convert("L").resize((96, 96), Image.Resampling.BOX), np.float32) / 255

    def thumbnail(values: np.ndarray, side: int) -> np.ndarray:
        return np.asarray(Image.fromarray(np.ascontiguousarray(values)).resize((side, side), Image.Resampling.BOX))

    small = thumbnail(grey, 16)
    slopes = [thumbnail(np.abs(np.diff(grey, axis=axis)), 8) for axis in (0, 1)]
    return np.concatenate([part.ravel() for part in (small, np.abs(small - small[:, ::-1])[:, :8], *slopes)])


def held_out_accuracy(features: np.ndarray, labels: np.ndarray, held_out: np.ndarray) -> float:
    """Ridge regression onto one-hot labels, in its kernel form; accuracy on the held-out images."""
    seen = ~held_out
    scaled = (features - features[seen].mean(0)) / (features[seen].std(0) + 1e-4)
    targets = np.eye(labels.max() + 1)[labels[seen]]
    kernel = scaled[seen] @ scaled[seen].T
    weights = np.linalg.solve(kernel + 0.3 * features.shape[1] * np.eye(len(kernel)), targets - targets.mean(0))
    guess = (scaled[held_out] @ scaled[seen].T @ weights + targets.mean(0)).argmax(1)
    return float((guess == labels[held_out]).mean())


@pytest.mark.parametrize(
    ("draw", "classes", "images", "colour_below", "texture_above"),
    [
        (lambda label, split, i: natural.draw(0, label, (split, i)), 6, (35, 12), 0.60, 0.62),
        (lambda label, split, i: cxr.draw(0, label, (split, label, i), 0).image, 3, (40, 15), 0.60, 0.62),
        (lambda label, split, i: ct.draw(0, label, (split, label, i), 0).image, 2, (45, 20), 0.70, 0.78),
    ],
    ids=["natural", "cxr", "ct"],
)
def test_classes_are_learnable_but_not_by_colour(
    draw: Callable[[int, int, int], Image.Image],
    classes: int,
    images: tuple[int, int],
    colour_below: float,
    texture_above: float,
) -> None:
    drawn, labels, held_out = [], [], []
    for split, count in enumerate(images):
        for label in range(classes):
            drawn += [draw(label, split, index) for index in range(count)]
            labels += [label] * count
            held_out += [split == 1] * count
    truth, test = np.array(labels), np.array(held_out)
    by_colour = held_out_accuracy(np.array([mean_colour(image) for image in drawn]), truth, test)
    by_texture = held_out_accuracy(np.array([shape_and_texture(image) for image in drawn]), truth, test)
    assert by_colour < colour_below, (by_colour, by_texture)
    assert by_texture > max(texture_above, by_colour + 0.1), (by_colour, by_texture)


@pytest.mark.parametrize("name", ["notes.txt", "notes.txt/deeper"])
def test_a_file_in_the_way_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "notes.txt").write_text("years of work")
    with pytest.raises(MstlError, match=r"notes\.txt is a file") as error:
        write_samples(tmp_path / name, size=SMALL)
    assert "Choose a folder" in error.value.remedy
    assert (tmp_path / "notes.txt").read_text() == "years of work"
