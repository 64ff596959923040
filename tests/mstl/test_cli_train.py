"""`mstl train`: its options beside the launcher's, and --explain."""

import json
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from mstl.cli.boundary import exit_with
from mstl.cli.train import command
from mstl.cli.training_options import as_arguments, training_options

# Words of a job with every kind of option: a choice, a value, a repeated one, a flag.
JOB = {
    "stage": "sstl_m",
    "ssl": "moco_v2",
    "model": "resnet50-attn5",
    "shards": Path("data/shards/covid19-ct"),
    "cache": Path("cache"),
    "cache_limit": 10**9,
    "out": Path("runs/one"),
    "init_from": "none",
    "seed": 3,
    "resume": "must",
    "flavour": "printed",
    "config": Path("recipe.toml"),
    "overrides": ("optim.lr=0.1", "optim.epochs=2"),
    "compile": True,
    "waive_leakage": ("one", "two"),
}


@click.command()
@training_options
def echo(**options: object) -> None:
    """Print what arrived."""
    click.echo(json.dumps(options, default=str))


def test_options_arrive_as_they_were_given() -> None:
    flags = {option.name for option in echo.params}
    assert set(JOB) <= flags
    given = {name: str(value) if isinstance(value, Path) else value for name, value in JOB.items()}
    printed = json.loads(CliRunner().invoke(echo, as_arguments(JOB), catch_exceptions=False).output)
    assert {name: printed[name] for name in given} == json.loads(json.dumps(given))
    assert "--compile" not in as_arguments({**JOB, "compile": False})


def test_no_option_is_taken_for_one_of_the_launchers() -> None:
    from deepspeed.launcher.launch import parse_args as parse_launch
    from deepspeed.launcher.runner import parse_args as parse_runner

    flags = [flag for option in echo.params for flag in option.opts]
    words = [word for flag in flags for word in (flag, "1")]
    assert len(flags) > 10
    found = parse_runner(["--no_local_rank", "train.py", *words])
    assert found.user_args == words
    plain = parse_runner(["--no_local_rank", "train.py"])
    assert {**vars(found), "user_args": []} == vars(plain)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["launch.py", "--world_info", "x", "train.py", *words])
        found = parse_launch()
    assert (found.training_script, found.training_script_args) == ("train.py", words)


def explained(*words: str) -> str:
    """What `mstl train … --explain` prints into a pipe of 140 columns, and with exit code 0."""
    result = CliRunner(env={"COLUMNS": "140"}).invoke(command, [*words, "--explain"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def row(text: str, field: str) -> list[str]:
    """The words of a field's line."""
    return next(line.split() for line in text.splitlines() if line.split()[:1] == [field])


def test_explain_prints_every_number_as_plain_text() -> None:
    text = explained("--stage", "sstl_m", "--set", "data.batch_size=64", "--compile")
    assert row(text, "optim.lr")[:5] == ["optim.lr", "0.3", "0.03", "0.0075", "scaled"]
    assert row(text, "loss.queue_size") == ["loss.queue_size", "-", "256", "256", "ours"]
    assert row(text, "engine.compile")[3:5] == ["true", "--compile"]
    assert row(text, "flip")[:3] == ["flip", "0.5", "0.5"]
    assert "\x1b" not in text


def test_explain_fits_a_narrow_terminal_with_its_reasons_below() -> None:
    result = CliRunner(env={"COLUMNS": "80"}).invoke(command, ["--stage", "finetune", "--explain"])
    assert max(map(len, result.output.splitlines())) <= 80
    assert row(result.output, "optim.lr")[:4] == ["optim.lr", "0.3", "0.03", "0.03"]
    assert "optim.lr: all else is MoCo" in result.output


@pytest.mark.parametrize("method", ["ours", "moco", "moco_v2", "simclr"])
def test_explain_knows_the_methods(method: str) -> None:
    text = explained("--stage", "sstl_m", "--ssl", method)
    assert f"--ssl {method}" in text
    assert row(text, "views")[1] == ("two_and_regions" if method == "ours" else "two")


def test_explain_refuses_what_training_would(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--stage", "stl_n", "--ssl", "moco", "--explain"]
    with pytest.raises(SystemExit) as caught:
        exit_with(lambda: command.main(words, standalone_mode=False))
    assert caught.value.code == 1
    assert "stage stl_n is supervised" in capsys.readouterr().err


def test_explain_needs_neither_torch_nor_data(tmp_path: Path) -> None:
    code = (
        "import sys; from mstl.cli.train import command\n"
        "command.main(['--stage', 'sstl_m', '--explain'], standalone_mode=False)\n"
        "print([name for name in ('torch', 'nvidia.dali', 'deepspeed') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
