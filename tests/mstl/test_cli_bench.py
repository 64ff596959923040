"""`mstl bench`: every benchmark is found from anywhere, and its absence is said."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from mstl.cli import bench
from shards.errors import MstlError


@pytest.mark.parametrize("name", bench.BENCHMARKS)
def test_every_benchmark_is_a_command(name: str) -> None:
    done = CliRunner(catch_exceptions=False).invoke(bench.command, [name, "--help"])
    assert done.exit_code == 0 and "--out" in done.output and "Measure" in done.output


def test_benchmarks_are_found_from_another_folder_and_listed_without_loading_them(tmp_path: Path) -> None:
    program = "import sys; from mstl.cli.main import group; group(sys.argv[1:], standalone_mode=False); " \
              "print('torch' in sys.modules, 'benchmarks' in sys.modules)"  # fmt: skip
    environment = {"PATH": "/usr/bin:/bin"}
    root = str(Path(bench.__file__).parents[2])

    def run(*words: str) -> str:
        code = f"import sys; sys.path.append({root!r}); {program}"
        done = subprocess.run([sys.executable, "-c", code, *words], cwd=tmp_path, env=environment, text=True,
                              capture_output=True, check=False)  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    listed = run("bench", "--help")
    assert all(name in listed for name in bench.BENCHMARKS) and listed.endswith("False False\n")
    assert "made-up" in run("bench", "plan", "--help") or "plan" in run("bench", "plan", "--help")


def test_an_installed_package_without_benchmarks_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bench, "find_spec", lambda name: None)
    monkeypatch.setattr(bench, "__file__", str(tmp_path / "mstl" / "cli" / "bench.py"))
    with pytest.raises(MstlError, match=r"mstl bench plan: the benchmarks are part of a source checkout"):
        CliRunner(catch_exceptions=False).invoke(bench.command, ["plan"])


def test_the_checkout_beside_the_package_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "__init__.py").touch()
    path = list(sys.path)
    monkeypatch.setattr(sys, "path", path)
    monkeypatch.setattr(bench, "find_spec", lambda name: None if str(tmp_path) not in path else object())
    monkeypatch.setattr(bench, "__file__", str(tmp_path / "mstl" / "cli" / "bench.py"))
    assert bench.command.get_command(None, "plan") is not None
    assert path[-1] == str(tmp_path)


def test_unknown_benchmarks_are_a_usage_error() -> None:
    assert CliRunner().invoke(bench.command, ["no-such"]).exit_code == 2
