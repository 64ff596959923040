"""Loss scaling for float16: gradients too small for it are lifted, and updates that overflow are skipped."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

FIRST_SCALE = 2.0**16
GROWTH, BACKOFF, INTERVAL = 2.0, 0.5, 2000
MOST_SKIPS = 20
"""Updates skipped in a row before training is given up: the scale has then fallen by a million."""


@dataclass(frozen=True, slots=True)
class LossScale:
    """The factor of the loss, by torch.amp.GradScaler's rule: halved by an overflow, doubled after 2,000 good steps.

    Not a GradScaler itself, which unscales an optimizer's own gradients: under ZeRO they are elsewhere, and finding
    an overflow is free here, since the global norm is at hand and equal on all ranks.
    """

    factor: float = FIRST_SCALE
    good: int = 0
    skipped: int = 0

    def after(self, norm: float) -> LossScale:
        """The scale behind an update whose gradient had this norm; not finite: it was skipped."""
        if not math.isfinite(norm):
            return LossScale(self.factor * BACKOFF, 0, self.skipped + 1)
        if self.good + 1 == INTERVAL:
            return LossScale(self.factor * GROWTH, 0, 0)
        return replace(self, good=self.good + 1, skipped=0)

    @property
    def exhausted(self) -> bool:
        """Whether so many updates were skipped in a row that it is not for want of a smaller scale."""
        return self.skipped >= MOST_SKIPS

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
