"""The benchmark of the plan as index files: it runs, its JSON is what the README says. No timing."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks import plan_index, plan_reading
from benchmarks.plan_reading import BATCH, SHUFFLED, chunk_side, orders, shuffling, small_set
from shards.index import read_index
from shards.progress import QUIET

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_set(600, 100, tmp_path_factory.mktemp("small"), QUIET)


def test_a_small_run_writes_what_the_readme_says(tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    words = ["--samples", 5200, "--per-tar", 104, "--chunk", 8, "--images", 600, "--repeats", 1, "--scratch", tmp_path,
             "--out", out]  # fmt: skip
    done = CliRunner(catch_exceptions=False).invoke(plan_index.command, [str(word) for word in words])
    assert done.exit_code == 0 and f"Wrote {out}" in done.output
    body = json.loads(out.read_text())
    eight, one = body["costs"]
    assert (eight["world"], one["world"]) == (8, 1) and one["chunk"] == 8
    # 20 whole batches of one rank, and 2 of each of 8: chunks of 8, hardly ever two of the same tar in a row.
    assert 0.9 * 5120 / 8 < one["pairs"] <= 5120 / 8 and one["written_pairs"] == one["pairs"]
    assert 0.8 * 512 / 8 < eight["pairs"] <= 512 / 8
    assert one["index_mb"] == pytest.approx(5120 * 142e-6, rel=0.1) and one["disk_mb"] >= one["index_mb"]
    assert list(body["sides"]) == ["plan, chunk 8", SHUFFLED] == list(body["shuffling"])
    documented = set(re.findall(r"`([a-z0-9_. -]+)`", (ROOT / "benchmarks/README.md").read_text()))
    parts = (body, body["settings"], one, body["shuffling"][SHUFFLED])
    assert not {name for part in parts for name in part} - documented


def test_made_up_lines_are_indexes_of_files_of_their_size(tmp_path: Path) -> None:
    made = plan_index.made_up_split(250, 100, tmp_path)
    assert [shard.size_bytes for shard in made.shards] == [Path(shard.tar).stat().st_size for shard in made.shards]
    tars, indexes = made.write(np.array([249, 3, 101]), tmp_path)
    assert [Path(tar).stem for tar in tars] == ["000002", "000000", "000001"]
    (sample,) = read_index(Path(indexes[0]))
    assert [part.ext for part in sample] == ["jpg", "cls", "json", "i64"] and sample[0].name.endswith("_249.jpg")
    assert sample[-1].offset + sample[-1].size < made.shards[2].size_bytes


@pytest.mark.parametrize("side", [chunk_side(1), chunk_side(32), SHUFFLED])
def test_both_epochs_hold_their_samples_once(small: Path, side: str) -> None:
    for order in orders(small, side):
        expected = 600 if side == SHUFFLED else 600 // BATCH * BATCH
        assert len(order) == expected == len(set(order.tolist())) and set(order.tolist()) <= set(range(600))


def test_reading_counts_the_images_of_whole_epochs(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_reading, "LEAST_CPU_SECONDS", 0.01)
    assert plan_reading.read_speed(small, chunk_side(8)).images % 512 == 0
    assert plan_reading.read_speed(small, SHUFFLED).images % 600 == 0


def test_shuffling_of_known_orders() -> None:
    stored = np.arange(4 * BATCH)
    same = shuffling(stored, stored)
    assert same["rank_correlation"] == pytest.approx(1) and same["stored_correlation"] == pytest.approx(1)
    assert same["batch_mates_kept"] == 1 and same["batch_mates_by_chance"] == pytest.approx(255 / 1023)
    back = shuffling(stored[::-1], stored)
    assert back["rank_correlation"] == pytest.approx(-1) and back["batch_mates_kept"] == 1
    dealt = shuffling(stored, stored.reshape(4, BATCH).T.reshape(-1))  # every batch of the second has a quarter of each
    assert dealt["batch_mates_kept"] == pytest.approx((BATCH / 4 - 1) / (BATCH - 1))
    assert 0 < dealt["rank_correlation"] < 0.3
    random = np.random.default_rng(0)
    chance = shuffling(random.permutation(100 * BATCH), random.permutation(100 * BATCH))
    assert abs(chance["rank_correlation"]) < 0.02 and abs(chance["stored_correlation"]) < 0.02
    assert chance["batch_mates_kept"] == pytest.approx(chance["batch_mates_by_chance"], rel=0.05)
