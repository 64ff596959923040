"""What attention must compute and move at least, from its shapes: the floor under its time.

No score leaves the chip. Forward reads q, k and v and writes o; backward reads q, k, v, o and the gradient of o, and
writes those of q, k and v.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.roofline import Work


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """One attention layer at work on one batch."""

    images: int
    positions: int
    channels: int
    key_width: int
    value_width: int
    value_bytes: int
    """Of one activation, in the dtype that is computed in."""


def core_forward(shape: Shape) -> tuple[Work, ...]:
    """softmax(QKᵀ)V: two products."""
    return (Work(_core_flops(shape), _bytes(shape, 2 * shape.key_width + 2 * shape.value_width)),)


def core_backward(shape: Shape) -> tuple[Work, ...]:
    """Its gradients: four products."""
    return (Work(2 * _core_flops(shape), _bytes(shape, 4 * shape.key_width + 4 * shape.value_width)),)


def layer_forward(shape: Shape) -> tuple[Work, ...]:
    """Projection to q, k, v; core; projection back; norm and addition. Statistics of the norm cost nothing extra."""
    c, v = shape.channels, shape.value_width
    wide = 2 * shape.key_width + v
    return (
        _projection(shape, c, wide),
        *core_forward(shape),
        _projection(shape, v, c),
        Work(0, _bytes(shape, 3 * c)),  # reads the projection and x, writes y
    )


def layer_backward(shape: Shape) -> tuple[Work, ...]:
    """Each step of `layer_forward` on the way back; a projection has gradients of its input and of its weights."""
    c, v = shape.channels, shape.value_width
    wide = 2 * shape.key_width + v
    return (
        Work(0, _bytes(shape, 3 * c)),  # reads the gradient of y and the projection, writes the projection's gradient
        # Reads the gradient of its output and its input, writes the gradient of its input; weights and theirs.
        Work(2 * _projection(shape, v, c).flops, _bytes(shape, c + 2 * v) + 2 * c * v * shape.value_bytes),
        *core_backward(shape),
        # The same; what comes over the addition is read too, and added.
        Work(2 * _projection(shape, c, wide).flops, _bytes(shape, wide + 3 * c) + 2 * c * wide * shape.value_bytes),
    )


def _core_flops(shape: Shape) -> int:
    return 2 * shape.images * shape.positions**2 * (shape.key_width + shape.value_width)


def _projection(shape: Shape, width_in: int, width_out: int) -> Work:
    flops = 2 * shape.images * shape.positions * width_in * width_out
    return Work(flops, _bytes(shape, width_in + width_out) + width_in * width_out * shape.value_bytes)


def _bytes(shape: Shape, values_a_position: int) -> int:
    return shape.images * shape.positions * values_a_position * shape.value_bytes
