"""The queue of past keys that serve as negatives."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class KeyQueue(nn.Module):
    """First-in first-out memory of the last `size` keys and the ids of their images, any size for any batch.

    Buffers, hence saved and moved with the module: keys [size, dim] float32 of unit length, sample_ids [size]
    int64, cursor (the oldest slot, overwritten next). It starts full of random directions with id -1, drawn from
    its own seed: equal on all ranks, though nobody broadcasts buffers.
    """

    keys: Tensor
    sample_ids: Tensor
    cursor: Tensor

    def __init__(self, size: int, dim: int, seed: int) -> None:
        super().__init__()
        random = torch.randn(size, dim, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("keys", F.normalize(random, dim=1))
        self.register_buffer("sample_ids", torch.full((size,), -1, dtype=torch.long))
        self.register_buffer("cursor", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def push(self, keys: Tensor, sample_ids: Tensor) -> None:
        """Append keys [n, dim] and sample_ids [n] in order, wrapping around; of more than `size` the last remain."""
        size = len(self.keys)
        skipped = max(len(keys) - size, 0)
        slots = (self.cursor + torch.arange(skipped, len(keys), device=self.cursor.device)) % size
        self.keys.index_copy_(0, slots, keys[skipped:].to(self.keys.dtype))
        self.sample_ids.index_copy_(0, slots, sample_ids[skipped:])
        self.cursor.copy_((self.cursor + len(keys)) % size)

    def negatives_mask(self, sample_ids: Tensor) -> Tensor:
        """[B] ids → [B, size] bool: True where the queued key is of another image (eq. 2 wants other images)."""
        return sample_ids[:, None] != self.sample_ids[None, :]
