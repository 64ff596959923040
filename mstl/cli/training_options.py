"""The options of a training job, shared by `mstl train` and `launch/train.py`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mstl.cli.store_options import CACHE_OPTIONS, SHARD_SET, Command, with_options
from shards.schema import MAX_SEED

if TYPE_CHECKING:
    from mstl.recipes import Settled

# Written here rather than read from mstl.stages, so that --help does not import torch; a test holds them equal.
STAGE_NAMES = ("stl_n", "stl_m", "sstl_m", "finetune")
SSL_METHODS = ("ours", "moco", "moco_v2", "simclr")


def _number(context: click.Context, parameter: click.Parameter, value: float) -> float:
    if math.isnan(value):  # passes every comparison with a bound
        raise click.BadParameter("nan is not a number of seconds.", context, parameter)
    return value


# No name may be a prefix of an option of the deepspeed launcher, which would swallow it; a test reads its parser.
_OPTIONS = (
    click.option("--stage", type=click.Choice(STAGE_NAMES), required=True, help="What to train."),
    click.option(
        "--ssl", type=click.Choice(SSL_METHODS), help="How sstl_m learns; all but ours are baselines.  [default: ours]"
    ),
    click.option("--model", default="resnet50-attn5", help="resnet14, 26, 50 or 101 with -attn0, -attn1 or -attn5."),
    click.option(
        "--shards", type=SHARD_SET, metavar="DIR|URL", help="Shard set, or its URL.  [default: data/shards/SOURCE]"
    ),
    *CACHE_OPTIONS,
    click.option("--out", type=click.Path(path_type=Path), help="Run folder.  [default: runs/STAGE or runs/STAGE-SSL]"),
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
    click.option("--compile", is_flag=True, help="Compile the networks: short for --set engine.compile=true."),
    click.option(
        "--hang-timeout",
        type=click.FloatRange(min=0, min_open=True, max=1e6),
        callback=_number,
        default=300.0,
        metavar="SECONDS",
        help="End the job when no step finishes for so long (or three times the longest step so far).",
    ),
    click.option(
        "--log-seconds",
        type=click.FloatRange(min=0, max=1e6),
        callback=_number,
        default=10.0,
        metavar="SECONDS",
        help="Between progress lines where stderr is no terminal.",
    ),
    click.option("--tensorboard", is_flag=True, help="Write RUN/tensorboard too (pip install 'mstl[tensorboard]')."),
    click.option(
        "--wandb",
        metavar="PROJECT",
        help="Log to Weights & Biases too (pip install 'mstl[wandb]'); WANDB_MODE=offline keeps it in RUN/wandb.",
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
    return with_options(command, _OPTIONS)


def settle_options(options: Mapping[str, Any]) -> Settled:
    """The recipe that parsed options ask for; raises MstlError for a wrong one."""
    # Imported here: --help need not wait for pydantic.
    from mstl.recipes import settle_recipe

    return settle_recipe(
        options["stage"],
        ssl=options["ssl"],
        flavour=options["flavour"],
        config=options["config"],
        overrides=options["overrides"],
        compiled=options["compile"],
    )


def as_arguments(options: dict[str, Any]) -> list[str]:
    """The options of a parsed command as the command line of launch/train.py."""
    arguments: list[str] = []
    for name, value in options.items():
        flag = "--set" if name == "overrides" else f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            arguments += [flag] if value else []
        elif isinstance(value, list | tuple):
            for text in value:
                arguments += [flag, text]
        elif value is not None:
            arguments += [flag, str(value)]
    return arguments
