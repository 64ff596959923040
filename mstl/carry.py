"""What one network takes over of another's weights, and the exact account of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mstl.weights_names import find_backbone, group_reasons, guess_network
from shards.errors import MstlError

NEW_PREFIXES = ("attention.",)  # the only weights a backbone may start afresh
COUNTERS = ".num_batches_tracked"  # absent from weights saved long ago; nothing that matters depends on them
STEM = "conv1.weight"


@dataclass(frozen=True, kw_only=True, slots=True)
class CarryReport:
    """Names of weights, sorted: taken from the source, left as the target had them, left out of the source.

    carried and new are the target's names, dropped the source's; reasons: why dropped → number of names; notes: what
    was done to fit (names under a path, types, channels).
    """

    carried: tuple[str, ...]
    new: tuple[str, ...]
    dropped: tuple[str, ...]
    reasons: dict[str, int]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """As run.json keeps it: the carried ones counted, the others by name."""
        return {
            "carried": len(self.carried),
            "new": list(self.new),
            "dropped": list(self.dropped),
            "reasons": self.reasons,
            "notes": list(self.notes),
        }


def carry_over(source: Mapping[str, Tensor], target: nn.Module) -> CarryReport:
    """Copy a source's weights into a backbone, all or nothing, and account for every name.

    The source may hold the network under a path, numbered, beside heads and momentum copies (`weights_names`), in
    another floating type, or for one channel. Only attention weights may be new in the target; any other difference
    in names or shapes, and a weight that is not finite, raises MstlError and leaves the target as it was.
    """
    state = target.state_dict()
    found = find_backbone(source)
    carried = sorted(found.names.keys() & state.keys())
    new = sorted(state.keys() - found.names.keys())
    looks = guess_network(found.names)
    looks = "" if looks == guess_network(state) else looks
    _refuse(
        [name for name in new if not name.startswith(NEW_PREFIXES) and not name.endswith(COUNTERS)],
        "the source lacks",
        looks,
    )
    _refuse(
        sorted(found.names[name] for name in found.names.keys() - state.keys()), "the network has no place for", looks
    )
    notes = [] if not found.prefix else [f"found under '{found.prefix}'"]
    fitting = {name: _fit(name, source[found.names[name]], state[name], notes) for name in carried}
    kinds = sorted({str(source[found.names[name]].dtype) for name in carried if state[name].is_floating_point()})
    if kinds != ["torch.float32"]:
        notes.append(f"converted from {' and '.join(kind.removeprefix('torch.') for kind in kinds)} to float32")
    with torch.no_grad():
        for name, tensor in fitting.items():
            state[name].copy_(tensor)
    return CarryReport(
        carried=tuple(carried),
        new=tuple(new),
        dropped=tuple(sorted(found.beside)),
        reasons=group_reasons(found.beside),
        notes=tuple(notes),
    )


def describe_carry(account: Mapping[str, Any]) -> str:
    """A run.json's `carry` in a few words, for a run's first line."""
    parts = [
        f"{account['carried']} weights carried",
        f"{len(account['new'])} new",
        f"{len(account['dropped'])} dropped",
    ]
    return ", ".join([*parts, *account.get("notes", [])])  # runs of older versions have no notes


def _fit(name: str, tensor: Tensor, wanted: Tensor, notes: list[str]) -> Tensor:
    """The tensor as the network takes it; MstlError where it cannot."""
    if name == STEM and tensor.dim() == 4 and tensor.shape[1] == 1 and tensor.shape != wanted.shape:
        spread = tensor.float().expand(-1, wanted.shape[1], -1, -1) / wanted.shape[1]
        if spread.shape == wanted.shape:
            # A grey image has three equal channels: the thirds add up to what one channel gave.
            notes.append(f"{name} for one channel spread over {wanted.shape[1]}")
            tensor = spread
    if tensor.shape != wanted.shape:
        raise MstlError(
            f"weight '{name}'",
            why=f"it is {_shape(tensor)} in the source and {_shape(wanted)} in the network",
            remedy="Name weights of the same network, or their network with --model",
        )
    if tensor.is_floating_point() != wanted.is_floating_point():
        raise MstlError(
            f"weight '{name}'",
            why=f"it is of type {tensor.dtype} in the source and {wanted.dtype} in the network".replace("torch.", ""),
            remedy="Give weights that are not quantised",
        )
    if not torch.isfinite(tensor).all():
        raise MstlError(
            f"weight '{name}'",
            why="it holds values that are not finite, as after a training that diverged",
            remedy="Give an earlier checkpoint",
        )
    return tensor


def _refuse(names: Sequence[str], why: str, looks: str) -> None:
    if names:
        others = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise MstlError(
            "weights do not fit the network",
            why=f"{why} '{names[0]}'{others}{looks}",
            remedy="Name weights of the same network, or their network with --model",
        )


def _shape(tensor: Tensor) -> str:
    return "x".join(str(side) for side in tensor.shape) or "a scalar"
