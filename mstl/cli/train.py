"""`mstl train`: one stage under the deepspeed launcher on this machine's devices."""

from __future__ import annotations

import base64
import json
import os
import random
import socket
import sys
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from mstl.cli.beforehand import check_job, check_options
from mstl.cli.boundary import BUG
from mstl.cli.launcher import MODULE, Ended, Launcher
from mstl.cli.nodes import Nodes, launcher_words, node_options
from mstl.cli.training_options import as_arguments, settle_options, training_options
from mstl.failures import LOST, RESTART_CAUSE
from mstl.hostfile import read_hostfile
from mstl.places import run_folder, way_on
from mstl.surroundings import visible_devices
from shards.errors import MstlError

RECORD_SECONDS = 60.0  # longer than a network file system keeps what it has read
LONGEST_PAUSE_SECONDS = 60.0  # between the end of a job and its restart; the first is 1 s, each next twice as long


@click.command("train", context_settings={"show_default": True})
@training_options
@click.option("--ranks", type=click.IntRange(1), help="Processes.  [default: one a GPU, or one without GPUs]")
@click.option(
    "--max-restarts",
    type=click.IntRange(0),
    default=0,
    help="Start again behind the newest checkpoint, so often at "
    "most, when a rank or the launcher is lost; not behind a bug, or an error that names its remedy.",
)
@node_options
@click.option("--explain", "explained", is_flag=True, help="Print the recipe, number by number, and train nothing.")
def command(
    ranks: int | None,
    max_restarts: int,
    explained: bool,
    hostfile: Path | None,
    node_rank: int | None,
    master_addr: str | None,
    master_port: int | None,
    **options: Any,
) -> None:
    """Train one stage: `deepspeed launch/train.py` with this machine's devices.

    \b
    mstl train --stage stl_n                        the paper's recipe, resnet50-attn5
    mstl train --stage finetune --init-from runs/sstl_m
    mstl train --stage stl_m --ranks 2 --set optim.epochs=5 --set data.image_size=96
    mstl train --stage sstl_m --explain             the recipe: printed, resolved, used, and why
    mstl train --stage stl_n --hostfile hostfile --node-rank 0      one such command on every node

    Interrupt it with Ctrl-C or SIGTERM: it saves a checkpoint, and the same command continues.
    """
    if explained:
        from mstl.cli.recipe_table import explain

        explain(settle_options(options), options["flavour"])
        return
    nodes = Nodes(hostfile=hostfile, node_rank=node_rank, master_addr=master_addr, master_port=master_port)
    sys.exit(start(options, ranks, nodes, max_restarts))


def start(
    options: dict[str, Any],
    ranks: int | None = None,
    nodes: Nodes = Nodes(),  # noqa: B008 - frozen
    max_restarts: int = 0,
) -> int:
    """Run a training job under the launcher; returns its exit code, 128 + signal when this process was signalled.

    0 means that the run's record says "finished": a launcher that is killed outright exits with 0 too.
    """
    out = run_folder(options["out"], options["stage"], options.get("ssl"))
    if _already_finished(options, ranks, nodes):
        click.echo(f"{out}: already finished; name another --out to train again", err=True)
        return 0
    patience = RECORD_SECONDS if nodes.node_rank else 0.0
    environment = _environment()
    with Launcher(_script()) as launcher:
        for again in range(max_restarts + 1):
            ended = launcher.run(launcher_command(options, ranks, nodes), environment)
            if ended.code == 0 and _finished(out, patience):
                return 0
            if launcher.received:
                return 128 + launcher.received
            if again == max_restarts or not ended.transient:
                break
            pause = min(2.0**again, LONGEST_PAUSE_SECONDS)
            click.echo(f"{ended.cause}: starts again in {pause:.0f} s ({again + 1} of {max_restarts})", err=True)
            if not launcher.pause(pause):
                return 128 + launcher.received
            environment[RESTART_CAUSE] = ended.cause
            options = {**options, "resume": "auto"}
    return _told(ended, out, asked=max_restarts > 0)


def _already_finished(options: dict[str, Any], ranks: int | None, nodes: Nodes) -> bool:
    """Whether there is nothing to do; raises MstlError for what can be known to be wrong before anything is started."""
    if nodes == Nodes():
        return check_job(options, len(_devices(ranks))).finished
    launcher_words(nodes, ranks)  # refuses what contradicts itself
    assert nodes.hostfile is not None
    if nodes.node_rank is None:  # the job's files need not be seen from here, where its nodes are started
        check_options(options)
        return False
    return check_job(options, sum(host.slots for host in read_hostfile(nodes.hostfile))).finished


def _told(ended: Ended, out: Path, *, asked: bool) -> int:
    """The exit code of a job that did not finish, said in words where no rank has done so.

    asked: for restarts, so that it is said why there is none.
    """
    spoken = [code for code in ended.exits.values() if code]
    if ended.stopped:
        return next(code for code in spoken if code > 128)
    if ended.transient:
        click.echo(f"Error: the training processes ended early: {ended.cause} (see above); {way_on(out)}", err=True)
        return min((code for code in spoken if code != BUG), default=LOST)
    if ended.crashed:
        click.echo(
            f"{ended.crashed} crashed: a bug, see above{', which another start would meet again' * asked}", err=True
        )
        return BUG
    if asked:
        click.echo("not started again: what is said above would still be there", err=True)
    return min(spoken, default=0) or (ended.code if ended.code > 0 else 1)


def launcher_command(options: dict[str, Any], ranks: int | None, nodes: Nodes = Nodes()) -> list[str]:  # noqa: B008
    """The command line that starts the ranks of a job; `ranks` None is one for every GPU of this machine.

    On one machine it is what deepspeed's runner would start there: the runner loads torch only to do so.
    """
    quiet = ["--no_local_rank", "--log_level", "critical"]
    if nodes == Nodes():
        world = base64.urlsafe_b64encode(json.dumps({"localhost": _devices(ranks)}).encode()).decode()
        words = ["-u", "-m", f"{MODULE}.launch", f"--world_info={world}", "--master_port", str(_free_port())]
    else:
        words = ["-m", f"{MODULE}.runner", *launcher_words(nodes, ranks)]
    return [sys.executable, *words, *quiet, _script(), *as_arguments(options)]


def _script() -> str:
    script = find_spec("launch.train")
    assert script is not None and script.origin is not None, "launch is installed with mstl"
    return script.origin


def _devices(ranks: int | None) -> list[int]:
    """The numbers of this machine's devices, one for each rank; raises MstlError where there are not so many GPUs."""
    visible = visible_devices()
    if visible is None:
        gpus = len(list(Path("/dev").glob("nvidia[0-9]*")))
        if ranks is not None and 0 < gpus < ranks:
            raise MstlError(
                f"--ranks {ranks}",
                why=f"this machine has {gpus} GPUs",
                remedy="Name no more than that, or train on the CPU with CUDA_VISIBLE_DEVICES=-1",
            )
        return list(range(ranks or max(1, gpus)))
    if not visible:
        return list(range(ranks or 1))
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
    return [int(word) for word in visible[: ranks or len(visible)]]


def _finished(out: Path, patience_seconds: float) -> bool:
    """Whether the run's record says so, or comes to say so within the time: another node may be the one to write it."""
    deadline = time.monotonic() + patience_seconds
    while True:
        with suppress(OSError, ValueError, KeyError, TypeError):
            if json.loads((out / "run.json").read_text())["status"] == "finished":
                return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.2)


def _environment() -> dict[str, str]:
    environment = dict(os.environ)
    if not Path("/dev/nvidiactl").exists() or visible_devices() == []:
        environment.setdefault("DS_ACCELERATOR", "cpu")
    return environment


def _free_port() -> int:
    """A port nobody listens on, below those the system gives to outgoing connections, which could take it meanwhile."""
    for port in random.sample(range(20_000, 30_000), 50):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise MstlError("ports 20000 to 29999", why="no free one was found", remedy="End what occupies them")
