"""LEEP: how well a network trained on other classes already tells a target's classes apart (paper eq. 7)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, slots=True)
class Leep:
    """A LEEP score in nats: 0 at best; `floor_nats` = −H(Y) for a source that says nothing of the target's labels.

    The paper prints no unit. Its table 6 lies below −H(Y) of its data in nats, which no LEEP can: so it is in bits.
    """

    nats: float
    floor_nats: float

    @property
    def bits(self) -> float:
        """The score to base 2, as the paper's table 6 must be read."""
        return self.nats / math.log(2)

    @property
    def floor_bits(self) -> float:
        """−H(Y) to base 2."""
        return self.floor_nats / math.log(2)


def leep(probabilities: NDArray[np.floating], labels: NDArray[np.integer]) -> Leep:
    """LEEP of the source's class probabilities [N, Z] for N target images with labels [N], in float64 (paper eq. 7).

    L = 1/n Σ_i log Σ_z P(y_i|z)·N(x_i)_z, with P(y|z) from P(y,z) = 1/n Σ_{i: y_i=y} N(x_i)_z. Source classes that no
    image has any probability of add nothing. By Jensen −H(Y) ≤ −H(Y|Z) ≤ L ≤ 0; one target class gives 0.
    Raises ValueError unless there is an image, and each row is a distribution (sums to 1 within 1e-6).
    """
    source = np.asarray(probabilities, dtype=np.float64)
    labels = np.asarray(labels)
    if source.ndim != 2 or labels.shape != source.shape[:1] or not len(labels):
        raise ValueError(f"probabilities {source.shape} and labels {labels.shape} are not [N, Z] and [N], N >= 1")
    if not ((source >= 0).all() and np.allclose(source.sum(1), 1, rtol=0, atol=1e-6)):
        raise ValueError("a row of probabilities is no distribution")
    _, own, counts = np.unique(labels, return_inverse=True, return_counts=True)
    joint = np.stack([source[own == y].sum(0) for y in range(len(counts))]) / len(labels)  # [Y, Z]
    margin = joint.sum(0)
    conditional = np.divide(joint, margin, out=np.zeros_like(joint), where=margin > 0)
    expected = (conditional[own] * source).sum(1)
    shares = counts / len(labels)
    # Rounding may leave a certain label at 1 + 1e-16; no score is above 0.
    return Leep(
        nats=min(0.0, float(np.log(expected).mean())), floor_nats=min(0.0, float((shares * np.log(shares)).sum()))
    )
