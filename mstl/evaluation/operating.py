"""The operating point: where a probability becomes a yes, chosen on validation images and applied to others."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict

from mstl.run_body import Part, check_part
from mstl.runs import open_run
from shards.errors import MstlError
from shards.files import sha256_file, write_atomic

SCHEMA_VERSION = 1
FILE_NAME = "operating.json"
EVEN = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """How the threshold is found: "youden", "sensitivity" with the least one as value, or "given" with itself."""

    kind: str
    value: float | None = None

    def __str__(self) -> str:
        return "youden" if self.kind == "youden" else f"{'sensitivity=' * (self.kind != 'given')}{self.value:g}"


class Operating(Part):
    """RUN/evaluation/operating.json: what `mstl evaluate` chose for a run, for whoever uses its probabilities later.

    threshold: a probability of the positive class, as the network gives it, from which on an image is positive; None
    with more than two classes. origin: "val" (by `rule`), "given", or "default" (0.5, because of `why`).
    temperature: of `calibration.calibrated`, which the threshold does not depend on; None because of `temperature_why`.
    split and n: the images that both were chosen on, None and 0 without. sensitivity, specificity: there.
    """

    model_config = ConfigDict(frozen=True)

    rule: str
    threshold: float | None
    origin: str
    why: str | None
    temperature: float | None
    temperature_why: str | None
    split: str | None
    n: int
    sensitivity: float | None
    specificity: float | None
    positive: str | None
    classes: list[str]
    weights_sha256: str
    shards_digest: str
    date: str


def parse_rule(text: str) -> Rule:
    """ "youden", "sensitivity=0.95" or a threshold such as "0.5"; raises MstlError for anything else."""
    kind, _, number = text.strip().rpartition("=")
    if not kind and number == "youden":
        return Rule(kind="youden")
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if kind in ("", "sensitivity") and 0 < value < 1:
        return Rule(kind=kind or "given", value=value)
    raise MstlError(
        f"operating point {text!r}",
        why="it is no rule",
        remedy="Write youden, sensitivity=0.95 or a threshold between 0 and 1",
    )


def choose_threshold(scores: NDArray[np.floating], positives: NDArray[np.bool_], rule: Rule) -> float:
    """The threshold of a rule for [N] probabilities and truths; both sides must occur.

    It stands half way between two neighbouring probabilities, or at 0. Youden: where sensitivity + specificity − 1 is
    greatest, of equals the one nearest to 0.5. Sensitivity: the highest that still has it.
    """
    if rule.kind == "given":
        assert rule.value is not None
        return rule.value
    values = np.unique(np.asarray(scores, dtype=np.float64))
    # Yes to nobody is no operating point: a threshold above all probabilities is not among them.
    thresholds = np.append(0.0, (values[1:] + values[:-1]) / 2)
    yes, no = np.sort(scores[positives]), np.sort(scores[~positives])
    sensitivity = 1 - np.searchsorted(yes, thresholds) / len(yes)
    specificity = np.searchsorted(no, thresholds) / len(no)
    if rule.kind == "sensitivity":
        assert rule.value is not None
        # A share of n images is a rational number: 0.95 of 20 must not be missed by its last binary digit.
        return float(thresholds[sensitivity >= rule.value - 1e-12].max())
    gain = sensitivity + specificity
    best = thresholds[gain >= gain.max() - 1e-12]
    return float(best[np.abs(best - EVEN).argmin()])


def write_operating(run: Path, operating: Operating) -> None:
    """Write RUN/evaluation/operating.json."""
    body = {"schema": SCHEMA_VERSION, **operating.model_dump()}
    file = run / "evaluation" / FILE_NAME
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, (json.dumps(body, indent=1, allow_nan=False) + "\n").encode())


def read_operating(run: Path) -> Operating | None:
    """What was chosen for a run's weights; None when it was never evaluated.

    Raises MstlError when the file is damaged or was chosen for other weights than the run has now.
    """
    file, again = run / "evaluation" / FILE_NAME, f"Evaluate the run again: mstl evaluate {run} --split val"
    if not file.is_file():
        return None
    try:
        body = json.loads(file.read_text())
    except ValueError as error:
        raise MstlError(str(file), why=f"it cannot be read ({error})", remedy=again) from error
    check_part(Operating, body, str(file), again)
    operating = Operating.model_validate(body)
    if operating.weights_sha256 != sha256_file(open_run(run).weights):
        raise MstlError(str(file), why="it was chosen for other weights than the run has now", remedy=again)
    return operating
