"""Splitting a rank's batch, for gradients accumulated part by part."""

from __future__ import annotations

from torch import Tensor

from pipelines.batch import Batch


def split(batch: Batch, parts: int) -> list[Batch]:
    """The batch as `parts` batches of sizes as equal as can be: views of its tensors, in its order.

    Fewer where a part would hold one image, since batch normalisation needs two: an epoch's last batch may be small.
    """
    parts = max(1, min(parts, len(batch) // 2))
    if parts == 1:
        return [batch]
    found = []
    at = 0
    for number in range(parts):
        end = at + len(batch) // parts + (number < len(batch) % parts)
        found.append(_cut(batch, slice(at, end)))
        at = end
    return found


def _cut(batch: Batch, rows: slice) -> Batch:
    def some(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor[rows]

    return Batch(
        views={name: view[rows] for name, view in batch.views.items()},
        labels=batch.labels[rows],
        sample_ids=batch.sample_ids[rows],
        boxes=some(batch.boxes),
        located=some(batch.located),
    )
