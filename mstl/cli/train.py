"""`mstl train`: one stage under the deepspeed launcher on this machine's devices."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any

import click

from mstl.cli.training_options import as_arguments, training_options


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
    """Run a training job under the launcher; returns its exit code, 130 or 143 when this process was signalled."""
    code, received = _run_forwarding_signals(launcher_command(options, ranks or _devices()))
    if received and code:
        return 128 + received
    # A rank has said what is wrong in its own line before it exits with 1; of anything else the launcher says nothing.
    if code not in (0, 1):
        click.echo(f"Error: a training process died (launcher's exit code {code}); see above", err=True)
    return code


def launcher_command(options: dict[str, Any], ranks: int) -> list[str]:
    """The command line that starts the ranks of a job on this machine."""
    script = find_spec("launch.train")
    assert script is not None and script.origin is not None, "launch is installed with mstl"
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--no_local_rank", "--log_level", "critical"]
    # An unreadable default hostfile path keeps a cluster's /job/hostfile from turning this into a multi-node job.
    launcher += ["--hostfile", os.devnull, "--num_gpus", str(ranks), "--master_port", str(_free_port())]
    return [*launcher, str(Path(script.origin)), *as_arguments(options)]


def _run_forwarding_signals(arguments: list[str]) -> tuple[int, int]:
    """Run in a process group of its own and pass signals to all of it: the launcher alone would orphan its ranks."""
    received = 0
    process = subprocess.Popen(arguments, start_new_session=True, env=_environment())

    def forward(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signature of a handler
        nonlocal received
        received = number
        os.killpg(process.pid, signal.SIGTERM)

    before = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        return process.wait(), received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _environment() -> dict[str, str]:
    environment = dict(os.environ)
    if not _cuda_present():
        environment.setdefault("DS_ACCELERATOR", "cpu")
    return environment


def _cuda_present() -> bool:
    return any(Path("/proc/driver/nvidia/gpus").glob("*")) or Path("/dev/nvidia0").exists()


def _devices() -> int:
    """GPUs this process may use, by the driver's own listing (importing torch here would cost seconds); at least 1."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return max(1, len([device for device in visible.split(",") if device.strip() not in ("", "-1")]))
    return max(1, len(list(Path("/dev").glob("nvidia[0-9]*"))))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
