"""A job is settled and checked before any device is touched: defaults, parents, and what --out holds."""

import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from mstl.job import Job, Request, check_world, plan_job, record
from mstl.models.classifier import Classifier
from mstl.models.registry import build_backbone
from mstl.recipes.records import RECIPE_SCHEMA
from mstl.runs import write_record
from mstl.weights import save_weights
from shards.errors import MstlError
from shards.schema import Manifest, Shard

MODEL = "resnet14-attn5"


def write_set(folder: Path, source: str, classes: tuple[str, ...] = ("no", "yes"), samples: int = 8) -> Path:
    """A manifest alone: planning reads nothing else of a shard set."""
    shard = Shard(
        path="train/000000.tar",
        index="train/000000.idx",
        samples=samples,
        first_id=0,
        bytes=1,
        sha256="0" * 64,
        index_sha256="0" * 64,
    )
    folder.mkdir(parents=True)
    Manifest(
        source=source,
        modality="ct",
        classes=classes,
        splits={"train": (shard,)},
        options={},
        seed=0,
        tool_version="test",
        refused=0,
        duplicates=0,
        class_counts={"train": (samples - samples // 2, samples // 2)},
        titles={},
    ).save(folder)
    return folder


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the shard sets at their default places."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mstl.job.identity.git_revision", lambda: None)  # it asks git, which takes its time
    for source in ("imagenet", "covidx", "covid19-ct"):
        write_set(tmp_path / "data" / "shards" / source, source)
    return tmp_path


def finish(job: Job, name: str | None = None) -> Path:
    """What a finished training of the job leaves, at its own place or beside it."""
    out = job.out if name is None else job.out.parent / name
    write_record(
        out,
        {
            **record(job, world_size=1, device="CPU", carry=None),
            "status": "finished",
            "finished": "2026-01-01T00:00:00+00:00",
        },
    )
    save_weights(out / "weights.safetensors", {**weights_of(job.model), "fc.bias": torch.rand(2)})  # no two alike
    return out


@cache
def weights_of(model: str) -> dict[str, torch.Tensor]:
    backbone = build_backbone(model)
    return {**backbone.state_dict(), **Classifier(backbone, 2).fc.state_dict(prefix="fc.")}


def test_defaults(place: Path) -> None:
    job = plan_job(Request(stage="stl_n"))
    assert (job.shards, job.out, job.model) == (Path("data/shards/imagenet"), Path("runs/stl_n"), "resnet50-attn5")
    assert (job.parent, job.previous, job.finished) == (None, None, False)


def test_a_missing_shard_set_names_the_command_that_makes_it(place: Path) -> None:
    with pytest.raises(MstlError) as caught:
        plan_job(Request(stage="stl_m", shards=Path("elsewhere"), init_from="none"))
    assert caught.value.remedy == "Make it with: mstl shard --src covidx --out elsewhere"


def test_a_missing_stage_before_is_refused_with_the_ways_out(place: Path) -> None:
    with pytest.raises(MstlError, match="starts from a finished stl_n run of resnet14-attn5") as caught:
        plan_job(Request(stage="stl_m", model=MODEL))
    assert "--init-from none" in caught.value.remedy
    assert "mstl train --stage stl_n" in caught.value.remedy


def test_the_newest_finished_run_of_the_stage_before_is_the_default(place: Path) -> None:
    first = plan_job(Request(stage="stl_n", model=MODEL))
    run = finish(first)
    finish(replace(first, model="resnet14-attn0"), "other-network")
    job = plan_job(Request(stage="stl_m", model=MODEL))
    assert job.parent is not None
    assert job.parent.run == run
    assert plan_job(Request(stage="stl_m", model=MODEL, init_from="none")).parent is None


def test_weights_may_come_from_a_file(place: Path) -> None:
    save_weights(place / "from_elsewhere.safetensors", {"x": torch.zeros(1)})
    job = plan_job(Request(stage="stl_m", model=MODEL, init_from="from_elsewhere.safetensors"))
    assert job.parent is not None
    assert (job.parent.run, job.parent.weights.name) == (None, "from_elsewhere.safetensors")
    with pytest.raises(MstlError, match="no such run or file"):
        plan_job(Request(stage="stl_m", model=MODEL, init_from="missing"))


def test_an_interrupted_run_is_continued_whatever_was_trained_beside_it_since(place: Path) -> None:
    first = plan_job(Request(stage="stl_n", model=MODEL))
    finish(first)
    request = Request(stage="stl_m", model=MODEL)
    job = plan_job(request)
    write_record(job.out, {**record(job, world_size=1, device="CPU", carry=None), "status": "interrupted"})
    newer = finish(first, "newer")
    body = json.loads((newer / "run.json").read_text())
    write_record(newer, {**body, "finished": "2027-01-01T00:00:00+00:00"})
    parent = plan_job(request).parent
    assert parent is not None
    assert job.parent is not None
    assert (parent.digest, parent.run) == (job.parent.digest, place / "runs" / "stl_n")
    with pytest.raises(MstlError, match=r"another run: parent is .*runs/newer"):
        plan_job(replace(request, init_from="runs/newer"))


@pytest.mark.parametrize(
    ("fields", "refused"),
    [
        (("data.workers=7", "checkpoint.keep=9", "checkpoint.every_minutes=none"), False),
        (("optim.lr=9",), True),
        (("engine.zero=1",), True),
    ],
)
def test_only_what_changes_results_must_stay_when_continuing(
    place: Path, fields: tuple[str, ...], refused: bool
) -> None:
    request = Request(stage="stl_n", model=MODEL)
    finish(plan_job(request))
    with pytest.raises(MstlError) if refused else nullcontext():
        assert plan_job(replace(request, overrides=fields)).finished


@pytest.mark.parametrize(
    ("batch", "world", "says"),
    [(9, 2, "data.batch_size=8"), (2, 2, "4 or more"), (8, 2, None), (16, 1, "smaller batch"), (24, 16, "fewer ranks")],
)
def test_what_ranks_cannot_share_is_refused(place: Path, batch: int, world: int, says: str | None) -> None:
    job = plan_job(Request(stage="stl_n", model=MODEL, overrides=[f"data.batch_size={batch}"]))
    with pytest.raises(MstlError) if says else nullcontext() as caught:
        check_world(job, world)
    assert says is None or says in str(caught.value)


@pytest.mark.parametrize(
    ("samples", "batch", "world", "goes"),
    [
        (425, 256, 1, None),
        (425, 256, 8, None),  # 21 a rank at the last step
        (425, 212, 1, 211),  # 212 + 212 + 1
        (425, 128, 32, 160),  # 41 left, one each, and so with 96 and 64
        (425, 416, 8, 408),  # 9 left, one each
        (33, 32, 1, 31),
        (5, 4, 2, None),  # the fifth is left out: it cannot be shared
        (6, 4, 2, 6),  # two left, one each
    ],
)
def test_a_last_step_of_one_image_a_rank_is_refused_with_a_size_that_goes(
    place: Path, samples: int, batch: int, world: int, goes: int | None
) -> None:
    write_set(place / "sized", "covid19-ct", samples=samples)
    request = Request(
        stage="finetune",
        model=MODEL,
        shards=place / "sized",
        init_from="none",
        overrides=[f"data.batch_size={batch}"],
    )
    job = plan_job(request)
    if goes is None:
        check_world(job, world)
        return
    with pytest.raises(MstlError, match="batch normalisation needs two") as caught:
        check_world(job, world)
    assert caught.value.remedy == f"Set another: --set data.batch_size={goes}"
    check_world(plan_job(replace(request, overrides=[f"data.batch_size={goes}"])), world)


def test_the_same_remainder_does_not_matter_where_it_is_dropped(place: Path) -> None:
    write_set(place / "sized", "imagenet", samples=33)
    check_world(
        plan_job(Request(stage="stl_n", model=MODEL, shards=place / "sized", overrides=["data.batch_size=32"])), 1
    )


@pytest.mark.parametrize(("accumulate", "world", "refused"), [(2, 2, False), (4, 1, False), (4, 2, True), (8, 1, True)])
def test_parts_of_a_batch_hold_two_images_on_every_rank(
    place: Path, accumulate: int, world: int, refused: bool
) -> None:
    overrides = ["data.batch_size=8", f"engine.accumulate={accumulate}"]
    job = plan_job(Request(stage="stl_n", model=MODEL, overrides=overrides))
    with pytest.raises(MstlError, match=f"engine.accumulate {accumulate}") if refused else nullcontext():
        check_world(job, world)


@pytest.mark.parametrize(
    ("overrides", "world", "goes"),
    [
        (["data.batch_size=8"], 3, "2 ranks"),
        (["data.batch_size=8"], 8, "4 ranks"),  # one image each
        (["data.batch_size=8", "engine.accumulate=2"], 4, "2 ranks"),
        (["data.batch_size=8", "engine.zero=1"], 3, "1 rank"),  # the one that began it
    ],
)
def test_a_run_that_ranks_cannot_share_goes_on_by_fewer_and_not_with_another_batch(
    place: Path, overrides: list[str], world: int, goes: str
) -> None:
    request = Request(stage="stl_n", model=MODEL, overrides=overrides)
    job = plan_job(request)
    write_record(job.out, {**record(job, world_size=1, device="CPU", carry=None), "status": "interrupted"})
    job = plan_job(request)
    with pytest.raises(MstlError) as caught:
        check_world(job, world)
    assert caught.value.remedy == f"The run in runs/stl_n can go on with {goes}"
    check_world(job, int(goes.split()[0]))


def test_another_shard_set_is_refused_by_its_path(place: Path) -> None:
    request = Request(stage="stl_n", model=MODEL)
    finish(plan_job(request))
    write_set(place / "other", "imagenet", samples=9)
    told = r"shards is '/\S*/other \([0-9a-f]{8}\)' and was '/\S*/imagenet \([0-9a-f]{8}\)'"
    with pytest.raises(MstlError, match=told):
        plan_job(replace(request, shards=place / "other"))


def test_an_unfinished_parent_is_refused(place: Path) -> None:
    run = finish(plan_job(Request(stage="stl_n", model=MODEL)))
    (run / "weights.safetensors").unlink()
    with pytest.raises(MstlError, match="no weights yet"):
        plan_job(Request(stage="stl_m", model=MODEL, init_from=str(run)))


def test_a_finished_job_is_recognised(place: Path) -> None:
    request = Request(stage="stl_n", model=MODEL, overrides=["optim.epochs=2"])
    finish(plan_job(request))
    assert plan_job(request).finished
    with pytest.raises(MstlError, match="holds a run already"):
        plan_job(replace(request, resume="never"))


def _other_data(place: Path) -> dict[str, Any]:
    return {"shards": write_set(place / "other", "imagenet", ("a", "b"))}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda place: {"seed": 1}, "seed is 1 and was 0"),
        (lambda place: {"model": "resnet14-attn1"}, "model is 'resnet14-attn1' and was 'resnet14-attn5'"),
        (lambda place: {"overrides": ["optim.lr=0.5"]}, "optim.lr is 0.5 and was 0.1"),
        (_other_data, "shards is "),
    ],
)
def test_another_job_in_the_same_folder_is_refused_naming_the_difference(
    place: Path, change: Callable[[Path], dict[str, Any]], named: str
) -> None:
    request = Request(stage="stl_n", model=MODEL)
    finish(plan_job(request))
    with pytest.raises(MstlError, match="another run") as caught:
        plan_job(replace(request, **change(place)))
    assert named in caught.value.why


def test_moved_data_is_the_same_job(place: Path) -> None:
    request = Request(stage="stl_n", model=MODEL)
    finish(plan_job(request))
    (place / "data" / "shards" / "imagenet").rename(place / "moved")
    assert plan_job(replace(request, shards=Path("moved"))).finished


def test_a_folder_of_somebody_else_is_left_alone(place: Path) -> None:
    (place / "runs" / "stl_n").mkdir(parents=True)
    (place / "runs" / "stl_n" / "thesis.txt").write_text("mine")
    with pytest.raises(MstlError, match="holds files but no run"):
        plan_job(Request(stage="stl_n"))


def test_resume_must_never_starts_afresh(place: Path) -> None:
    request = Request(stage="stl_n", model=MODEL, resume="must")
    with pytest.raises(MstlError, match="no run there"):
        plan_job(request)
    job = plan_job(replace(request, resume="auto"))
    write_record(job.out, {**record(job, world_size=1, device="CPU", carry=None), "status": "running"})
    with pytest.raises(MstlError, match="it holds no checkpoint"):
        plan_job(request)
    (job.out / "checkpoints" / "step-3").mkdir(parents=True)
    assert plan_job(request).continues


def test_the_record_holds_what_was_printed_resolved_and_used(place: Path) -> None:
    job = plan_job(Request(stage="sstl_m", model=MODEL, init_from="none", overrides=["optim.lr=0.01"]))
    body = record(job, world_size=2, device="CPU", carry=None)
    assert body["printed"]["optim.lr"]["value"] == 0.3
    assert body["resolved"]["optim.lr"] == 0.03
    assert body["recipe"]["optim"]["lr"] == 0.01
    assert (body["world_size"], body["shards"]["digest"]) == (2, job.manifest.digest())


def test_a_baseline_is_a_run_of_its_own_and_nobodys_unasked_parent(place: Path) -> None:
    request = Request(stage="sstl_m", ssl="moco", model=MODEL, init_from="none")
    job = plan_job(request)
    assert (job.out, job.ssl) == (Path("runs/sstl_m-moco"), "moco")
    baseline = finish(job)
    with pytest.raises(MstlError, match="holds only baselines"):
        plan_job(Request(stage="finetune", model=MODEL))
    named = plan_job(Request(stage="finetune", model=MODEL, init_from=str(baseline)))
    assert named.parent is not None
    assert named.parent.run == baseline
    ours = finish(plan_job(replace(request, ssl=None)))
    assert ours == Path("runs/sstl_m")
    unasked = plan_job(Request(stage="finetune", model=MODEL)).parent
    assert unasked is not None
    assert unasked.run == ours


def test_another_method_does_not_continue_a_run(place: Path) -> None:
    request = Request(stage="sstl_m", ssl="moco", model=MODEL, init_from="none", out=Path("runs/one"))
    finish(plan_job(request))
    assert plan_job(request).finished
    with pytest.raises(MstlError, match="ssl is 'moco_v2' and was 'moco'"):
        plan_job(replace(request, ssl="moco_v2"))


def test_a_run_from_before_there_were_methods_is_the_papers_own(place: Path) -> None:
    request = Request(stage="sstl_m", model=MODEL, init_from="none")
    out = finish(plan_job(request))
    body = json.loads((out / "run.json").read_text())
    del body["ssl"], body["reasons"]
    write_record(out, body)
    assert plan_job(request).finished
    assert plan_job(replace(request, ssl="ours")).finished


def recorded_without(out: Path, *fields: str, **changes: Any) -> None:
    """A run's record as a program wrote it that did not have some of the fields."""
    body = json.loads((out / "run.json").read_text())
    del body["recipe_schema"]
    for field in fields:
        section, _, own = field.partition(".")
        del body["recipe"][section][own]
    write_record(out, {**body, **changes})


def test_a_record_names_the_schema_of_its_recipe(place: Path) -> None:
    job = plan_job(Request(stage="stl_n", model=MODEL))
    assert record(job, world_size=1, device="CPU", carry=None)["recipe_schema"] == RECIPE_SCHEMA


@pytest.mark.parametrize(
    ("absent", "now", "differs"),
    [
        (("optim.schedule", "optim.warmup_epochs", "engine.zero", "checkpoint.every_minutes"), (), None),
        (("engine.accumulate",), ("engine.accumulate=2",), "engine.accumulate is 2 and was 1"),
        (("optim.schedule",), ("optim.schedule=cosine",), "optim.schedule is 'cosine' and was 'step'"),
        # Then one statistic for all that a rank has: today's default would not go on as it began.
        (("loss.bn_group",), (), "loss.bn_group is 32 and was None"),
        (("loss.bn_group",), ("loss.bn_group=none",), None),
        (("data.channels",), (), "data.channels is 'auto' and was 'not recorded'"),
        (("optim.lr",), (), "optim.lr is 0.03 and was 'not recorded'"),  # every program had it: damaged
    ],
)
def test_a_field_that_an_older_program_did_not_have_is_what_that_program_did(
    place: Path, absent: tuple[str, ...], now: tuple[str, ...], differs: str | None
) -> None:
    stage = "finetune" if "engine.accumulate" in absent else "sstl_m"  # contrast takes no part of a batch
    request = Request(stage=stage, model=MODEL, init_from="none", overrides=now)
    recorded_without(finish(plan_job(replace(request, overrides=[]))), *absent)
    if differs is None:
        assert plan_job(request).finished
        return
    with pytest.raises(MstlError, match="another run") as caught:
        plan_job(request)
    assert differs in caught.value.why


def test_a_record_of_today_that_lacks_a_field_is_not_taken_for_an_old_one(place: Path) -> None:
    request = Request(stage="sstl_m", model=MODEL, init_from="none")
    out = finish(plan_job(request))
    recorded_without(out, "optim.schedule", recipe_schema=RECIPE_SCHEMA)
    with pytest.raises(MstlError, match=r"optim\.schedule is 'step' and was 'not recorded'"):
        plan_job(request)
    recorded_without(finish(plan_job(replace(request, out=Path("runs/new")))), recipe_schema=RECIPE_SCHEMA + 1)
    with pytest.raises(MstlError, match="a newer MSTL trains there"):
        plan_job(replace(request, out=Path("runs/new")))


def test_how_the_rate_was_found_may_change_and_the_rate_may_not(place: Path) -> None:
    request = Request(stage="finetune", model=MODEL, init_from="none", overrides=["data.batch_size=64"])
    finish(plan_job(request))
    same = ["data.batch_size=64", "optim.scale_lr=false", "optim.lr=0.0075"]
    assert plan_job(replace(request, overrides=same)).finished
    with pytest.raises(MstlError, match=r"optim\.lr is 0\.03 and was 0\.0075"):
        plan_job(replace(request, overrides=["data.batch_size=64", "optim.scale_lr=false"]))


def test_methods_see_their_own_views(place: Path) -> None:
    def seen(ssl: str | None) -> tuple[str, float, float, str]:
        inputs = plan_job(Request(stage="sstl_m", ssl=ssl, model=MODEL, init_from="none")).train_inputs
        return inputs.views, inputs.jitter, inputs.area_min, inputs.channels

    assert seen("ours") == ("two_and_regions", 0.5, 0.08, "grey")
    assert seen("moco") == ("two", 1.0, 0.2, "grey")
    assert seen("moco_v2") == ("two", 0.8, 0.2, "grey")
    assert seen("simclr") == ("two", 0.8, 0.08, "grey")


def test_the_printed_flavour_reaches_what_the_network_sees(place: Path) -> None:
    pretrained = plan_job(Request(stage="sstl_m", model=MODEL, init_from="none", flavour="printed"))
    assert (pretrained.train_inputs.channels, pretrained.train_inputs.region_flip) == ("rgb", True)
    tuned = plan_job(Request(stage="finetune", model=MODEL, init_from="none", flavour="printed"))
    assert (tuned.val_inputs.jitter, tuned.val_inputs.crop, tuned.val_inputs.channels) == (0.5, "centre", "rgb")
    ours = plan_job(Request(stage="finetune", model=MODEL, init_from="none"))
    assert (ours.val_inputs.jitter, ours.val_inputs.channels) == (0.0, "grey")


def test_a_scaled_rate_is_said_and_recorded(place: Path) -> None:
    request = Request(stage="sstl_m", model=MODEL, init_from="none", overrides=["data.batch_size=64"], compile=True)
    job = plan_job(request)
    assert job.notes == ("optim.lr 0.0075: scaled with data.batch_size: 0.03 x 64 / 256",)
    body = record(job, world_size=1, device="CPU", carry=None)
    assert body["recipe"]["optim"]["lr"] == pytest.approx(0.0075)
    assert body["reasons"] == {
        "data.batch_size": "--set",
        "engine.compile": "--compile",
        "optim.lr": "scaled with data.batch_size: 0.03 x 64 / 256",
    }
    assert plan_job(replace(request, overrides=["data.batch_size=64", "optim.lr=0.1"])).notes == ()


def test_all_images_are_for_learning_without_labels_alone_and_that_follows_the_weights(place: Path) -> None:
    request = Request(stage="sstl_m", model=MODEL, init_from="none", overrides=["data.images=all"])
    job = plan_job(request)
    assert (job.train_split, plan_job(replace(request, overrides=[])).train_split) == ("all", "train")
    assert job.notes == ("trains on val and test images too, without their labels",)
    pretrained = finish(job)
    tuned = plan_job(Request(stage="finetune", model=MODEL))
    assert tuned.leakage.record["transductive"] == [str(pretrained)]
    assert tuned.leakage.notes[-1].endswith("has seen this set's val and test images, without their labels")
    with pytest.raises(MstlError, match="finetune has no use for it"):
        plan_job(Request(stage="finetune", model=MODEL, overrides=["data.images=all"]))


def test_random_crops_of_any_area_are_there_for_natural_images(place: Path) -> None:
    request = Request(stage="stl_n", model=MODEL, overrides=["data.random_resized_crop=true"])
    assert (plan_job(request).train_inputs.crop, plan_job(replace(request, overrides=[])).train_inputs.crop) == (
        "area",
        "random",
    )
