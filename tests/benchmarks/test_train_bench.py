"""The benchmark of training: the plain side is the same network, parts sum to the step, the JSON is true. No timing."""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from click.testing import CliRunner
from torch import Tensor, nn

from benchmarks import ranks, train_show, train_step
from benchmarks.train_plain import PlainMoco, plain_network
from mstl.models.names import DEPTHS, PLACEMENTS
from mstl.models.registry import build_backbone
from mstl.models.resnet import ResNet
from mstl.ssl.moco import MomentumContrast
from pipelines.batch import Batch
from shards.errors import MstlError

SMALL = ("--batch", "4", "--size", "32", "--turns", "1", "--steps", "1")


def run(out: Path, *words: str) -> tuple[dict[str, Any], str]:
    done = CliRunner(catch_exceptions=False).invoke(train_step.command, [*SMALL, *words, "--out", str(out)])
    assert done.exit_code == 0 and f"Wrote {out}" in done.output
    body: dict[str, Any] = json.loads(out.read_text())
    return body, done.output


@pytest.fixture(scope="module")
def measured(sample_sets: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    out = tmp_path_factory.mktemp("train") / "train.json"
    words = ("--model", "resnet14-attn1", "--shards", str(sample_sets / "imagenet"), "--workers", "1", "--profile")
    return run(out, *words)[0], out


def test_every_side_is_measured_on_noise_and_on_shards(measured: tuple[dict[str, Any], Path]) -> None:
    (world,) = measured[0]["worlds"]
    assert (world["ranks"], world["batch"], world["scaling"]) == (1, 4, "weak")
    assert list(world["models"]) == ["resnet14-attn1"]
    for feeds in world["models"].values():
        assert list(feeds) == ["synthetic", "shards"]
        for sides in feeds.values():
            assert list(sides) == ["mstl", "plain"]
            for figures in sides.values():
                assert figures["median"]["wall_ms"] == statistics.median(figures["wall_ms"])
                assert figures["images_per_second"] == pytest.approx(4e3 / figures["median"]["wall_ms"])
                assert 0 < figures["last_loss"] < 30 and figures["median"]["wait_ms"] >= 0
        for figures in feeds["synthetic"].values():
            assert 0 < figures["held_bytes"] < figures["peak_bytes"]
    own = world["models"]["resnet14-attn1"]["synthetic"]["mstl"]
    assert list(own["backends"]) == ["res3.0"] and measured[0]["scaling"] == []


def test_what_lives_from_step_to_step_is_counted(measured: tuple[dict[str, Any], Path]) -> None:
    # Weights and momentum of the network and its classifier of two classes; the engine keeps gradients or frees them.
    weights = 4 * (sum(p.numel() for p in build_backbone("resnet14-attn1").parameters()) + 2 * 2049)
    for side in measured[0]["worlds"][0]["models"]["resnet14-attn1"]["synthetic"].values():
        assert 2 * weights <= side["held_bytes"] <= 3.1 * weights


def test_the_parts_of_a_step_are_all_of_it(measured: tuple[dict[str, Any], Path]) -> None:
    body, out = measured
    profiles = body["worlds"][0]["profiles"]
    for model, profile in profiles.items():
        parts = profile["parts_ms"]
        assert sum(parts.values()) == pytest.approx(profile["step_ms"], rel=1e-3)
        assert sum(profile["shares"].values()) == pytest.approx(1)
        expected = {"convolutions", "norms", "optimizer", "gradients", "data wait", "head and loss"}
        expected |= {f"attention {stage}" for stage in PLACEMENTS[model.partition("-")[2]]}
        assert expected <= parts.keys() <= expected | {"activations, additions, casts", "between operations"}
        events = json.loads((out.parent / profile["trace"]).read_text())["traceEvents"]
        assert any(event.get("name") == "mstl: step" for event in events)


def test_it_says_on_what_it_was_measured(measured: tuple[dict[str, Any], Path]) -> None:
    body, _ = measured
    assert {"mstl", "torch", "deepspeed", "python"} <= body["versions"].keys()
    known = set((Path(train_step.__file__).parent / "README.md").read_text().split("`"))
    (world,) = body["worlds"]
    figures = world["models"]["resnet14-attn1"]["synthetic"]["mstl"]
    profile = world["profiles"]["resnet14-attn1"]
    assert not {*body, *body["settings"], *world, *figures, *figures["median"], *profile} - known


def test_backward_is_counted_to_the_part_whose_forward_it_undoes() -> None:
    """Made of events: a product in attention, its gradient, an update; every moment in its place."""
    from torch.profiler import ProfilerActivity, record_function

    from benchmarks.train_profile import summarise

    weight = torch.randn(200, 200, requires_grad=True)
    with torch.profiler.profile(activities=[ProfilerActivity.CPU]) as profiler, record_function("mstl: step"):
        with record_function("mstl: head and loss"):
            with record_function("mstl: attention res3"):
                out = weight @ weight
            loss = out.exp().sum()
        loss.backward()
    events = profiler.events()
    products = [event for event in events if event.name == "aten::mm"]
    assert len(products) == 3  # forward, and the gradients of both factors
    found = summarise(events, gpu=False)
    spent = sum(event.cpu_time_total for event in products) / 1e3
    assert spent <= found["parts_ms"]["attention res3"] < found["step_ms"]
    exps = [event for event in events if event.name in ("aten::exp", "aten::mul")]
    assert found["parts_ms"]["head and loss"] >= sum(event.self_cpu_time_total for event in exps) / 1e3
    assert found["parts_ms"]["gradients"] > 0  # of the leaf
    assert sum(found["parts_ms"].values()) == pytest.approx(found["step_ms"], rel=1e-3)


def plain_weights(ours: ResNet) -> dict[str, Tensor]:
    """Our backbone's weights under the names of the plain network."""
    found = {}
    for name, value in ours.state_dict().items():
        words = name.split(".")
        if words[0] != "attention":
            has_attention = f"res{int(words[0][-1]) + 1}" in ours.attention if words[0].startswith("layer") else False
            found[".".join([words[0], *(["0"] if has_attention else []), *words[1:]])] = value
            continue
        stage, index, *rest = words[1:]
        place = f"layer{int(stage[-1]) - 1}.{int(index) + 1}"
        if rest[:2] == ["attention", "qkv"]:
            for part, piece in zip(("query", "key", "value"), value.chunk(3), strict=True):
                found[f"{place}.{part}.{rest[2]}"] = piece
        else:
            found[".".join([place, *rest])] = value
    return found


def twin(ours: ResNet, name: str, outputs: int) -> nn.Module:
    depth, _, attention = name.partition("-")
    network = plain_network(list(DEPTHS[depth]), PLACEMENTS[attention], outputs)
    missing, unexpected = network.load_state_dict(plain_weights(ours), strict=False)
    assert not unexpected and set(missing) == {"fc.weight", "fc.bias"}
    return network


def awake(network: ResNet) -> ResNet:
    """Attention blocks start as the identity; here they shall do something."""
    for name, parameter in network.attention.named_parameters():
        if name.endswith("norm.weight"):
            nn.init.ones_(parameter)
        elif name.endswith("weight"):
            nn.init.normal_(parameter, std=0.05)
    return network


@pytest.mark.parametrize("name", ["resnet14-attn0", "resnet14-attn5"])
def test_the_plain_network_is_ours(name: str) -> None:
    torch.manual_seed(0)
    ours = awake(build_backbone(name)).double()
    plain = twin(ours, name, 8).double()
    plain.fc = nn.Identity()
    images = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    expected = ours(images)
    if ours.attention:  # it takes part
        for parameter in ours.attention.parameters():
            nn.init.zeros_(parameter)
        assert not torch.allclose(ours(images), expected, atol=1e-2)
    torch.testing.assert_close(plain(images), expected, rtol=1e-9, atol=1e-9)


def test_the_plain_contrast_is_ours(tmp_path: Path) -> None:
    torch.manual_seed(0)
    ours = MomentumContrast(build_backbone("resnet14-attn1"), dim=16, queue_size=12, momentum=0.9, temperature=0.2,
                            alpha1=1.0, region_mode="off")  # fmt: skip
    plain = PlainMoco(twin(ours.backbone, "resnet14-attn1", 16), 16, 12, 0.9, 0.2)
    assert isinstance(ours.projection, nn.Linear)
    for encoder in (plain.encoder_q, plain.encoder_k):
        encoder.fc.load_state_dict(ours.projection.state_dict())  # type: ignore[union-attr]
    plain.queue.copy_(ours.queue.keys.T)
    with torch.no_grad():  # so that the momentum shows
        for own, other in ((ours.projection, plain.encoder_q.fc),):
            for mine, theirs in zip(own.parameters(), other.parameters(), strict=True):  # type: ignore[union-attr]
                mine.add_(0.1)
                theirs.add_(0.1)
    store = dist.HashStore()  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        for first_id in (0, 4, 8, 12):  # the queue turns round
            query, key = torch.randn(2, 4, 3, 32, 32).unbind()
            ids = torch.arange(first_id, first_id + 4)
            loss = ours(Batch(views={"q": query, "k": key}, labels=ids, sample_ids=ids))["loss"]
            ours.after_step()
            torch.testing.assert_close(nn.CrossEntropyLoss()(*plain(query, key)), loss, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(plain.queue.T, ours.queue.keys, rtol=1e-3, atol=1e-4)
    finally:
        dist.destroy_process_group()


def world(ranks: int, batch: int, rate: float, scaling: str = "weak") -> dict[str, Any]:
    side = {"wall_ms": [1e3 * ranks * batch / rate], "median": {"wall_ms": 1e3 * ranks * batch / rate},
            "images_per_second": rate}  # fmt: skip
    return {"ranks": ranks, "batch": batch, "scaling": scaling, "device_type": "cpu", "device": "CPU",
            "models": {"resnet50-attn0": {"synthetic": {"mstl": side}}}}  # fmt: skip


def test_scaling_is_against_the_fewest_ranks() -> None:
    rows = train_show.scaling([world(4, 2, 240, "strong"), world(4, 8, 360), world(1, 8, 100)])
    assert [(row["scaling"], row["ranks"], row["rank_batch"]) for row in rows] == [
        ("weak", 1, 8), ("weak", 4, 8), ("strong", 4, 2)
    ]  # fmt: skip
    assert [row["speedup"] for row in rows] == [1, 3.6, 2.4]
    assert [row["efficiency"] for row in rows] == [1, 0.9, 0.6]
    assert train_show.scaling([world(1, 8, 100)]) == []


@pytest.mark.parametrize(("size", "ratio", "reached"), [(96, 1.3, [True]), (96, 1.4, [False]), (224, 1.3, [])])
def test_the_step_with_attention_is_held_against_the_one_without(size: int, ratio: float, reached: list[bool]) -> None:
    one = world(1, 8, 100)
    slower = {"mstl": {**one["models"]["resnet50-attn0"]["synthetic"]["mstl"], "wall_ms": [80 * ratio]}}
    one["models"]["resnet50-attn5"] = {"synthetic": slower}
    found = train_show.targets({"worlds": [one], "settings": {"stage": "stl_n", "size": size}})
    assert [target["reached"] for target in found] == reached


def gpu_targets(ssl: str | None, device: str = "NVIDIA H200") -> dict[str, tuple[str, bool]]:
    """What is held against 6,000 images a second of noise and 5,700 of shards, the plain loop doing 3,000 and 2,000."""

    def side(rate: float) -> dict[str, Any]:
        return {"wall_ms": [1.0], "median": {"wall_ms": 1.0}, "images_per_second": rate}

    feeds = {
        "synthetic": {"mstl": side(6000), "plain": side(3000)},
        "shards": {"mstl": side(5700), "plain": side(2000)},
    }
    one = {**world(1, 256, 1), "device_type": "cuda", "device": device, "models": {"resnet50-attn0": feeds}}
    found = train_show.targets({"worlds": [one], "settings": {"ssl": ssl, "size": 224}})
    return {target["what"]: (target["measured"], target["reached"]) for target in found}


def test_targets_of_an_h200_are_those_of_the_training_and_of_no_other_gpu() -> None:
    fed = {"resnet50-attn0 on shards against the plain loop": ("2.85 x", True),
           "resnet50-attn0: real images / noise": ("0.95", False)}  # fmt: skip
    assert gpu_targets(None) == {"resnet50-attn0 on shards, one H200": ("5,700/s", True), **fed}
    on_noise = {"resnet50-attn0 on synthetic against the plain loop": ("2.00 x", False)}
    assert gpu_targets("moco") == {"resnet50-attn0 on synthetic, one H200": ("6,000/s", True), **on_noise, **fed}
    assert gpu_targets("ours") == {**on_noise, **fed}  # region branches have no target of pairs a second
    assert gpu_targets(None, "NVIDIA L4") == {}


def test_what_is_wrong_is_said_before_ranks_are_started(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sample_sets: Path
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("ranks were started")

    monkeypatch.setattr(ranks, "on_ranks", never)
    other = tmp_path / "other.json"
    other.write_text("{}")
    for words, text in (
        (["--model", "resnet49"], "resnet49"),
        (["--shards", str(tmp_path)], str(tmp_path)),
        (["--shards", str(sample_sets / "imagenet"), "--batch", "64"], "do not fill a batch"),
        (["--images", str(tmp_path)], "goes with --shards"),
        (["--set", "optim.lrr=1"], "optim.lrr"),
        (["--ssl", "moco"], "supervised"),
        (["--stage", "sstl_m", "--ssl", "ours", "--side", "plain"], "nobody else"),
        (["--beside", str(other)], "no result of this training"),
        (["--ranks", "3", "--batch", "5", "--strong"], "less than 2 images"),
    ):
        with pytest.raises(MstlError, match=re.escape(text)):
            CliRunner(catch_exceptions=False).invoke(train_step.command, [*words, "--out", str(tmp_path / "x.json")])


@pytest.mark.slow
def test_momentum_contrast_on_two_ranks_tells_its_parts(tmp_path: Path) -> None:
    out = tmp_path / "moco.json"
    words = ("--stage", "sstl_m", "--model", "resnet14-attn1", "--ranks", "1", "--ranks", "2", "--strong", "--profile")
    body, text = run(out, *words, "--set", "loss.queue_size=64")
    worlds = body["worlds"]
    assert [(each["scaling"], each["ranks"], each["batch"]) for each in worlds] == [
        ("weak", 1, 4), ("weak", 2, 4), ("strong", 2, 2)
    ]  # fmt: skip
    parts = worlds[0]["profiles"]["resnet14-attn1"]["parts_ms"]
    assert {"EMA", "queue", "key encoder", "contrastive loss", "attention res3", "convolutions"} <= parts.keys()
    assert len(body["scaling"]) == 3 and "speed-up" in text
    assert list(worlds[1]["models"]["resnet14-attn1"]["synthetic"]) == ["mstl", "plain"]


@pytest.mark.slow
def test_a_launchers_ranks_are_taken_as_they_are(tmp_path: Path) -> None:
    earlier, out = tmp_path / "one.json", tmp_path / "two.json"
    words = ("--model", "resnet14", "--side", "mstl")
    run(earlier, *words)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m",
               "benchmarks.train_step", *SMALL, *words, "--beside", str(earlier), "--out", str(out)]  # fmt: skip
    done = subprocess.run(
        command, cwd=Path(train_step.__file__).parents[1], text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    body = json.loads(out.read_text())
    assert [each["ranks"] for each in body["worlds"]] == [2]
    assert [row["ranks"] for row in body["scaling"]] == [1, 2] and done.stdout.count("Wrote") == 1
