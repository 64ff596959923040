"""`mstl train`: one stage under the deepspeed launcher on this machine's devices."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any

import click

from mstl.cli.training_options import as_arguments, training_options
from shards.errors import MstlError

LAUNCHER = "deepspeed.launcher"
COMMAND_PID = "MSTL_COMMAND_PID"  # in the ranks' environment: they stop when that process is gone


@click.command("train", context_settings={"show_default": True})
@training_options
@click.option("--ranks", type=click.IntRange(1), help="Processes.  [default: one a GPU, or one without GPUs]")
def command(ranks: int | None, **options: Any) -> None:
    """Train one stage: `deepspeed launch/train.py` with this machine's devices.

    \b
    mstl train --stage stl_n                        the paper's recipe, resnet50-attn5
    mstl train --stage finetune --init-from runs/sstl_m
    mstl train --stage stl_m --ranks 2 --set optim.epochs=5 --set data.image_size=96

    Interrupt it with Ctrl-C or SIGTERM: it saves a checkpoint, and the same command continues.
    """
    sys.exit(start(options, ranks))


def start(options: dict[str, Any], ranks: int | None = None) -> int:
    """Run a training job under the launcher; returns its exit code, 128 + signal when this process was signalled.

    0 means that the run's record says "finished": a launcher that is killed outright exits with 0 too.
    """
    code, received = _run_forwarding_signals(launcher_command(options, ranks))
    if code == 0 and _finished(Path(options["out"] or f"runs/{options['stage']}")):
        return 0
    if received:
        return 128 + received
    # A rank has said what is wrong in a line of its own before it exits with 1; of anything else nobody has spoken.
    if code != 1:
        click.echo(f"Error: the training processes ended early (launcher's exit code {code}); see above", err=True)
    return code or 1


def launcher_command(options: dict[str, Any], ranks: int | None) -> list[str]:
    """The command line that starts the ranks of a job on this machine; `ranks` None is one for every GPU."""
    # The null device as hostfile keeps a cluster's /job/hostfile from turning this into a job on many nodes.
    launcher = [sys.executable, "-m", f"{LAUNCHER}.runner", "--no_local_rank", "--log_level", "critical"]
    launcher += ["--hostfile", os.devnull, "--master_port", str(_free_port()), *_devices(ranks)]
    return [*launcher, _script(), *as_arguments(options)]


def _script() -> str:
    script = find_spec("launch.train")
    assert script is not None and script.origin is not None, "launch is installed with mstl"
    return script.origin


def _devices(ranks: int | None) -> list[str]:
    """The launcher's words for the devices: given --num_gpus it would forget CUDA_VISIBLE_DEVICES."""
    visible = [word.strip() for word in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if word.strip()]
    if not visible or visible == ["-1"]:
        return ["--num_gpus", str(ranks or max(1, len(list(Path("/dev").glob("nvidia[0-9]*")))))]
    if not all(word.isdigit() for word in visible):
        raise MstlError(
            f"CUDA_VISIBLE_DEVICES={','.join(visible)}",
            why="the launcher takes GPUs by number only",
            remedy="Name them by number, as nvidia-smi lists them",
        )
    if ranks is not None and ranks > len(visible):
        raise MstlError(
            f"--ranks {ranks}",
            why=f"CUDA_VISIBLE_DEVICES names {len(visible)} GPUs",
            remedy="Name more GPUs or fewer ranks",
        )
    return ["--include", "localhost:" + ",".join(visible[: ranks or len(visible)])]


def _run_forwarding_signals(arguments: list[str]) -> tuple[int, int]:
    """Run the launcher and pass signals on to its ranks; returns its exit code and the signal received, else 0.

    The launcher itself must not get the first one: it would die at once, or kill its ranks while they save. The
    second signal goes to everybody.
    """
    received = 0
    process = subprocess.Popen(arguments, start_new_session=True, env=_environment())

    def forward(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signature of a handler
        nonlocal received
        ranks = [] if received else _ranks(process.pid)
        received = number
        # Whoever has ended meanwhile needs no signal, and must not keep it from the others.
        if not ranks:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        for rank in ranks:
            with suppress(ProcessLookupError):
                os.kill(rank, signal.SIGTERM)

    before = {n: signal.signal(n, forward) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    try:
        return process.wait(), received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _ranks(launcher: int) -> list[int]:
    """The training processes below the launcher; none while it is still starting, or when it has ended."""
    import psutil

    found = []
    with suppress(psutil.NoSuchProcess):
        for process in psutil.Process(launcher).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                words = process.cmdline()
                if _script() in words and not any(word.startswith(LAUNCHER) for word in words):
                    found.append(process.pid)
    return found


def _finished(out: Path) -> bool:
    try:
        return bool(json.loads((out / "run.json").read_text())["status"] == "finished")
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _environment() -> dict[str, str]:
    environment = {**os.environ, COMMAND_PID: str(os.getpid())}
    if not Path("/dev/nvidiactl").exists():
        environment.setdefault("DS_ACCELERATOR", "cpu")
    return environment


def _free_port() -> int:
    """A port nobody listens on, below those the system gives to outgoing connections, which could take it meanwhile."""
    for port in random.sample(range(20_000, 30_000), 50):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise MstlError("ports 20000 to 29999", why="no free one was found", remedy="End what occupies them")
