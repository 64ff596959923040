"""Training refuses what is known to leak unless it is waived by name, and the run says what was known."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import make_run, make_shards

from mstl.cli.training_options import as_arguments
from mstl.gate import Gate, check_leakage, trace_lineage
from mstl.job import Job, Request, plan_job, record
from mstl.runs import write_record
from mstl.study.report import write_report
from shards.errors import MstlError
from shards.schema import SPLITS, Manifest, Shard, load_manifest
from shards.verdicts import CHECKS, Check, Outcome, Part, Verdict, save_verdicts

MODEL = "resnet14-attn5"
LIKENESS = "covid19-ct:train~val:likeness"


def write_set(folder: Path, source: str, splits: tuple[str, ...] = SPLITS, seed: int = 0) -> Path:
    """A manifest alone: the gate reads nothing else of a shard set but its verdicts."""
    shards = {
        split: Shard(
            path=f"{split}/000000.tar", index=f"{split}/000000.idx", samples=8, first_id=8 * at, bytes=1,
            sha256="0" * 64, index_sha256="0" * 64,
        )
        for at, split in enumerate(splits)
    }  # fmt: skip
    folder.mkdir(parents=True)
    Manifest(
        source=source,
        modality="ct",
        classes=("no", "yes"),
        splits={split: (shard,) for split, shard in shards.items()},
        options={},
        seed=seed,
        tool_version="test",
        refused=0,
        duplicates=0,
        class_counts=dict.fromkeys(splits, (4, 4)),
        titles={},
    ).save(folder)
    return folder


def part(folder: Path, split: str) -> Part:
    manifest = load_manifest(folder)
    return Part(name=folder.name, source=manifest.source, digest=manifest.digest(), split=split, images=8)


def verdict(a: tuple[Path, str], b: tuple[Path, str], check: Check, outcome: Outcome = "none") -> Verdict:
    return Verdict(
        check=check, a=part(*a), b=part(*b), outcome=outcome, affected=3 if outcome == "found" else 0,
        unknown=16 if outcome == "unknown" else 0, why="no patient id" if outcome == "unknown" else "",
    )  # fmt: skip


def save(folder: Path, *verdicts: Verdict) -> None:
    save_verdicts(folder, load_manifest(folder).digest(), verdicts)


def save_within(folder: Path, outcomes: dict[str, Outcome] | None = None) -> None:
    """Verdicts on all pairs within a set: "none" but for those named, such as "train~val:likeness"."""
    pairs = (("train", "val"), ("train", "test"), ("val", "test"))
    save(
        folder,
        *(
            verdict((folder, a), (folder, b), check, (outcomes or {}).get(f"{a}~{b}:{check}", "none"))
            for a, b in pairs
            for check in CHECKS
        ),
    )


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the shard sets of all stages."""
    monkeypatch.chdir(tmp_path)
    for source in ("imagenet", "covidx", "covid19-ct"):
        write_set(Path("data/shards") / source, source)
    return tmp_path


CT, CXR = Path("data/shards/covid19-ct"), Path("data/shards/covidx")
ALONE = Request(stage="finetune", model=MODEL, init_from="none", overrides=["data.batch_size=4"])


def keep(job: Job, status: str = "finished") -> Path:
    """The folder of a job that has been started, with a stand-in for its weights."""
    write_record(job.out, {**record(job, world_size=1, device="CPU", carry=None), "status": status})
    (job.out / "weights.safetensors").write_bytes(job.out.name.encode())
    return job.out


def test_a_set_that_was_never_checked_trains_and_says_so(place: Path) -> None:
    job = plan_job(ALONE)
    assert job.leakage.notes == (
        "leakage: never checked; not compared: its own splits; check with: mstl leakage data/shards/covid19-ct",
    )
    body = record(job, world_size=1, device="CPU", carry=None)["leakage"]
    assert (body["state"], body["verdicts"], body["waived"], body["lineage"]) == ("never checked", [], [], [])


def test_a_checked_set_trains_without_a_word(place: Path) -> None:
    save_within(CT)
    job = plan_job(ALONE)
    assert job.leakage.notes == ()
    body = json.loads(json.dumps(job.leakage.record))
    assert (body["state"], body["missing"], len(body["verdicts"])) == ("checked", [], 9)


def test_unknown_is_said_and_recorded(place: Path) -> None:
    save_within(CT, {"train~test:patient": "unknown"})
    job = plan_job(ALONE)
    assert job.leakage.notes == ("leakage: not known in full for covid19-ct:train~test:patient",)
    texts = {entry["name"]: entry["text"] for entry in job.leakage.record["verdicts"]}
    assert texts["covid19-ct:train~test:patient"] == "unknown (no patient id)"


def test_part_of_a_check_is_no_check(place: Path) -> None:
    save(CT, verdict((CT, "train"), (CT, "val"), "content"))
    job = plan_job(ALONE)
    assert job.leakage.record["state"] == "partly checked"
    assert "partly checked; not compared: its own splits" in job.leakage.notes[0]


def test_a_train_split_alone_has_nothing_to_compare(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "one", "toy", splits=("train",))
    gate = check_leakage(
        shards=folder, called="one", manifest=load_manifest(folder), lineage=[], waive=[], previous=None
    )
    assert (gate.record["state"], gate.notes) == ("nothing to compare", ())


def test_a_run_that_saw_all_images_without_labels_is_named_and_leaves_more_to_compare(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "one", "toy")
    manifest = load_manifest(folder)
    entry = {"run": "ssl", "stage": "sstl_m", "source": "other", "shards": "/other", "images": "all"}

    def looked_at(digest: str) -> Gate:
        lineage = [{**entry, "digest": digest}]
        return check_leakage(shards=folder, called="one", manifest=manifest, lineage=lineage, waive=[], previous=None)

    same, other = looked_at(manifest.digest()), looked_at("d" * 64)
    assert (same.record["transductive"], other.record["transductive"]) == (["ssl"], [])
    assert same.notes[-1] == "leakage: ssl has seen this set's val and test images, without their labels"
    assert "val and test images of other, of sstl_m" in other.record["missing"]


def test_a_finding_refuses_and_names_its_waiver(place: Path) -> None:
    save_within(CT, {"train~val:likeness": "found", "val~test:patient": "found"})
    with pytest.raises(MstlError) as error:
        plan_job(ALONE)
    assert f"{LIKENESS} (found: 3 of 8 val images); covid19-ct:val~test:patient (found: 3 of 8" in error.value.why
    assert f"--waive-leakage {LIKENESS} --waive-leakage covid19-ct:val~test:patient" in error.value.remedy
    with pytest.raises(MstlError) as error:
        plan_job(replace(ALONE, waive_leakage=[LIKENESS]))
    assert LIKENESS not in str(error.value) and "covid19-ct:val~test:patient" in error.value.why


def test_a_waived_finding_trains_and_is_recorded(place: Path) -> None:
    save_within(CT, {"train~val:likeness": "found"})
    job = plan_job(replace(ALONE, waive_leakage=[LIKENESS]))
    assert job.leakage.notes == (f"leakage: waived {LIKENESS}",)
    assert [entry["name"] for entry in job.leakage.record["waived"]] == [LIKENESS]


@pytest.mark.parametrize("name", ["covid19-ct:train~val:patient", "all", ""])
def test_a_waiver_of_nothing_is_refused(place: Path, name: str) -> None:
    save_within(CT, {"train~val:likeness": "found"})
    with pytest.raises(MstlError, match=f"there are {LIKENESS}"):
        plan_job(replace(ALONE, waive_leakage=[LIKENESS, name]))
    save_within(CT)
    with pytest.raises(MstlError, match="there is no such finding for this job; none"):
        plan_job(replace(ALONE, waive_leakage=[name]))


def test_a_rebuilt_set_is_judged_anew(place: Path) -> None:
    save_within(CT, {"train~val:likeness": "found"})
    verdicts = (CT / "leakage.json").read_bytes()
    (CT / "dataset.json").unlink()
    CT.rename("old")
    write_set(CT, "covid19-ct", seed=1)
    (CT / "leakage.json").write_bytes(verdicts)
    assert plan_job(ALONE).leakage.record["state"] == "never checked"


def test_a_broken_verdict_file_refuses(place: Path) -> None:
    (CT / "leakage.json").write_text("{")
    with pytest.raises(MstlError, match=r"leakage\.json: it cannot be read"):
        plan_job(ALONE)


def test_a_resumed_run_keeps_its_waivers_but_not_for_new_findings(place: Path) -> None:
    save_within(CT, {"train~val:likeness": "found"})
    keep(plan_job(replace(ALONE, waive_leakage=[LIKENESS])), status="interrupted")
    job = plan_job(ALONE)
    assert [entry["name"] for entry in job.leakage.record["waived"]] == [LIKENESS]
    save_within(CT, {"train~val:likeness": "found", "train~test:content": "found"})
    with pytest.raises(MstlError, match="covid19-ct:train~test:content") as error:
        plan_job(ALONE)
    assert LIKENESS not in str(error.value)


def two_sets_of_one_name(place: Path) -> tuple[Request, list[str]]:
    """A fine-tuning behind runs on a/covidx and b/covidx, with a finding about each; and the parts of their digests."""
    save_within(CT)
    parent = None
    digests = []
    for at, name in enumerate(("a", "b")):
        shards = write_set(Path(name) / "covidx", "covidx", seed=at + 5)
        digests.append(load_manifest(shards).digest()[:8])
        stage = ("stl_m", "sstl_m")[at]
        request = Request(
            stage=stage, model=MODEL, init_from=parent or "none", shards=shards, out=Path(f"runs/{name}"),
            overrides=["data.batch_size=4"],
        )  # fmt: skip
        parent = str(keep(plan_job(request)))
        save(CT, verdict((shards, "train"), (CT, "val"), "likeness", "found"))
    return replace(ALONE, init_from=parent), digests


SAME = "covidx:train~covid19-ct:val:likeness"


def test_findings_about_sets_of_one_name_are_waived_one_by_one(place: Path) -> None:
    request, (a, b) = two_sets_of_one_name(place)
    with pytest.raises(MstlError) as error:
        plan_job(request)
    assert sorted(error.value.remedy.split(" --waive-leakage ")[1:]) == sorted((f"{SAME}@{a}", f"{SAME}@{b}"))
    with pytest.raises(MstlError, match="the name is not enough to tell findings apart"):
        plan_job(replace(request, waive_leakage=[SAME]))
    with pytest.raises(MstlError) as error:
        plan_job(replace(request, waive_leakage=[f"{SAME}@{a}"]))
    assert f"{SAME}@{b}" in error.value.why and f"@{a}" not in error.value.why
    job = plan_job(replace(request, waive_leakage=[f"{SAME}@{a}", f"{SAME}@{b}"]))
    waived = {entry["name"] for entry in job.leakage.record["waived"]}
    assert waived == {f"{SAME}@{a}", f"{SAME}@{b}"} <= {entry["name"] for entry in job.leakage.record["verdicts"]}


def test_a_new_finding_under_an_old_name_is_refused(place: Path) -> None:
    request, (a, b) = two_sets_of_one_name(place)
    both = json.loads((CT / "leakage.json").read_text())
    only_a = [entry for entry in both["verdicts"] if not entry["a"]["digest"].startswith(b)]
    only_b = [entry for entry in both["verdicts"] if not entry["a"]["digest"].startswith(a)]
    (CT / "leakage.json").write_text(json.dumps({**both, "verdicts": only_a}))
    job = plan_job(replace(request, waive_leakage=[SAME]))
    assert [entry["name"] for entry in job.leakage.record["waived"]] == [SAME]
    keep(job, status="interrupted")
    for known in (both["verdicts"], only_b):
        (CT / "leakage.json").write_text(json.dumps({**both, "verdicts": known}))
        with pytest.raises(MstlError) as error:
            plan_job(request)
        assert error.value.remedy.endswith(f"--waive-leakage {SAME}@{b}") and f"@{a}" not in str(error.value)
        with pytest.raises(MstlError, match="not enough to tell findings apart"):  # the same command again
            plan_job(replace(request, waive_leakage=[SAME]))
    assert plan_job(replace(request, waive_leakage=[f"{SAME}@{b}"])).leakage.record["waived"]


def test_a_finished_run_is_not_refused_any_more(place: Path) -> None:
    keep(plan_job(ALONE))
    save_within(CT, {"train~val:likeness": "found"})
    assert plan_job(ALONE).finished


def chain(place: Path) -> Request:
    """stl_m on covidx, then sstl_m on covid19-ct from it; the request of the fine-tuning from that."""
    first = keep(plan_job(Request(stage="stl_m", model=MODEL, init_from="none", overrides=["data.batch_size=4"])))
    second = Request(stage="sstl_m", model=MODEL, init_from=str(first), overrides=["data.batch_size=4"])
    keep(plan_job(second))
    return replace(ALONE, init_from="runs/sstl_m")


def test_what_an_ancestor_was_trained_on_is_held_against_val_and_test(place: Path) -> None:
    save_within(CT)
    request = chain(place)
    job = plan_job(request)
    assert [entry["source"] for entry in job.leakage.record["lineage"]] == ["covid19-ct", "covidx"]
    (note,) = job.leakage.notes
    assert "partly checked; not compared: covidx of stl_m; check with: mstl leakage" in note
    assert note.endswith(f"data/shards/covid19-ct {CXR.resolve()}")

    across = [verdict((CXR, "train"), (CT, split), check) for split in ("val", "test") for check in CHECKS]
    save(CT, *across)
    assert plan_job(request).leakage.record["state"] == "checked"

    save(CT, replace(across[-1], outcome="found", affected=2))
    with pytest.raises(MstlError, match="covidx:train~covid19-ct:test:likeness"):
        plan_job(request)
    plan_job(ALONE)  # from random weights it is none of this job's business
    waived = plan_job(replace(request, waive_leakage=["covidx:train~covid19-ct:test:likeness"]))
    assert len(waived.leakage.record["waived"]) == 1


def test_this_sets_train_split_in_an_ancestors_test_split_does_not_matter(place: Path) -> None:
    save_within(CT)
    save(CT, verdict((CT, "train"), (CXR, "test"), "content", "found"))
    request = chain(place)
    assert all("covidx" not in entry["name"] for entry in plan_job(request).leakage.record["verdicts"])


def test_the_lineage_survives_the_loss_of_older_runs(place: Path) -> None:
    request = chain(place)
    Path("runs/stl_m").rename("runs/elsewhere")
    assert [entry["stage"] for entry in plan_job(request).leakage.record["lineage"]] == ["sstl_m", "stl_m"]


def test_runs_older_than_the_gate_are_followed_by_their_parents(place: Path) -> None:
    request = chain(place)
    for name in ("stl_m", "sstl_m"):
        file = Path("runs") / name / "run.json"
        body: dict[str, Any] = json.loads(file.read_text())
        del body["leakage"]
        file.write_text(json.dumps(body))
    assert [entry["stage"] for entry in plan_job(request).leakage.record["lineage"]] == ["sstl_m", "stl_m"]
    Path("runs/stl_m").rename("runs/elsewhere")
    lineage = trace_lineage(Path("runs/sstl_m/weights.safetensors"), Path("runs/sstl_m"))
    assert [(entry["stage"], entry["digest"] is None) for entry in lineage] == [("sstl_m", False), (None, True)]


def test_weights_from_elsewhere_are_unknown(place: Path) -> None:
    save_within(CT)
    Path("hub.safetensors").write_bytes(b"weights")
    job = plan_job(replace(ALONE, init_from="hub.safetensors"))
    assert job.leakage.record["missing"] == ["what hub.safetensors was trained on"]
    assert job.leakage.record["state"] == "partly checked"
    assert job.leakage.notes == ("leakage: partly checked; not compared: what hub.safetensors was trained on",)


def test_an_ancestor_of_this_set_before_it_was_rebuilt_cannot_be_compared(place: Path) -> None:
    request = chain(place)
    CT.rename("old")
    write_set(CT, "covid19-ct", seed=1)
    save_within(CT)
    (note,) = plan_job(request).leakage.notes
    assert "covid19-ct of sstl_m (this set before it was built anew), covidx of stl_m" in note
    assert note.endswith(f"mstl leakage data/shards/covid19-ct {CXR.resolve()}")


def test_waivers_reach_the_ranks() -> None:
    arguments = as_arguments(
        {"stage": "finetune", "overrides": (), "waive_leakage": ("a:b~c:content", "x y:d~e:likeness")}
    )
    assert arguments == [
        "--stage", "finetune", "--waive-leakage", "a:b~c:content", "--waive-leakage", "x y:d~e:likeness",
    ]  # fmt: skip


def test_the_report_shows_what_was_known(tmp_path: Path) -> None:
    manifest = make_shards(tmp_path / "covid19-ct")
    save_within(tmp_path / "covid19-ct", {"train~val:likeness": "found", "train~test:patient": "unknown"})
    gate = check_leakage(
        shards=tmp_path / "covid19-ct", called="ct", manifest=manifest, lineage=[], waive=[LIKENESS], previous=None
    )  # fmt: skip
    old = make_run(tmp_path / "old", tmp_path / "covid19-ct", manifest, weights=False)
    new = make_run(tmp_path / "new", tmp_path / "covid19-ct", manifest, weights=False, changes={"leakage": gate.record})
    write_report(tmp_path / "report.html", title="t", runs=[old, new])
    page = (tmp_path / "report.html").read_text().replace("<wbr>", "")
    assert "<td>not recorded</td>" in page
    assert f"<td>checked<small>waived: {LIKENESS} (found: 3 of 8 val images)</small>" in page
    assert "<small>covid19-ct:train~test:patient: unknown (no patient id)</small></td>" in page


def test_a_record_that_is_damaged_is_named_by_the_report(tmp_path: Path) -> None:
    manifest = make_shards(tmp_path / "covid19-ct")
    run = make_run(tmp_path / "r", tmp_path / "covid19-ct", manifest, weights=False, changes={"leakage": {"state": 1}})
    with pytest.raises(MstlError, match="leakage"):
        write_report(tmp_path / "report.html", title="t", runs=[run])
