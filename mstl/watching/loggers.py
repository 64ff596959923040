"""TensorBoard and Weights & Biases: every number of metrics.jsonl, each step once also after a resume."""

from __future__ import annotations

import math
import os
import secrets
from collections.abc import Iterator, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mstl.runs import read_metrics
from shards.errors import MstlError
from shards.files import write_atomic

TENSORBOARD_FOLDER = "tensorboard"
WANDB_FOLDER = "wandb"
SPEEDS = ("images_per_second", "data_wait")
OFFLINE_MODES = ("offline", "disabled", "dryrun")


def check_loggers(*, tensorboard: bool, wandb: str | None) -> None:
    """Raise MstlError where a package is missing or W&B has no key; imports nothing unless W&B is asked for."""
    for wanted, package in ((tensorboard, "tensorboard"), (wandb is not None, "wandb")):
        if wanted and find_spec(package) is None:
            raise MstlError(
                f"--{package}", why=f"the package {package} is missing", remedy=f"pip install 'mstl[{package}]'"
            )
    online = wandb is not None and os.environ.get("WANDB_MODE", "online") not in OFFLINE_MODES
    # Without a key W&B would wait for somebody to type one.
    if online and not import_module("wandb").login(prompt=False):
        raise MstlError(
            "--wandb",
            why="nobody is logged in to Weights & Biases here",
            remedy="Run wandb login, set WANDB_API_KEY, or write to the run folder alone with WANDB_MODE=offline",
        )


class TensorBoard:
    """A listener (`mstl.watch`) that writes RUN/tensorboard."""

    def __init__(self, run: Path) -> None:
        self._folder = run / TENSORBOARD_FOLDER
        self._writer: Any = None

    def start(self, step: int) -> None:
        """Training begins behind this step: what an earlier session wrote of later ones is not shown any more."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self._folder), purge_step=step + 1, flush_secs=10)

    def step(self, entry: Mapping[str, Any]) -> None:
        """A step is done; `entry` is its line of metrics.jsonl."""
        self._add(entry)

    def validation(self, entry: Mapping[str, Any]) -> None:
        """An epoch was validated; `entry` is its line of metrics.jsonl."""
        self._add(entry)

    def note(self, text: str) -> None:
        """Texts are for people who look on."""

    def close(self) -> None:
        """Write the rest."""
        if self._writer is not None:
            self._writer.close()

    def _add(self, entry: Mapping[str, Any]) -> None:
        for name, value in _numbers(entry):
            self._writer.add_scalar(name, value, entry["step"])


class WandB:
    """A listener (`mstl.watch`) that logs to a project of Weights & Biases; a run folder is one W&B run for ever.

    When training continues, what W&B lacks of the steps behind it is taken from metrics.jsonl, and what W&B has is not
    sent again. Offline it has nothing, so the newest `offline-run-*` folder holds the whole run: sync that one.
    """

    def __init__(self, run: Path, project: str, config: Mapping[str, Any]) -> None:
        """Open the W&B run; raises MstlError where W&B refuses or cannot be reached."""
        wandb = import_module("wandb")
        self._folder = run
        try:
            self._run = wandb.init(
                project=project,
                id=_wandb_id(run / WANDB_FOLDER / "mstl-id"),
                name=run.name,
                resume="allow",
                dir=str(run),
                config=dict(config),
                settings=wandb.Settings(silent=True, console="off"),
            )
        except wandb.Error as error:
            raise MstlError(
                f"--wandb {project}",
                why=f"Weights & Biases says: {str(error).splitlines()[0]}",
                remedy="Mend that, or write to the run folder alone with WANDB_MODE=offline",
            ) from error
        self._next = int(self._run.step)  # one behind what its server has; 0 for a new run and offline

    def start(self, step: int) -> None:
        """Training begins behind this step: send what W&B lacks up to it."""
        for entry in read_metrics(self._folder):
            if entry["step"] <= step:
                self._log(entry)

    def step(self, entry: Mapping[str, Any]) -> None:
        """A step is done; `entry` is its line of metrics.jsonl."""
        self._log(entry)

    def validation(self, entry: Mapping[str, Any]) -> None:
        """An epoch was validated; `entry` is its line of metrics.jsonl."""
        self._log(entry)

    def note(self, text: str) -> None:
        """Texts are for people who look on."""

    def close(self) -> None:
        """Send the rest."""
        self._run.finish()

    def _log(self, entry: Mapping[str, Any]) -> None:
        if entry["step"] >= self._next:
            self._run.log(dict(_numbers(entry)), step=entry["step"])


def _wandb_id(path: Path) -> str:
    """The id of this run folder, made when it is first asked for."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, secrets.token_hex(4).encode())
    return path.read_text()


def _numbers(entry: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The numbers of a line under the names they get there: train/loss, val/auc, speed/images_per_second."""
    group = entry.get("split", "train")
    for name, value in entry.items():
        if name != "step" and isinstance(value, int | float) and math.isfinite(value):
            yield f"{'speed' if name in SPEEDS else group}/{name}", float(value)
