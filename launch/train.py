"""Train one stage: the script under `deepspeed`, `torchrun` or plain `python`."""

from __future__ import annotations

import os
from typing import Any

import click

from mstl.cli.boundary import exit_with
from mstl.cli.training_options import training_options
from mstl.failures import report_exit


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@training_options
@click.option("--local_rank", hidden=True, help="Given by the deepspeed launcher; the environment is used instead.")
def main(local_rank: str | None, **options: Any) -> None:  # noqa: ARG001 - see the option
    """Train one stage on this process's device; start it under deepspeed or torchrun for many.

    \b
    deepspeed launch/train.py --stage stl_n
    deepspeed --num_gpus 2 launch/train.py --stage finetune --set optim.epochs=50
    """
    rank = os.environ.get("RANK", "0")
    try:
        exit_with(lambda: _train(options), prefix="Error" if rank == "0" else f"Error on rank {rank}")
    except SystemExit as leaving:
        report_exit(leaving.code if isinstance(leaving.code, int) else 1)
        raise


def _train(options: dict[str, Any]) -> int:
    # Imported late, so that --help and a mistyped option answer at once.
    from launch.run import run
    from mstl.job import Request

    return run(Request(**options))


if __name__ == "__main__":
    main()
