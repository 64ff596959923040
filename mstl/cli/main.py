"""The `mstl` command: its subcommands, loaded when called, and the one error boundary."""

from __future__ import annotations

from importlib import import_module

import click

from mstl import __version__
from mstl.cli.boundary import exit_with, take_sigterm

# Name → what `mstl --help` says of it; each lives in mstl/cli/NAME.py as `command`. Listing them here keeps
# `mstl --help` free of torch, DALI and DeepSpeed.
COMMANDS = {
    "sample": "Write the synthetic sample data in the real raw layouts.",
    "shard": "Convert raw images to tar shards.",
    "inspect": "Show what is in a shard set, with a contact sheet.",
    "verify": "Check a shard set against its manifest, byte for byte.",
    "leakage": "Find what the splits of shard sets share and must not.",
    "locate": "Find the lungs in CT slices and show the five regions.",
    "models": "List the networks and what they cost.",
    "train": "Train one stage.",
    "runs": "List runs and how they stand.",
    "run": "Run a study: many trainings, evaluations and measurements.",
    "evaluate": "Measure a trained run on a split.",
    "compare": "Say by how much one run is better than another.",
    "explain": "Draw Grad-CAM and attention heatmaps, measure them against lung masks.",
    "predict": "Ask a trained run about image files.",
    "export": "Write a trained network for other programs: ONNX, TorchScript, safetensors.",
    "leep": "Score how well networks would transfer to a data set.",
    "report": "Write one HTML report of a study or of several runs.",
    "bench": "Measure throughput against named peers.",
    "doctor": "Check this machine and the nodes of a job.",
    "demo": "Run the whole chain on the sample data.",
}


class _Lazy(click.Group):
    """A group that imports a command only when it is called (the context is of no interest to it)."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"mstl.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="mstl")
def group() -> None:
    """Multi-stage attentive transfer learning: shards, device pipelines, distributed stages, evidence.

    \b
    The paper's chain on your own data:
      mstl shard --src imagenet --root ILSVRC2012      once for each of imagenet, covidx, covid19-ct
      mstl train --stage stl_n                         then stl_m, sstl_m, finetune
      mstl evaluate runs/finetune --split test
      mstl report runs/* --out report.html

    `mstl demo` does all of it on generated data in a few minutes.
    """


def main() -> None:
    """Entry point. Exit codes: 0 done, 1 an expected failure, 2 usage, 3 a bug (with traceback), 4 another rank is
    lost, 130/143 stopped.
    """
    take_sigterm()
    exit_with(lambda: group.main(standalone_mode=False))


if __name__ == "__main__":
    main()
