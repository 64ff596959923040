"""`mstl bench`: the benchmarks, which live in a source checkout beside the packages and are loaded when called."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import click

from shards.errors import MstlError

# Name → (module, what `mstl bench --help` says of it); every module has a `command`.
BENCHMARKS = {
    "attention": ("benchmarks.attention", "Self-attention by each backend, against the limits of the device."),
    "engine": ("benchmarks.engine", "A step under our engine against torch DDP, and the way to the first step."),
    "loader": ("benchmarks.loader", "Our Loader against its peers, on the same files."),
    "locate": ("benchmarks.locate_share", "What finding the lungs takes of the SSTL-M graph."),
    "plan": ("benchmarks.plan_index", "The plan as index files: planning, writing, reading, shuffling."),
    "scaling": ("benchmarks.scaling", "What 1 to 1,024 GPUs would do, predicted and planned."),
    "train": ("benchmarks.train_step", "A training step against a plain loop; where it goes; how it scales."),
    "shard-write": ("benchmarks.shard_write", "Writing shards against webdataset's ShardWriter."),
    "shard-scale": ("benchmarks.shard_scale", "Manifests and plans of up to a billion images."),
}


class _Lazy(click.Group):
    """A group that imports a benchmark only when it is called (the context is of no interest to it)."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(BENCHMARKS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in BENCHMARKS:
            return None
        _require_checkout(cmd_name)
        command: click.Command = import_module(BENCHMARKS[cmd_name][0]).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Benchmarks"):
            formatter.write_dl([(name, about) for name, (_, about) in BENCHMARKS.items()])


@click.group("bench", cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """Measure throughput against named peers; each benchmark writes a JSON.

    \b
    Examples:
      mstl bench loader --raw data/raw/imagenet/train
      mstl bench plan
    """


def _require_checkout(name: str) -> None:
    """Let the folder of benchmarks be imported from anywhere, and by the processes that they start."""
    checkout = Path(__file__).parents[2]
    if find_spec("benchmarks") is None and (checkout / "benchmarks" / "__init__.py").exists():
        sys.path.append(str(checkout))  # an editable install knows the installed packages only
    if find_spec("benchmarks") is None:
        raise MstlError(
            f"mstl bench {name}",
            why="the benchmarks are part of a source checkout, not of the installed package",
            remedy="Clone the repository and install it with pip install -e '.[bench]'",
        )
