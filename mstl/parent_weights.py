"""Taking over a parent's weights: by each rank, and by the command that wants to know beforehand whether they fit."""

from __future__ import annotations

from typing import Any

from mstl.carry import carry_over
from mstl.job.request import Job, Parent
from mstl.models.resnet import ResNet
from mstl.runs import open_run
from mstl.weights import load_weights
from shards.errors import MstlError
from shards.files import sha256_file


def take_over(job: Job, parent: Parent, backbone: ResNet) -> dict[str, Any]:
    """Copy a job's parent's weights into its backbone; returns the account of them (`CarryReport.to_dict`).

    Raises MstlError where they cannot be read, do not fit, or have changed since the run was started from them.
    """
    weights = load_weights(parent.weights)
    # A parent found just now was hashed just now; one that an earlier start recorded may have changed since.
    if job.previous is not None and sha256_file(parent.weights) != parent.digest:
        raise MstlError(
            f"weights {parent.weights}",
            why=f"they have changed since run {job.out} was started from them",
            remedy="Bring them back, or train into another --out",
        )
    try:
        report = carry_over(weights, backbone)
    except MstlError as error:
        owner = "" if parent.run is None else f" of {open_run(parent.run).model}"
        raise MstlError(
            f"--init-from {parent.run or parent.weights}: {error.what}",
            why=f"{error.why}: the weights{owner} do not fit {job.model}",
            remedy=error.remedy,
        ) from error
    return report.to_dict()
