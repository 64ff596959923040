"""The one type that leaves the pipelines: a batch of views on the device."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """What a training or evaluation step reads.

    views: name → [B, C, H, W] float, normalised, channels_last, on the device. One-view inputs name it `x`;
        `multi_view_ct` has `q`, `k` and the regions `ru`, `rm`, `rl`, `lu`, `ll`; `two_view` has `q`, `k`.
    labels: [B] int64. sample_ids: [B] int64, ids of the shard set.
    boxes: [B, 4] float32, lung box (x0, y0, x1, y1) as fractions of the image, where regions are used; located: [B]
        bool, False where no lungs were found and the box is the whole image.
    """

    views: dict[str, Tensor]
    labels: Tensor
    sample_ids: Tensor
    boxes: Tensor | None = None
    located: Tensor | None = None

    def __len__(self) -> int:
        return int(self.labels.shape[0])
