"""What a network costs an image, by arithmetic on its shapes: parameters, FLOPs, activations. Nothing is built or run.

FLOPs are those of convolutions and matrix products, a multiplication and an addition counting two; norms, activations,
softmax and pooling are left out, as in `torch.utils.flop_counter`, which the tests hold this against.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from mstl.models.names import DEPTHS, PLACEMENTS, full_name
from mstl.models.resnet import EXPANSION, STAGE_CHANNELS, STAGES

VALUE_BYTES = 4  # float32
_INDEX_BYTES = 8  # max pooling remembers where each maximum stood
ATTENTION = "attention"


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A part of a network and what one image costs in it.

    name: "stem", "res2" to "res5", and "attention res3" and the like for the attention blocks behind a stage.
    forward_flops, backward_flops: the latter holds the gradients of weights and inputs; the image needs none. Of
        attention with the eager backend: one that stores no probabilities computes them again on the way back.
    kept_bytes: activations that the forward pass keeps for backward, in float32 and channels_last memory, with the
        eager backend; one value a channel (statistics of norms) is left out.
    """

    name: str
    parameters: int
    forward_flops: int
    backward_flops: int
    kept_bytes: int

    @property
    def is_attention(self) -> bool:
        return self.name.startswith(ATTENTION)


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """A network's parts, and their sums; without a classifier."""

    network: str
    image_size: int
    parts: tuple[Part, ...]

    @property
    def parameters(self) -> int:
        return sum(part.parameters for part in self.parts)

    @property
    def forward_flops(self) -> int:
        return sum(part.forward_flops for part in self.parts)

    @property
    def training_flops(self) -> int:
        """Forward and backward."""
        return sum(part.forward_flops + part.backward_flops for part in self.parts)

    @property
    def kept_bytes(self) -> int:
        return sum(part.kept_bytes for part in self.parts)

    @property
    def attention_share(self) -> float:
        """What part of the forward FLOPs attention blocks have, projections included."""
        return sum(part.forward_flops for part in self.parts if part.is_attention) / self.forward_flops


def network_cost(name: str, image_size: int) -> Cost:
    """The cost of one square image of `image_size` pixels; raises MstlError for an unknown network."""
    depth, _, attention = full_name(name).partition("-")
    parts = tuple(_parts(DEPTHS[depth], PLACEMENTS[attention], image_size))
    return Cost(network=full_name(name), image_size=image_size, parts=parts)


def map_sides(image_size: int) -> dict[str, int]:
    """Stage → side of its feature maps: 56, 28, 14 and 7 at 224 pixels."""
    side = _halved(_halved(image_size))  # the stem's convolution and its pooling
    sides = {}
    for number, stage in enumerate(STAGES):
        side = _halved(side) if number else side
        sides[stage] = side
    return sides


def _halved(side: int) -> int:
    """What a stride of 2 leaves: 7x7 with padding 3 and 3x3 with padding 1 alike."""
    return (side - 1) // 2 + 1


def _parts(blocks: tuple[int, int, int, int], attention: dict[str, int], image_size: int) -> Iterator[Part]:
    sides = map_sides(image_size)
    yield _stem(image_size, sides[STAGES[0]])
    before = sides[STAGES[0]]
    for stage, count, (channels_in, channels) in zip(STAGES, blocks, pairwise(STAGE_CHANNELS), strict=True):
        side = sides[stage]
        yield _stage(stage, count, channels_in, channels, before, side)
        if stage in attention:
            # What the last block gives is pooled, and pooling by a mean keeps nothing.
            yield _attention(stage, attention[stage], channels, side * side, last=stage == STAGES[-1])
        before = side


def _stem(image_size: int, pooled: int) -> Part:
    channels, side = STAGE_CHANNELS[0], _halved(image_size)
    weights = 3 * channels * 7 * 7
    flops = 2 * weights * side**2
    kept = VALUE_BYTES * (3 * image_size**2 + 2 * channels * side**2 + channels * pooled**2)
    kept += _INDEX_BYTES * channels * pooled**2
    # The image gets no gradient.
    return Part(name="stem", parameters=weights + 2 * channels, forward_flops=flops, backward_flops=flops,
                kept_bytes=kept)  # fmt: skip


def _stage(name: str, blocks: int, channels_in: int, channels: int, side_in: int, side: int) -> Part:
    width = channels // EXPANSION
    weights, multiplications, values = channels_in * channels, channels_in * channels * side**2, channels * side**2
    norms = channels
    for number in range(blocks):
        first, enters = (channels_in, side_in) if number == 0 else (channels, side)
        weights += first * width + 9 * width**2 + width * channels
        multiplications += first * width * enters**2 + (9 * width**2 + width * channels) * side**2
        norms += 2 * width + channels
        # Before and behind each of three norms; behind the last, what leaves the block.
        values += 2 * width * (enters**2 + side**2) + 2 * channels * side**2
    return Part(name=name, parameters=weights + 2 * norms, forward_flops=2 * multiplications,
                backward_flops=4 * multiplications, kept_bytes=VALUE_BYTES * values)  # fmt: skip


def _attention(stage: str, blocks: int, channels: int, positions: int, *, last: bool) -> Part:
    width = channels // 2  # of queries, keys and values: SelfAttention2d's default
    weights = channels * 3 * width + width * channels
    multiplications = weights * positions + positions**2 * 2 * width
    # Queries, keys and values; probabilities; what attention gives; its projection; what leaves the block.
    values = positions * (3 * width + positions + width + 2 * channels)
    return Part(
        name=f"{ATTENTION} {stage}",
        parameters=blocks * (weights + 3 * width + 2 * channels),
        forward_flops=blocks * 2 * multiplications,
        backward_flops=blocks * 4 * multiplications,
        kept_bytes=VALUE_BYTES * (blocks * values - (positions * channels if last else 0)),
    )
