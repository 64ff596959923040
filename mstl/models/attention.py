"""Self-attention over the positions of a feature map (paper eq. 1) and the residual block that holds it.

Shapes: B images, N = H*W positions, d channels. Queries, keys and values are position-major, [B, N, d]: the
transpose of the paper's d x hw matrices, and how channels_last memory already holds them.
"""

import torch
from torch import Tensor, nn

from mstl.precision import no_autocast, widen

INITIAL_STD = 0.01  # of every 1x1 convolution here: ours, the paper prints none


def attention_weights(query: Tensor, key: Tensor) -> Tensor:
    """Softmax over the keys of every query, unscaled: [B, N, d], [B, N, d] → [B, N queries, N keys].

    This is the transpose of eq. 1's A. At least float32, autocast or not: unscaled logits are large.
    """
    with no_autocast(query):
        return torch.softmax(widen(query) @ widen(key).mT, dim=2)


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """O = V·A of eq. 1: query and key [B, N, d_k], value [B, N, d_v] → [B, N, d_v] in the dtype of `value`."""
    weights = attention_weights(query, key)
    with no_autocast(value):
        return (weights @ widen(value)).to(value.dtype)


class SelfAttention2d(nn.Module):
    """Eq. 1: every position reads all positions; no scale, no skip, no output projection.

    `qkv` is one 1x1 convolution whose output channels are queries, keys, values, in that order. Widths default
    to half the channels (ours). The key part of its bias gets no gradient: it shifts all logits of a query alike.
    """

    def __init__(self, channels: int, key_channels: int | None = None, value_channels: int | None = None) -> None:
        super().__init__()
        self.key_channels = channels // 2 if key_channels is None else key_channels
        self.value_channels = channels // 2 if value_channels is None else value_channels
        self.qkv = nn.Conv2d(channels, 2 * self.key_channels + self.value_channels, kernel_size=1)
        nn.init.normal_(self.qkv.weight, std=INITIAL_STD)
        nn.init.zeros_(self.qkv.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, H, W] → [B, value_channels, H, W]."""
        return attend(*self._query_key_value(x)).mT.reshape(len(x), -1, *x.shape[2:])

    def weights(self, x: Tensor) -> Tensor:
        """A of eq. 1, [B, H*W keys, H*W queries], at least float32: each column sums to 1."""
        query, key, _ = self._query_key_value(x)
        return attention_weights(query, key).mT

    def _query_key_value(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        widths = [self.key_channels, self.key_channels, self.value_channels]
        query, key, value = torch.split(self.qkv(x).flatten(2).mT, widths, dim=2)
        return query, key, value


class AttentionBlock(nn.Module):
    """Y = X + BN(W_z·O), [B, C, H, W] → the same shape (ours, after the non-local block the paper builds on).

    BN's scale starts at zero, so a new block is the identity and may enter a trained network unnoticed.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attention = SelfAttention2d(channels)
        # No bias: the norm behind it would cancel one.
        self.project = nn.Conv2d(self.attention.value_channels, channels, kernel_size=1, bias=False)
        nn.init.normal_(self.project.weight, std=INITIAL_STD)
        self.norm = nn.BatchNorm2d(channels)
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.norm(self.project(self.attention(x)))
        return out
