"""Self-attention over the positions of a feature map (paper eq. 1) and the residual block that holds it.

Shapes: B images, N = H*W positions, d channels. Maps in channels_last memory are read and written without a
transposing copy: their positions are the rows of a matrix already.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mstl.models.attend import BACKENDS, attend, attend_packed, attention_weights, root_scale

INITIAL_STD = 0.01  # of every 1x1 convolution here: ours, the paper prints none
AUTO = "auto"


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionOptions:
    """What the attention of a network departs from eq. 1 in (nothing by default), and which backend computes it.

    root_scale: divide logits by √d_k. pool: keys and values are maxima over pool x pool positions, as in non-local
    networks; 1 is all positions.
    """

    backend: str = AUTO
    root_scale: bool = False
    pool: int = 1


class SelfAttention2d(nn.Module):
    """Eq. 1: every position reads all positions; no scale by default, no skip, no output projection.

    `qkv` is one 1x1 convolution whose output channels are queries, keys, values, in that order. Widths default
    to half the channels (ours). The key part of its bias gets no gradient: it shifts all logits of a query alike.
    backend: what computes it, may be set at any time; "auto" is eager until `mstl.models.choose` knows better.
    scale: factor of the logits. pool: side of the squares of which keys and values are the maxima; squares at the
    border may be smaller, so every position counts.
    """

    def __init__(
        self,
        channels: int,
        key_channels: int | None = None,
        value_channels: int | None = None,
        *,
        backend: str = AUTO,
        scale: float = 1.0,
        pool: int = 1,
    ) -> None:
        super().__init__()
        assert backend in (AUTO, *BACKENDS), f"backend {backend!r} is not one of {(AUTO, *BACKENDS)}"
        assert scale > 0 and pool >= 1, (scale, pool)
        self.key_channels = channels // 2 if key_channels is None else key_channels
        self.value_channels = channels // 2 if value_channels is None else value_channels
        self.backend, self.scale, self.pool = backend, scale, pool
        self.qkv = nn.Conv2d(channels, 2 * self.key_channels + self.value_channels, kernel_size=1)
        nn.init.normal_(self.qkv.weight, std=INITIAL_STD)
        nn.init.zeros_(self.qkv.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, H, W] → [B, value_channels, H, W] in channels_last memory."""
        packed, backend = self._project(x), "eager" if self.backend == AUTO else self.backend
        if self.pool == 1:
            out = attend_packed(packed.flatten(1, 2), self.key_channels, scale=self.scale, backend=backend)
        else:
            out = attend(*self._pooled(packed), scale=self.scale, backend=backend)
        return out.view(*packed.shape[:3], -1).permute(0, 3, 1, 2)

    def weights(self, x: Tensor) -> Tensor:
        """A of eq. 1, [B, keys, H*W queries], at least float32: each column sums to 1. H*W keys, fewer if pooled."""
        query, key, _ = self._pooled(self._project(x))
        return attention_weights(query, key, self.scale).mT

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """How many keys a map has, down and across."""
        return -(-height // self.pool), -(-width // self.pool)

    def _project(self, x: Tensor) -> Tensor:
        """[B, channels, H, W] → queries, keys and values of each position side by side, [B, H, W, 2 d_k + d_v].

        As a product of matrices: of channels_last maps it is one GEMM with the bias in it, where a convolution may add
        the bias in a pass of its own.
        """
        return F.linear(x.permute(0, 2, 3, 1), self.qkv.weight.flatten(1), self.qkv.bias)

    def _pooled(self, packed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query [B, N, d_k], key [B, M, d_k] and value [B, M, d_v] of what `_project` returns."""
        query, rest = torch.tensor_split(packed, [self.key_channels], dim=3)
        if self.pool > 1:
            maps = F.max_pool2d(rest.permute(0, 3, 1, 2), self.pool, ceil_mode=True)
            rest = maps.permute(0, 2, 3, 1)
        key, value = torch.split(rest.flatten(1, 2), [self.key_channels, self.value_channels], dim=2)
        return query.flatten(1, 2), key, value


class AttentionBlock(nn.Module):
    """Y = X + BN(W_z·O), [B, C, H, W] → the same shape (ours, after the non-local block the paper builds on).

    BN's scale starts at zero, so a new block is the identity and may enter a trained network unnoticed.
    """

    def __init__(self, channels: int, options: AttentionOptions | None = None) -> None:
        super().__init__()
        options = options or AttentionOptions()
        self.attention = SelfAttention2d(
            channels,
            backend=options.backend,
            scale=root_scale(channels // 2) if options.root_scale else 1.0,
            pool=options.pool,
        )
        # No bias: the norm behind it would cancel one.
        self.project = nn.Conv2d(self.attention.value_channels, channels, kernel_size=1, bias=False)
        nn.init.normal_(self.project.weight, std=INITIAL_STD)
        self.norm = nn.BatchNorm2d(channels)
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.norm(self.project(self.attention(x)))
        return out
