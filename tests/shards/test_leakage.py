"""The gate's checks on small sets: what is shared is found, what cannot be known is unknown, verdicts stay bound."""

import csv
import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from pictures import copies, picture, saved
from PIL import Image
from raw_data import listing_of, put

from mstl.cli.leakage import command
from shards.cache import CacheOptions, local_set
from shards.errors import MstlError
from shards.leakage import Finding, compare, forbidden_pairs, open_sets
from shards.remote import upload
from shards.remote_store import Store
from shards.schema import load_manifest
from shards.sources import read_source
from shards.verdicts import Verdict, read_verdicts, save_verdicts
from shards.writer import WriteOptions, write_shards

CLEAN = {
    "train/0/a@p1.png": saved(picture(1)),
    "train/1/b@p2.png": saved(picture(2)),
    "val/0/c@p3.png": saved(picture(3)),
    "val/1/d@p4.png": saved(picture(4)),
    "test/0/e@p5.png": saved(picture(5)),
}


def make_set(folder: Path, images: dict[str, bytes], source: str = "toy", **options: int) -> Path:
    """A shard set of named images (see listing_of)."""
    write_shards(
        listing_of(folder.with_name(folder.name + "-raw"), images, source=source), folder, WriteOptions(**options)
    )
    return folder


def findings(*folders: Path, **options: bool) -> dict[str, Finding]:
    return {finding.verdict.name: finding for finding in compare(open_sets(folders), **options)}


def outcomes(*folders: Path, **options: bool) -> dict[str, str]:
    return {name: finding.verdict.outcome for name, finding in findings(*folders, **options).items()}


def keys(finding: Finding) -> list[tuple[str, str]]:
    return [(pair.a.key, pair.b.key) for pair in finding.pairs]


def test_a_clean_set(tmp_path: Path) -> None:
    assert outcomes(make_set(tmp_path / "one", CLEAN)) == {
        f"one:{splits}:{check}": "none"
        for splits in ("train~val", "train~test", "val~test")
        for check in ("patient", "content", "likeness")
    }


def test_each_check_finds_its_own(tmp_path: Path) -> None:
    resaved = dict(copies(picture(2)))["all together"]
    one = make_set(
        tmp_path / "one",
        CLEAN
        | {
            "val/0/patient@p1.png": saved(picture(10)),
            "val/0/content@p11.png": CLEAN["train/0/a@p1.png"],
            "test/1/likeness@p12.jpg": resaved,
        },
    )
    found = findings(one)
    named = {name: keys(finding) for name, finding in found.items() if finding.pairs}
    assert named == {
        "one:train~val:patient": [("a", "patient")],
        "one:train~val:content": [("a", "content")],
        "one:train~val:likeness": [("a", "content")],  # the same file is the same picture too
        "one:train~test:likeness": [("b", "likeness")],
    }
    assert found["one:train~val:patient"].verdict.text() == "found: 1 of 4 val images"
    (pair,) = found["one:train~test:likeness"].pairs
    assert pair.bits is not None and 0 < pair.bits <= 40
    assert pair.correlation is not None and 0.9 <= pair.correlation < 1
    (pair,) = found["one:train~val:likeness"].pairs
    assert (pair.bits, pair.correlation) == (0, pytest.approx(1))


def test_every_affected_image_is_listed_once(tmp_path: Path) -> None:
    same = {f"train/0/t{i}@p{i}.png": saved(picture(7)) for i in range(3)}
    same |= {f"val/0/v{i}@p0.png": saved(picture(7)) for i in range(4)}
    found = findings(make_set(tmp_path / "one", same))
    for check in ("patient", "content", "likeness"):
        finding = found[f"one:train~val:{check}"]
        assert sorted(b for _, b in keys(finding)) == ["v0", "v1", "v2", "v3"], check
        assert finding.verdict.affected == 4


def test_missing_patients_are_unknown_and_never_none(tmp_path: Path) -> None:
    some = {name: data for name, data in CLEAN.items() if "b@" not in name and "test" not in name}
    some["train/1/b.png"] = CLEAN["train/1/b@p2.png"]
    verdict = findings(make_set(tmp_path / "one", some))["one:train~val:patient"].verdict
    assert (verdict.outcome, verdict.text()) == ("unknown", "unknown for 1 of 4 images (no patient id)")

    some["val/0/x@p1.png"] = saved(picture(20))
    verdict = findings(make_set(tmp_path / "two", some))["two:train~val:patient"].verdict
    assert verdict.outcome == "found"
    assert verdict.text() == "found: 1 of 3 val images; unknown for 1 of 5 images (no patient id)"

    none = {name.partition("@")[0] + ".png": data for name, data in CLEAN.items()}
    verdict = findings(make_set(tmp_path / "three", none))["three:train~val:patient"].verdict
    assert (verdict.outcome, verdict.text()) == ("unknown", "unknown (no patient id)")


def test_the_nearest_of_several_copies_is_named_wherever_blank_images_stand(tmp_path: Path) -> None:
    images = {
        "train/1/changed@c.jpg": dict(copies(picture(3)))["all together"],
        "train/1/exact@e.png": saved(picture(3).convert("RGB")),
    }
    images |= {f"train/0/blank{level}@b.png": saved(Image.new("L", (40, 40), level)) for level in range(0, 90, 3)}
    images |= {f"val/1/blank{level}@v.png": saved(Image.new("L", (40, 40), level)) for level in range(100, 190, 10)}
    images["val/0/v@v.png"] = saved(picture(3))
    (pair,) = findings(make_set(tmp_path / "one", images))["one:train~val:likeness"].pairs
    assert (pair.a.key, pair.b.key, pair.bits) == ("exact", "v", 0)


def test_blank_images_are_unknown_to_likeness(tmp_path: Path) -> None:
    blank = saved(Image.new("L", (60, 50), 7)), saved(Image.new("L", (60, 50), 9))
    one = make_set(tmp_path / "one", CLEAN | {"train/0/x@p8.png": blank[0], "val/0/y@p9.png": blank[1]})
    found = findings(one)
    assert found["one:train~val:likeness"].verdict.text() == "unknown for 2 of 6 images (blank or not decodable)"
    assert found["one:train~test:likeness"].verdict.unknown == 1
    assert found["one:train~val:content"].verdict.outcome == "none"


def test_across_sets_train_is_held_against_val_and_test_both_ways(tmp_path: Path) -> None:
    first = make_set(tmp_path / "first", CLEAN)
    second = make_set(
        tmp_path / "second",
        {
            "train/0/f@q1.png": CLEAN["test/0/e@p5.png"],
            "train/1/g@q2.png": CLEAN["train/1/b@p2.png"],  # two train splits may share it
            "val/0/h@q3.png": CLEAN["train/0/a@p1.png"],
        },
        source="other",
    )
    sets = open_sets([first, second])
    across = [(a[0].name, a[1], b[0].name, b[1]) for a, b in forbidden_pairs(sets) if a[0] is not b[0]]
    assert across == [
        ("first", "train", "second", "val"), ("second", "train", "first", "val"), ("second", "train", "first", "test"),
    ]  # fmt: skip
    found = findings(first, second)
    assert {name: keys(f) for name, f in found.items() if f.pairs} == {
        "first:train~second:val:content": [("a", "h")],
        "first:train~second:val:likeness": [("a", "h")],
        "second:train~first:test:content": [("f", "e")],
        "second:train~first:test:likeness": [("f", "e")],
    }


OTHERS = {"train/0/f@p3.png": saved(picture(30)), "train/1/g@q.png": saved(picture(31))}


@pytest.mark.parametrize(
    ("sources", "says"),
    [
        (("covidx", "covid19-ct"), "unknown (ids of different sources)"),
        (("covidx", "covidx"), "found: 1 of 2 val images"),
        (("covid19-ct", "covid19-ct"), "found: 1 of 2 val images"),
        (("folder", "folder"), "unknown (ids of unrelated sets)"),
        (("webdataset", "webdataset"), "unknown (ids of unrelated sets)"),
        (("nifti", "nifti"), "unknown (ids of unrelated sets)"),
        (("dicom", "dicom"), "unknown (ids of unrelated sets)"),
    ],
)
def test_equal_ids_are_one_person_only_where_that_is_known(tmp_path: Path, sources: tuple[str, str], says: str) -> None:
    first = make_set(tmp_path / "first", CLEAN, source=sources[0])
    other = make_set(tmp_path / "other", OTHERS, source=sources[1])
    assert findings(first, other)["other:train~first:val:patient"].verdict.text() == says
    assert outcomes(first, other, same_patients=True)["other:train~first:val:patient"] == "found"
    assert outcomes(first, other)["first:train~val:patient"] == "none"


def test_two_sets_of_the_same_files_have_the_same_patients(tmp_path: Path) -> None:
    images = CLEAN | {"val/0/x@p1.png": saved(picture(60))}
    first = make_set(tmp_path / "first", images, source="dicom")
    write_shards(
        listing_of(tmp_path / "first-raw", images, source="dicom"), tmp_path / "small", WriteOptions(resize=32)
    )
    assert outcomes(first, tmp_path / "small")["small:train~first:val:patient"] == "found"


def test_look_alikes_that_were_not_all_compared_are_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = {f"train/0/t{at}@p{at}.png": saved(picture(at)) for at in range(6)}
    images |= {"val/0/copy@q0.png": saved(picture(5)), "val/1/new@q1.png": saved(picture(9))}
    monkeypatch.setattr("shards.likeness.MOST_BITS", 256)  # everything is a candidate, the true copy the nearest
    one = make_set(tmp_path / "one", images)
    verdict = findings(one)["one:train~val:likeness"].verdict
    assert (verdict.affected, verdict.unknown) == (1, 1)
    assert verdict.text().endswith("unknown for 1 of 8 images (too many nearly alike)")
    monkeypatch.setattr("shards.leakage.correlation", lambda a, b: 0.0)  # none of the nearest is a copy
    blank = make_set(tmp_path / "two", images | {"val/1/blank@q2.png": saved(Image.new("L", (60, 50), 7))})
    verdict = findings(blank)["two:train~val:likeness"].verdict
    assert (verdict.outcome, verdict.text()) == (
        "unknown", "unknown for 3 of 9 images (blank or not decodable or too many nearly alike)",
    )  # fmt: skip


def test_sets_of_one_name_are_told_apart_and_one_set_twice_is_refused(tmp_path: Path) -> None:
    first, second = make_set(tmp_path / "v1" / "toy", CLEAN), make_set(tmp_path / "v2" / "toy", CLEAN, seed=1)
    assert [s.name for s in open_sets([first, second])] == ["v1/toy", "v2/toy"]
    with pytest.raises(MstlError, match="same shard set"):
        open_sets([first, first])


def test_the_source_is_compared_where_images_are_stored_anew(tmp_path: Path) -> None:
    data = saved(picture(1), "JPEG", quality=95)
    first = make_set(tmp_path / "first", {"train/0/a.jpg": data, "train/1/b.png": saved(picture(2))})
    second = make_set(tmp_path / "second", {"train/0/c.png": saved(picture(3)), "val/1/d.jpg": data}, resize=64)
    found = findings(first, second)
    assert keys(found["first:train~second:val:content"]) == [("a", "d")]
    assert keys(found["first:train~second:val:likeness"]) == [("a", "d")]


def test_workers_change_nothing(tmp_path: Path) -> None:
    images = CLEAN | {"val/0/again@p9.png": dict(copies(picture(2)))["half the size"]}
    one = make_set(tmp_path / "one", images)
    sets = open_sets([one])
    assert compare(sets, workers=2) == compare(sets, workers=1)


def test_a_planted_crossing_in_covidx_lists(tmp_path: Path) -> None:
    for at, name in enumerate(("n 1.png", "p1.png", "c1.png", "n2.png", "c2.png")):
        put(tmp_path / "raw" / "data" / ("train" if at < 3 else "test") / name, saved(picture(40 + at)))
    lines = ["COVID 191 n 1.png normal rsna", "p2 p1.png pneumonia rsna", "c 9 c1.png COVID-19 cohen"]
    put(tmp_path / "raw" / "train_COVIDx4.txt", "\n".join(lines).encode())
    put(tmp_path / "raw" / "test_COVIDx4.txt", b"p8 n2.png normal rsna\nCOVID 191 c2.png COVID-19 cohen\n")
    write_shards(read_source("covidx", tmp_path / "raw"), tmp_path / "covidx", WriteOptions(val_fraction=0))
    found = {name: finding for name, finding in findings(tmp_path / "covidx").items() if finding.pairs}
    assert list(found) == ["covidx:train~test:patient"]
    (pair,) = found["covidx:train~test:patient"].pairs
    assert (pair.a.patient, pair.b.patient) == ("COVID 191", "COVID 191")


def verdicts(*folders: Path) -> list[Verdict]:
    return [finding.verdict for finding in compare(open_sets(folders))]


def test_verdicts_are_kept_merged_and_bound_to_the_content(tmp_path: Path) -> None:
    first, second = make_set(tmp_path / "first", CLEAN), make_set(tmp_path / "second", CLEAN, source="b", seed=3)
    digests = {folder: load_manifest(folder).digest() for folder in (first, second)}
    assert read_verdicts(first, digests[first]) == []
    both, own = verdicts(first, second), verdicts(first)
    for folder in (first, second):
        save_verdicts(folder, digests[folder], both)
    names = {verdict.name for verdict in read_verdicts(first, digests[first])}
    assert names == {v.name for v in both if digests[first] in (v.a.digest, v.b.digest)}
    assert "second:train~val:content" not in names and "second:train~first:test:content" in names

    save_verdicts(first, digests[first], own)  # the ones with the second set stay
    assert {verdict.name for verdict in read_verdicts(first, digests[first])} == names

    save_verdicts(first, "rebuilt", [])  # of another content nothing stays
    assert json.loads((first / "leakage.json").read_text())["verdicts"] == []
    assert read_verdicts(second, "rebuilt") == []


def test_a_newer_verdict_replaces_the_older(tmp_path: Path) -> None:
    one = make_set(tmp_path / "one", CLEAN)
    digest = load_manifest(one).digest()
    before = verdicts(one)
    save_verdicts(one, digest, before)
    after = [Verdict(check=v.check, a=v.a, b=v.b, outcome="found", affected=1, unknown=0) for v in before[:1]]
    save_verdicts(one, digest, after)
    kept = read_verdicts(one, digest)
    assert len(kept) == len(before)
    assert [v for v in kept if v.identity == before[0].identity] == after


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"schema": 2, "verdicts": []}', '{"schema": 1, "verdicts": [{"name": "x"}]}']
)
def test_a_broken_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "leakage.json").write_text(text)
    with pytest.raises(MstlError, match=r"leakage\.json: it cannot be read.*Remove it and run: mstl leakage"):
        read_verdicts(tmp_path, "0")


def test_an_outcome_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    one = make_set(tmp_path / "one", CLEAN)
    digest = load_manifest(one).digest()
    save_verdicts(one, digest, verdicts(one))
    file = one / "leakage.json"
    file.write_text(file.read_text().replace('"none"', '"clean"'))
    with pytest.raises(MstlError, match="cannot be read"):
        read_verdicts(one, digest)


def run(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(command, [*map(str, words), "--workers", "1"])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def test_the_command_finds_lists_shows_and_fails(tmp_path: Path) -> None:
    one = make_set(
        tmp_path / "one",
        CLEAN | {"test/1/x@p1.png": saved(picture(50)), "val/1/y@p6.jpg": dict(copies(picture(2)))["brighter"]},
    )
    code, output = run(one, "--out", tmp_path / "out")
    assert code == 1
    assert "Leakage found: 2 pairs" in output
    with (tmp_path / "out" / "pairs.csv").open(newline="") as file:
        rows = {row["finding"]: row for row in csv.DictReader(file)}
    assert set(rows) == {"one:train~test:patient", "one:train~val:likeness"}
    patient, likeness = rows["one:train~test:patient"], rows["one:train~val:likeness"]
    assert (patient["reason"], patient["a_key"], patient["a_patient"], patient["b_key"], patient["b_split"]) == (
        "same patient", "a", "p1", "x", "test",
    )  # fmt: skip
    assert patient["bits"] == "" and int(likeness["bits"]) <= 40 and float(likeness["correlation"]) >= 0.9
    assert likeness["reason"].startswith("same picture (")
    with Image.open(tmp_path / "out" / "pairs.png") as sheet:
        assert sheet.width > sheet.height  # two pairs in a row of four cells
    saved_names = {v.name: v.outcome for v in read_verdicts(one, load_manifest(one).digest())}
    assert len(saved_names) == 9
    assert {name for name, outcome in saved_names.items() if outcome == "found"} == set(rows)


def test_the_command_passes_a_clean_set_and_speaks_of_what_is_unknown(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "pairs.png").write_bytes(b"of an earlier check")
    clean = make_set(tmp_path / "one", CLEAN)
    code, output = run(clean, "--out", tmp_path / "out")
    assert code == 0
    assert output.rstrip().endswith("Nothing found") and "could not" not in output
    assert not (tmp_path / "out" / "pairs.png").exists()
    assert (tmp_path / "out" / "pairs.csv").read_text().count("\n") == 1

    without = make_set(tmp_path / "two", {name.partition("@")[0] + ".png": data for name, data in CLEAN.items()})
    code, output = run(without, "--out", tmp_path / "out")
    assert code == 0
    assert "3 of 9 checks could not be made in full, and say nothing there" in output
    assert "clean" not in output.lower()


def test_the_sample_data_pass(sample_sets: Path, tmp_path: Path) -> None:
    code, output = run(*(sample_sets / name for name in ("imagenet", "covidx", "covid19-ct")), "--out", tmp_path)
    for name in ("imagenet", "covidx", "covid19-ct"):
        (sample_sets / name / "leakage.json").unlink()  # the sets are shared with other tests
    assert (code, "found:" in output) == (0, False), output


def test_a_set_at_a_url_is_copied_and_its_verdicts_lie_beside_the_copy(tmp_path: Path) -> None:
    one = make_set(tmp_path / "one", CLEAN | {"val/0/x@p1.png": saved(picture(60))})
    upload(one, "memory://leakage/set")
    code, output = run("memory://leakage/set", "--out", tmp_path / "out", "--cache", tmp_path / "cache")
    assert code == 1 and "set:train~val" in output
    copy = local_set("memory://leakage/set", cache=CacheOptions(folder=tmp_path / "cache"), splits=(), tars=False)
    names = [v.name for v in read_verdicts(copy, load_manifest(one).digest()) if v.outcome == "found"]
    assert names == ["set:train~val:patient"]
    assert "leakage.json at memory://leakage/set" in output and "WARNING" not in output
    there = local_set("memory://leakage/set", cache=CacheOptions(folder=tmp_path / "new"), splits=(), tars=False)
    assert [v.name for v in read_verdicts(there, load_manifest(one).digest()) if v.outcome == "found"] == names


def test_a_store_that_takes_no_verdicts_is_named_loudly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = make_set(tmp_path / "one", CLEAN | {"val/0/x@p1.png": saved(picture(60))})
    upload(one, "memory://leakage/closed")

    def refuse(store: Store, name: str, data: bytes) -> None:
        raise MstlError(name, why="access is denied", remedy="")

    monkeypatch.setattr(Store, "write", refuse)
    words = ["memory://leakage/closed", "--out", tmp_path / "out", "--cache", tmp_path / "cache", "--workers", "1"]
    result = CliRunner().invoke(command, [*map(str, words)])
    assert result.exit_code == 1 and "Leakage found: 1 pairs" in result.stdout
    assert "WARNING: memory://leakage/closed does not have these verdicts" in result.stderr
    assert "access is denied" in result.stderr
    # The copy here keeps them whatever the store says.
    copy = local_set("memory://leakage/closed", cache=CacheOptions(folder=tmp_path / "cache"), splits=(), tars=False)
    found = [v.name for v in read_verdicts(copy, load_manifest(one).digest()) if v.outcome == "found"]
    assert found == ["closed:train~val:patient"]


def test_one_split_alone_has_nothing_to_compare(tmp_path: Path) -> None:
    one = make_set(tmp_path / "one", {"train/0/a.png": saved(picture(1)), "train/1/b.png": saved(picture(2))})
    code, output = run(one, "--out", tmp_path / "out")
    assert (code, output.strip().splitlines()[-1]) == (0, "Nothing to compare: only one split is there")
    assert not (one / "leakage.json").exists()


def test_an_image_that_cannot_be_decoded_is_unknown_and_stops_nothing(tmp_path):
    """A set may have been built by headers alone."""
    images = {**CLEAN, "val/0/c@p3.png": CLEAN["val/0/c@p3.png"][:400]}
    write_shards(listing_of(tmp_path / "raw", images), tmp_path / "set", WriteOptions(decode=False))
    found = {f.verdict.name: f.verdict for f in compare(open_sets([tmp_path / "set"]))}
    likeness = found["set:train~val:likeness"]
    assert (likeness.outcome, likeness.unknown) == ("unknown", 1)
