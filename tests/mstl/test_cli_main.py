"""The command's outside: help without heavy imports, exit codes, one line for an expected failure."""

import base64
import json
import subprocess
import sys

import pytest
from click.testing import CliRunner
from torch.distributed import DistStoreError

from mstl.cli import main as cli
from mstl.cli.train import launcher_command
from mstl.cli.training_options import as_arguments
from shards.errors import MstlError


def test_help_imports_nothing_heavy_and_names_every_command() -> None:
    code = (
        "import sys\n"
        "from mstl.cli.main import group\n"
        "from click.testing import CliRunner\n"
        "for words in [['--help'], ['train', '--help'], ['shard', '--help'], ['demo', '--help']]:\n"
        "    result = CliRunner().invoke(group, words)\n"
        "    assert result.exit_code == 0, result.output\n"
        "heavy = {'numpy', 'PIL', 'torch', 'nvidia.dali', 'deepspeed', 'torchvision', 'matplotlib', 'torchmetrics',\n"
        "         'pydantic'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help_that_teaches(name: str) -> None:
    result = CliRunner().invoke(cli.group, [name, "--help"])
    assert result.exit_code == 0, result.output
    assert len(result.output.splitlines()) > 8


@pytest.mark.parametrize(
    ("error", "code", "shown"),
    [
        (MstlError("thing", why="it is broken", remedy="Mend it"), 1, "Error: thing: it is broken. Mend it\n"),
        (KeyboardInterrupt(), 130, ""),
        (OSError(28, "No space left on device", "/x/y"), 1, "Error: /x/y: No space left on device."),
        (RuntimeError("gloo: Connection closed by peer [::1]"), 4, "Error: another rank has ended"),
        (
            RuntimeError(
                "[/x/gloo/transport/tcp/pair.cc:553] Connection closed by peer [10.0.0.2]:4242. Check the logs."
            ),
            4,
            "Error: another rank has ended or does not answer (Connection closed by peer [10.0.0.2]:4242); its own",
        ),
        (DistStoreError("wait timeout after 1000ms"), 4, "does not answer (wait timeout after 1000ms)"),
        (RuntimeError("something else"), 3, "Traceback"),
        (ZeroDivisionError("a bug"), 3, "ZeroDivisionError: a bug"),
    ],
)
def test_the_error_boundary(
    error: BaseException,
    code: int,
    shown: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr(cli.group, "main", fail)
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == code
    assert shown in capsys.readouterr().err


def test_usage_errors_exit_with_2() -> None:
    for words in (["nonsense"], ["train"], ["train", "--stage", "stl_x"], ["sample", "--seed", "-1"]):
        done = subprocess.run([sys.executable, "-m", "mstl", *words], capture_output=True, text=True, check=False)
        assert done.returncode == 2, done
        assert "Traceback" not in done.stderr


def test_options_reach_the_training_script_unchanged() -> None:
    options = {"stage": "stl_n", "init_from": "runs/x", "shards": None, "overrides": ("a.b=1", "c.d=x y")}
    arguments = as_arguments(options)
    assert arguments == ["--stage", "stl_n", "--init-from", "runs/x", "--set", "a.b=1", "--set", "c.d=x y"]
    words = launcher_command(options, 2)
    assert words[-len(arguments) - 1].endswith("launch/train.py")


@pytest.mark.parametrize(
    ("visible", "ranks", "expected"),
    [(None, 2, [0, 1]), ("", 1, [0]), ("-1", 3, [0, 1, 2]), ("2,3,5", None, [2, 3, 5]), ("2,3,5", 2, [2, 3])],
)
def test_the_launcher_gets_the_visible_gpus(
    visible: str | None, ranks: int | None, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    from deepspeed.launcher.launch import parse_args

    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    words = launcher_command({"stage": "stl_n"}, ranks)
    monkeypatch.setattr(sys, "argv", words[words.index("deepspeed.launcher.launch") :])
    parsed = parse_args()
    assert json.loads(base64.urlsafe_b64decode(parsed.world_info)) == {"localhost": expected}
    assert (parsed.no_local_rank, parsed.log_level, parsed.master_addr) == (True, "critical", "127.0.0.1")
    assert parsed.training_script.endswith("launch/train.py") and parsed.training_script_args == ["--stage", "stl_n"]


@pytest.mark.parametrize(("visible", "ranks"), [("GPU-8a1b", None), ("0", 2)])
def test_gpus_that_the_launcher_cannot_give_are_refused(
    visible: str, ranks: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(MstlError):
        launcher_command({}, ranks)
