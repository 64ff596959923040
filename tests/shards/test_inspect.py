"""What `inspect_set` counts, against counts by hand, and what the sheet of a set shows."""

import io
import json

import numpy as np
import pytest
from PIL import Image
from raw_data import encoded, listing_of, toy_images

from shards import inspect
from shards.duplicates import DuplicateFinder
from shards.errors import MstlError
from shards.inspect import Spread, inspect_set
from shards.inspect_sheet import choose, write_sheet
from shards.read import read_records
from shards.schema import load_manifest
from shards.sheet import GAP_PX, LINE_PX
from shards.verdicts import Part, Verdict, save_verdicts
from shards.writer import WriteOptions, write_shards


def sixteen_bit(value):
    out = io.BytesIO()
    Image.fromarray(np.linspace(value, value + 5000, 90).astype(np.uint16).reshape(9, 10)).save(out, "TIFF")
    return out.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes; equal images within train, across splits and across classes; refused and unusual ones."""
    images = toy_images()
    images["train/0/again@p90.png"] = images["train/0/train_2@p1.png"]
    images["train/1/other_class.png"] = images["train/0/train_4@p2.png"]
    images["val/1/crossing@p3.png"] = images["train/1/train_7@p3.png"]
    images["val/0/deep@q.tif"] = sixteen_bit(100)
    images["train/0/bad_a@p1.jpg"] = encoded(5, "JPEG", (64, 64))[:900]
    images["train/1/bad_b@p1.jpg"] = encoded(6, "JPEG", (64, 64))[:950]
    images["train/1/bad_c@p1.png"] = b""
    root = tmp_path_factory.mktemp("inspect")
    listing = listing_of(root / "raw", images, titles={"yes": "Yes, indeed"})
    write_shards(listing, root / "set", WriteOptions(samples_per_shard=10, max_bad=0.1))
    return root / "set"


def test_splits(folder):
    facts = inspect_set(folder)
    assert list(facts.splits) == ["train", "val", "test"]
    train, val = facts.splits["train"], facts.splits["val"]
    assert (train.samples, val.samples, facts.splits["test"].samples) == (25, 9, 5)
    assert (train.class_counts, val.class_counts) == ((13, 12), (5, 4))
    shards = load_manifest(folder).shards("train")
    sizes = sorted((folder / shard.path).stat().st_size for shard in shards)
    assert train.shards == 3 and train.bytes == sum(sizes)
    assert train.shard_bytes == Spread(sizes[0], sizes[1], sizes[2])
    held = sorted(shard.samples for shard in shards)
    assert train.shard_samples == Spread(held[0], held[1], held[2]) and sum(held) == 25
    widths = sorted(record.width for record in read_records(folder, "val"))
    assert val.width == Spread(widths[0], widths[4], widths[-1]) and val.height == Spread(9, 9, 9)
    assert val.modes == {"RGB": 8, "I;16": 1} and val.formats == {"PNG": 5, "JPEG": 3, "TIFF": 1}
    assert (val.as_they_came, train.as_they_came) == (8, 25)


def test_patients(folder):
    facts = inspect_set(folder)
    known = {split: {r.patient for r in read_records(folder, split) if r.patient is not None} for split in facts.splits}
    assert {split: f.patients for split, f in facts.splits.items()} == {s: len(ids) for s, ids in known.items()}
    assert [f.patient_unknown for f in facts.splits.values()] == [1, 0, 0]
    straddling = [p for p in set().union(*known.values()) if sum(p in ids for ids in known.values()) > 1]
    assert facts.straddling == len(straddling) > 2


def test_equal_images_are_counted_and_named(folder):
    facts = inspect_set(folder)
    assert facts.duplicates == {"train": 2, "val": 0, "test": 0}
    assert (facts.duplicates_across, facts.contradicting) == (1, 1)
    assert sum(facts.duplicates.values()) + facts.duplicates_across == load_manifest(folder).duplicates
    assert [(equal.images, set(equal.keys)) for equal in facts.equal_images] == [
        (2, {"train/train_7", "val/crossing"}), (2, {"train/train_4", "train/other_class"}),
        (2, {"train/train_2", "train/again"}),
    ]  # fmt: skip


def test_of_many_equal_images_the_telling_ones_are_named(tmp_path):
    images = {f"train/0/{i}.png": encoded(1) for i in range(30)} | {
        "train/1/z.png": encoded(1),
        "val/0/y.png": encoded(1),
    }
    write_shards(listing_of(tmp_path, images), tmp_path / "set", WriteOptions(samples_per_shard=7))
    (equal,) = inspect_set(tmp_path / "set").equal_images
    assert equal.images == 32 and len(equal.keys) == 5 and {"train/z", "val/y"} < set(equal.keys[:3])


def test_every_place_has_its_key(folder):
    shards = load_manifest(folder).splits
    keys = [f"{split}/{record.key}" for split in shards for record in read_records(folder, split)]
    assert inspect._keys(folder, shards, range(len(keys))) == tuple(keys)


def test_progress_ends_at_its_total(folder):
    class Steps:
        total = done = 0

        def start(self, total, what):
            self.total += total

        def advance(self, n=1, **of_a_build):
            self.done += n

    steps = Steps()
    inspect_set(folder, progress=steps)
    assert steps.done == steps.total == 39
    choose(folder, load_manifest(folder), None, count=3, seed=0, progress=steps)
    assert steps.done == steps.total == 78


def test_refused_ones_are_counted_by_reason(folder):
    facts = inspect_set(folder)
    assert facts.refused == 3 and sum(count for _, count in facts.reasons) == 3
    assert facts.reasons[0][1] == 2 and "truncated" in facts.reasons[0][0]
    assert facts.reasons[1] == ("the file is empty", 1)


def test_how_it_was_built(folder):
    facts, manifest = inspect_set(folder), load_manifest(folder)
    assert (facts.source, facts.modality, facts.classes, facts.seed) == ("toy", "ct", ("no", "yes"), 0)
    assert facts.titles == {"yes": "Yes, indeed"} and facts.digest == manifest.digest()
    assert facts.options["samples_per_shard"] == 10 and facts.tool_version == manifest.tool_version


def test_one_split_alone(folder):
    facts = inspect_set(folder, "val")
    assert list(facts.splits) == ["val"] and facts.splits["val"] == inspect_set(folder).splits["val"]
    assert (facts.straddling, facts.duplicates, facts.duplicates_across) == (0, {"val": 0}, 0)
    with pytest.raises(MstlError, match="'tests'"):
        inspect_set(folder, "tests")


def test_verdicts_on_leakage_are_shown(folder):
    assert inspect_set(folder).leakage == {}
    digest = load_manifest(folder).digest()
    a, b = (Part(name="set", source="toy", digest=digest, split=s, images=n) for s, n in (("train", 25), ("val", 9)))
    save_verdicts(folder, digest, [Verdict(check="content", a=a, b=b, outcome="found", affected=1, unknown=0)])
    assert inspect_set(folder).leakage == {"set:train~val:content": "found: 1 of 9 val images"}
    (folder / "leakage.json").unlink()


def test_what_cannot_be_read_is_named(folder, tmp_path):
    with pytest.raises(MstlError, match=r"no dataset\.json"):
        inspect_set(tmp_path)
    (folder / "quarantine.jsonl").rename(tmp_path / "kept")
    assert inspect_set(folder, "test").reasons == ()
    (folder / "quarantine.jsonl").write_text("{}\n")
    with pytest.raises(MstlError, match=r"quarantine\.jsonl: it cannot be read"):
        inspect_set(folder, "test")
    (tmp_path / "kept").rename(folder / "quarantine.jsonl")


def test_duplicates_against_counting():
    rng = np.random.default_rng(0)
    rows = [
        (f"{rng.integers(60):064x}"[::-1], ("train", "val")[rng.integers(2)], int(rng.integers(2))) for _ in range(150)
    ]
    finder = DuplicateFinder()
    for row in rows:
        finder.add(*row)
    found = finder.result(1000)
    by_bytes = {}
    for place, row in enumerate(rows):
        by_bytes.setdefault(row[0], []).append(place)
    splits = {digest: {rows[place][1] for place in places} for digest, places in by_bytes.items()}
    for split in ("train", "val"):
        of_split = [row[0] for row in rows if row[1] == split]
        assert found.within[split] == len(of_split) - len(set(of_split)) > 0
    assert found.across == sum(len(s) == 2 for s in splits.values()) > 0
    assert found.contradicting == sum(len({rows[p][2] for p in places}) == 2 for places in by_bytes.values()) > 0
    equal = sorted(tuple(places) for places in by_bytes.values() if len(places) > 1)
    assert sorted(tuple(sorted(group)) for group in found.groups) == equal
    ranks = [tuple(len({rows[place][at] for place in group}) for at in (1, 2)) for group in found.groups]
    assert ranks == sorted(ranks, reverse=True)
    for group in found.groups:
        kinds = [rows[place][1:] for place in group]
        assert len(set(kinds)) == len(set(kinds[: len(set(kinds))]))
    assert finder.result(2).groups == found.groups[:2]
    assert DuplicateFinder().result(5).groups == ()


def test_samples_of_a_sheet_are_balanced_and_follow_the_seed(folder):
    manifest = load_manifest(folder)

    def chosen(split, count, seed=0):
        return choose(folder, manifest, split, count=count, seed=seed)

    records = chosen("val", 8)
    assert sorted(r.label for r in records) == [0] * 4 + [1] * 4
    assert sorted(r.label for r in chosen("val", 9)) == [0] * 5 + [1] * 4
    assert {(r.split, r.key) for r in chosen(None, 1000)} == {
        (split, r.key) for split in manifest.splits for r in read_records(folder, split)
    }
    assert len(chosen("train", 1)) == 1
    some = chosen(None, 6)
    assert some == chosen(None, 6) == sorted(some, key=lambda r: (r.label, r.key))
    assert len({tuple(r.key for r in chosen(None, 6, seed)) for seed in range(8)}) == 8


def test_the_choice_does_not_favour_the_beginning(folder):
    manifest = load_manifest(folder)
    ids = [r.sample_id for seed in range(60) for r in choose(folder, manifest, "train", count=4, seed=seed)]
    assert len(set(ids)) == 25 and 9 < np.mean(ids) < 18


def test_the_sheet_shows_the_stored_images(folder, tmp_path):
    path = tmp_path / "sheet.png"
    assert write_sheet(folder, path, "val", count=9) == 9
    sheet = np.asarray(Image.open(path))
    row = 160 + 3 * LINE_PX + GAP_PX
    assert sheet.shape == (GAP_PX + 2 * row, GAP_PX + 8 * (160 + GAP_PX), 3)
    records = choose(folder, load_manifest(folder), "val", count=9, seed=0)
    place = next(at for at, record in enumerate(records) if record.key == "deep")
    left, top = GAP_PX + place % 8 * (160 + GAP_PX), GAP_PX + place // 8 * row
    cell = sheet[top : top + 160, left : left + 160]
    assert cell[10, 2].max() < 10 and cell[-11, -3].min() > 245  # from lowest to highest value
    first = path.read_bytes()
    write_sheet(folder, path, "val", count=9)
    assert path.read_bytes() == first


def test_the_sheet_turns_images_as_exif_says(tmp_path):
    pixels = np.zeros((40, 40, 3), np.uint8)
    pixels[:, :20] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise: what was left is on top
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", exif=exif)
    write_shards(listing_of(tmp_path, {"train/0/a.jpg": out.getvalue()}), tmp_path / "set", WriteOptions())
    assert write_sheet(tmp_path / "set", tmp_path / "sheet.png") == 1
    cell = np.asarray(Image.open(tmp_path / "sheet.png"))[GAP_PX : GAP_PX + 160, GAP_PX : GAP_PX + 160]
    assert cell[:70].min() > 200 and cell[90:].max() < 50


@pytest.mark.parametrize(("name", "why"), [("a.jpg", "a sheet is a PNG"), ("gone/a.png", "there is no folder")])
def test_a_sheet_that_cannot_be_written_is_refused_beforehand(folder, tmp_path, name, why):
    with pytest.raises(MstlError, match=why):
        write_sheet(folder, tmp_path / name)
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(MstlError, match="it is a folder"):
        write_sheet(folder, tmp_path / "folder.png")


def test_json_has_all_of_it(folder):
    from dataclasses import asdict

    body = json.loads(json.dumps(asdict(inspect_set(folder))))
    assert body["splits"]["val"]["width"].keys() == {"least", "median", "most"}
