"""What `mstl bench locate` says: shares of medians and leasts; and that it runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.locate_share import SIDES, command, summary
from shards.errors import MstlError


def test_shares_are_what_goes_when_the_box_is_given() -> None:
    found = summary(dict(zip(SIDES, ([10.0, 8.0, 30.0], [9.0, 7.0, 9.5]), strict=True)))
    assert found["median_cpu_ms"] == {"whole": 10.0, "box given": 9.0}
    assert found["share"] == pytest.approx(0.1)
    assert found["share_of_least"] == pytest.approx(1 / 8)


def test_too_few_slices_for_a_batch_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MstlError, match="--batch 64"):
        CliRunner(catch_exceptions=False).invoke(command, ["--images", "4", "--out", str(tmp_path / "x.json")])


@pytest.mark.slow
def test_a_tiny_run(tmp_path: Path) -> None:
    out = tmp_path / "tiny.json"
    words = ["--images", "8", "--size", "24", "--batch", "4", "--threads", "1", "--seconds", "0.01", "--repeats", "1"]
    done = CliRunner(catch_exceptions=False).invoke(command, [*words, "--out", str(out)])
    assert done.exit_code == 0, done.output
    body = json.loads(out.read_text())
    assert list(body["cpu_ms"]) == list(SIDES) and body["data"]["kind"] == "generated"
    assert body["share"] == pytest.approx(1 - body["cpu_ms"]["box given"][0] / body["cpu_ms"]["whole"][0])
    assert str(tmp_path) not in out.read_text()
