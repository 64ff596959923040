"""The DeepSpeed configuration: every key that we write, typed. DeepSpeed itself takes a misspelt key without a word."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mstl.recipes import Recipe
from shards.errors import MstlError

DEFAULTS = Path(__file__).parent / "configs" / "default.json"


class _Section(BaseModel):
    """Every field must be written out: what is absent would fall back to DeepSpeed's default, which may change."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Zero(_Section):
    # Stage 3 shards the parameters: the momentum encoder and the export of weights need them whole.
    stage: Literal[0, 1, 2]


class Throughput(_Section):
    enabled: bool  # waits for the device twice a step; the loop has a clock of its own


class Timers(_Section):
    throughput: Throughput


class Config(_Section):
    """All of a DeepSpeed JSON that MSTL uses, in DeepSpeed's own names."""

    train_micro_batch_size_per_gpu: int = Field(ge=1)
    # The engine splits batches itself (`launch.engine`): a step of DeepSpeed is one update.
    gradient_accumulation_steps: Literal[1]
    # DeepSpeed clips at 1.0 where the key is missing.
    gradient_clipping: float = Field(ge=0)
    zero_optimization: Zero
    zero_allow_untested_optimizer: bool
    timers: Timers
    wall_clock_breakdown: bool
    steps_per_print: int = Field(ge=1)


def build_config(recipe: Recipe, world: int, defaults: Path = DEFAULTS) -> Config:
    """The configuration of a recipe on `world` ranks, on top of a JSON of defaults.

    Raises MstlError for a key that we do not know, a missing one, or a value of another type.
    """
    try:
        tree: dict[str, Any] = json.loads(defaults.read_text())
        tree["train_micro_batch_size_per_gpu"] = recipe.data.batch_size // world
        # At stage 0 our own reduction clips: DeepSpeed would read all gradients once more for a norm that we have.
        tree["gradient_clipping"] = recipe.optim.clip if recipe.engine.zero else 0.0
        tree["zero_optimization"] = {**tree.get("zero_optimization", {}), "stage": recipe.engine.zero}
        return Config.model_validate(tree)
    except (OSError, ValueError) as error:
        why = str(error)
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            why = f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
        raise MstlError(
            f"DeepSpeed configuration {defaults}", why=why, remedy=f"Keys: {', '.join(Config.model_fields)}"
        ) from error


def check_read_back(config: Config, engine: Any) -> None:
    """Raise RuntimeError unless a DeepSpeed engine answers with every value that was written.

    The last guard against a key that a later DeepSpeed renames or drops.
    """
    read = engine._config
    found = {
        "train_micro_batch_size_per_gpu": engine.train_micro_batch_size_per_gpu(),
        "gradient_accumulation_steps": engine.gradient_accumulation_steps(),
        "gradient_clipping": engine.gradient_clipping(),
        "zero_optimization": {"stage": int(engine.zero_optimization_stage())},
        "zero_allow_untested_optimizer": engine.zero_allow_untested_optimizer(),
        "timers": {"throughput": {"enabled": read.timers_config.enabled}},
        "wall_clock_breakdown": engine.wall_clock_breakdown(),
        "steps_per_print": engine.steps_per_print(),
    }
    written = config.model_dump()
    wrong = {name: (found.get(name), value) for name, value in written.items() if found.get(name) != value}
    if wrong:
        texts = [f"{name} is {read_} and was set to {value}" for name, (read_, value) in wrong.items()]
        raise RuntimeError(f"DeepSpeed did not take its configuration: {'; '.join(texts)}")
