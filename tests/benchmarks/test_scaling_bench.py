"""The scaling benchmark: its arithmetic against closed forms and slow simulations, its plan against counting."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks import scaling, scaling_check, scaling_plan
from benchmarks.scaling_check import Small, fit
from benchmarks.scaling_model import (
    EFFICIENCY,
    EMBEDDING_BYTES,
    NETWORKS,
    NVLINK,
    Work,
    all_reduce_seconds,
    compute_seconds,
    exchange_seconds,
    fixed_and_per_image,
    gather_seconds,
    h100_step,
    predict,
)
from benchmarks.scaling_plan import Set, simulate

FAST, MIDDLE, SLOW = NETWORKS
WORK = Work("stl_n", "resnet50-attn5", 160_000_000, 1, 0, 1, 0)
CONTRAST = Work("sstl_m", "resnet50-attn5", 150_000_000, 6, 1, 7 / 3, scaling.IMAGE_BYTES)


def ring_by_steps(size: float, speeds: list[float], latencies: list[float]) -> float:
    """A ring all-reduce played step by step: 2 (n - 1) times every GPU sends its neighbour one n-th."""
    count = len(speeds)
    return sum(
        max(size / count / speed for speed in speeds) + sum(latencies) / count for _ in range(2 * (count - 1))
    )  # fmt: skip


def test_a_ring_inside_a_node() -> None:
    speed = NVLINK.node_bytes.value * EFFICIENCY.value
    slow = ring_by_steps(1e8, [speed] * 8, [NVLINK.latency.value] * 8)
    assert all_reduce_seconds(1e8, 8, SLOW, "ring") == pytest.approx(slow)
    assert all_reduce_seconds(1e8, 8, FAST, "hierarchical") == pytest.approx(slow)


def test_a_ring_over_nodes_is_as_slow_as_its_slowest_link() -> None:
    inside = NVLINK.node_bytes.value * EFFICIENCY.value
    card = FAST.node_bytes.value / FAST.nics * EFFICIENCY.value
    speeds = [inside] * 7 + [card] + [inside] * 7 + [card]
    latencies = ([NVLINK.latency.value] * 7 + [FAST.latency.value]) * 2
    for size in (1e3, 1e9):
        assert all_reduce_seconds(size, 16, FAST, "ring") == pytest.approx(ring_by_steps(size, speeds, latencies))


def test_the_hierarchy_uses_every_card_and_has_few_hops() -> None:
    size, speed = 1e9, FAST.node_bytes.value * EFFICIENCY.value
    inside = all_reduce_seconds(size, 8, FAST, "ring")
    over = all_reduce_seconds(size, 1024, FAST, "hierarchical") - inside
    assert over == pytest.approx(2 * 127 / 128 * size / speed + 2 * 7 * FAST.latency.value)
    assert all_reduce_seconds(8, 1024, MIDDLE, "ring") > 10 * all_reduce_seconds(8, 1024, MIDDLE, "hierarchical")


def test_the_published_anchors_come_out_again() -> None:
    fixed, per_image = fixed_and_per_image()
    assert 400 / (fixed + 400 * per_image) == pytest.approx(7950)
    assert 400 / h100_step(400) == pytest.approx(7162) and 50 / h100_step(50) == pytest.approx(0.69 * 7162)
    for point in scaling.third_point():
        assert 0.9 < point["predicted_over_reported"] < 1.1
    ideal = 102.4e6  # facts: 8 GPUs over NVLink, 400 Gb/s a GPU, 100 Gb/s a node; at line rate
    assert 2 * 7 / 8 * ideal / NVLINK.node_bytes.value == pytest.approx(0.40e-3, rel=0.01)
    assert 2 * ideal / MIDDLE.node_bytes.value == pytest.approx(16e-3, rel=0.03)


def test_a_key_costs_a_third_of_a_query() -> None:
    fixed, _ = fixed_and_per_image()
    queries = Work("x", "resnet50-attn0", 0, 1, 0, 0, 0)
    keys = Work("x", "resnet50-attn0", 0, 0, 1, 0, 0)
    assert compute_seconds(keys, 64) == pytest.approx(compute_seconds(queries, 64) / 3)
    assert compute_seconds(Work("x", "resnet50-attn0", 0, 1, 0, 2, 0), 64) - compute_seconds(queries, 64) \
        == pytest.approx(2 * fixed)  # fmt: skip


def test_overlap_hides_what_backward_covers_but_for_the_last_bucket() -> None:
    alone = predict(WORK, 256, 1, FAST, algorithm="hierarchical", overlap=False)
    assert (alone.reduce, alone.exchange, alone.efficiency) == (0, 0, 1)
    plain = predict(WORK, 256, 64, FAST, algorithm="hierarchical", overlap=False)
    hidden = predict(WORK, 256, 64, FAST, algorithm="hierarchical", overlap=True)
    assert plain.exposed == plain.reduce == hidden.reduce
    assert hidden.exposed == pytest.approx(plain.reduce / 7)  # 160 MB are 7 buckets of 25 MiB
    slow = predict(WORK, 256, 64, SLOW, algorithm="hierarchical", overlap=True)
    assert slow.exposed == pytest.approx(slow.reduce - 2 / 3 * slow.compute)
    for each in (plain, hidden, slow):
        assert each.step == pytest.approx(each.compute + each.exposed)
        assert each.images_per_second == pytest.approx(64 * 256 / each.step)


def test_gathering_grows_with_the_ranks_and_exchanging_does_not() -> None:
    size, node = 19e6, MIDDLE.node_bytes.value * EFFICIENCY.value
    for nodes in (2, 16, 128):
        gathered = gather_seconds(size, 8 * nodes, MIDDLE)
        exchanged = exchange_seconds(size, 8 * nodes, MIDDLE)
        assert gathered == pytest.approx((nodes - 1) * 8 * size / node, rel=0.01)
        assert exchanged == pytest.approx(8 * size * (nodes - 1) / nodes / node, rel=0.05)
    images, keys = 32 * 3 * 224 * 224 * 4, 32 * EMBEDDING_BYTES
    assert predict(CONTRAST, 32, 1024, FAST, algorithm="ring", overlap=True).exchange == pytest.approx(
        exchange_seconds(images, 1024, FAST) + gather_seconds(keys, 1024, FAST)
    )


def test_gradients_are_those_of_the_real_networks() -> None:
    from mstl.models.classifier import Classifier
    from mstl.models.registry import build_backbone

    (real,) = [work for work in scaling.works() if work.name == "stl_n" and work.model == "resnet50-attn5"]
    parameters = Classifier(build_backbone("resnet50-attn5"), 1000).parameters()
    assert real.gradient_bytes == 4 * sum(parameter.numel() for parameter in parameters)


def test_a_line_is_found_through_its_points() -> None:
    sizes = [1000, 10_000, 1_000_000]
    latency, speed = fit(sizes, [2e-4 + size / 5e8 for size in sizes])
    assert latency == pytest.approx(2e-4) and speed == pytest.approx(5e8)
    assert fit([10, 20], [1.0, 3.0])[0] == 0  # no message is sent before it is asked for


def test_every_rank_of_a_plan_is_counted(tmp_path: Path) -> None:
    found = simulate(Set("made up", 1000, 100, "drop", rank_batch=8), 4, tmp_path)
    assert (found["steps_per_epoch"], found["samples_per_rank"], found["left_out"]) == (31, 248, 8)
    assert found["tars"] == 10 and found["tars_per_rank"] == {"least": 10, "mean": 10.0, "most": 10}
    assert found["ranks_per_tar"] == 4.0 and found["bytes_most_over_mean"] >= 1
    assert found["index_files"] == pytest.approx(found["pairs_per_rank"]["mean"], rel=0.1)
    assert 0.9 * 248 < found["pairs_per_rank"]["most"] <= 248  # single samples: hardly two of a tar in a row


def test_a_plan_that_cannot_be_says_why(tmp_path: Path) -> None:
    small = Set("small", 425, 1000, "keep", batch=256)
    assert "multiple of 1024" in simulate(small, 1024, tmp_path)["refused"]
    assert "needs two" in simulate(small, 256, tmp_path)["refused"]
    assert simulate(small, 2, tmp_path)["samples_per_rank"] == 212


@pytest.mark.long
def test_two_ranks_are_measured_and_predicted(tmp_path: Path) -> None:
    found = scaling_check.check(Small(batch=2, size=32, rounds=2, sizes=(2**12, 2**16, 2**20)), tmp_path)
    ranks = found["ranks"]
    assert found["gradient_bytes"] == found["reduce"]["bytes"] and found["exchange"]["bytes"] == 2 * 3 * 32 * 32 * 4
    medians = found["median_seconds"]
    assert ranks["2"]["predicted_seconds"] == pytest.approx(medians["beside"] + found["reduce"]["predicted_seconds"])
    assert ranks["2"]["measured_seconds"] == medians["together"]
    line = np.polyfit([1, 4], [medians["alone"], medians["alone, 4 times"]], 1)
    assert ranks["1"]["predicted_seconds"] == pytest.approx(np.polyval(line, 2))
    assert ranks["1"]["measured_seconds"] == medians["alone, twice"]
    assert all(part["predicted_over_measured"] > 0 for part in ranks.values())


def test_the_command_writes_its_json_and_its_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = {"predicted_seconds": 1.0, "measured_seconds": 2.0, "predicted_over_measured": 0.5}
    monkeypatch.setattr(scaling, "check", lambda small, folder: {"ranks": {"2": part}})
    monkeypatch.setattr(scaling, "SETS", (Set("made up", 10_000, 1000, "drop", rank_batch=2),))
    monkeypatch.setattr(scaling, "GPUS", (1, 8, 64))
    out = tmp_path / "scaling.json"
    done = CliRunner(catch_exceptions=False).invoke(scaling.command, ["--out", str(out)])
    assert done.exit_code == 0 and "Predicted against measured" in done.output
    body = json.loads(out.read_text())
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert body["assumptions"] and {given["origin"] for given in body["inputs"]} == {
        "reported", "derived", "assumed", "measured"
    }  # fmt: skip
    assert all(given["source"] for given in body["inputs"])
    assert len(body["plans"]) == 3 and [plan["gpus"] for plan in body["plans"]] == [1, 8, 64]
    shares = np.array([row["efficiency"] for row in body["predictions"]])
    assert shares.shape[1] == 3 and np.all(shares[:, 0] == 1) and np.all(np.diff(shares, axis=1) <= 0)


def test_as_many_index_files_as_the_loader_writes() -> None:
    from pipelines import windows

    assert scaling_plan.MOST_PAIRS == windows.WINDOW_PAIRS
