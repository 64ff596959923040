"""The options of a training job, shared by `mstl train` and `launch/train.py`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from mstl.cli.store_options import CACHE_OPTIONS, SHARD_SET
from shards.schema import MAX_SEED

Command = TypeVar("Command", bound=Callable[..., Any])

# Written here rather than read from mstl.stages, so that --help does not import torch; a test holds them equal.
STAGE_NAMES = ("stl_n", "stl_m", "sstl_m", "finetune")

# No name may be a prefix of an option of the deepspeed launcher, which would swallow it.
_OPTIONS = (
    click.option("--stage", type=click.Choice(STAGE_NAMES), required=True, help="What to train."),
    click.option("--model", default="resnet50-attn5", help="resnet14, 26, 50 or 101 with -attn0, -attn1 or -attn5."),
    click.option(
        "--shards", type=SHARD_SET, metavar="DIR|URL", help="Shard set, or its URL.  [default: data/shards/SOURCE]"
    ),
    *CACHE_OPTIONS,
    click.option("--out", type=click.Path(path_type=Path), help="Run folder.  [default: runs/STAGE]"),
    click.option(
        "--init-from",
        metavar="RUN|FILE|none",
        help="First weights.  [default: the newest finished run of the stage before, beside --out]",
    ),
    click.option("--seed", type=click.IntRange(0, MAX_SEED), default=0, help="Of weights, order and augmentation."),
    click.option(
        "--resume",
        type=click.Choice(["auto", "must", "never"]),
        default="auto",
        help="Continue what lies in --out: if it is there, only if it is, or refuse it.",
    ),
    click.option(
        "--flavour",
        type=click.Choice(["resolved", "printed"]),
        default="resolved",
        help="The paper's numbers as we resolved its ambiguities, or to the letter.",
    ),
    click.option("--config", type=click.Path(path_type=Path), help="TOML file of recipe sections."),
    click.option(
        "--set", "overrides", multiple=True, metavar="SECTION.FIELD=VALUE", help="Change one field of the recipe."
    ),
    click.option(
        "--waive-leakage",
        multiple=True,
        metavar="NAME",
        help="Train in spite of a finding of mstl leakage, named as it prints it; the run records that.",
    ),
)


def training_options(command: Command) -> Command:
    """Add the options of a training job to a click command; they arrive as the fields of mstl.job.Request."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def as_arguments(options: dict[str, Any]) -> list[str]:
    """The options of a parsed command as the command line of launch/train.py."""
    arguments: list[str] = []
    for name, value in options.items():
        if name == "overrides":
            for text in value:
                arguments += ["--set", text]
        elif name == "waive_leakage":
            for text in value:
                arguments += ["--waive-leakage", text]
        elif value is not None:
            arguments += [f"--{name.replace('_', '-')}", str(value)]
    return arguments
