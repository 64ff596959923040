"""The networks' names, apart from the networks: a command can check one without torch."""

from __future__ import annotations

from shards.errors import MstlError

# 50 and 101 are the paper's; 14 and 26 (ours) serve smoke tests and small studies.
DEPTHS = {"resnet14": (1, 1, 1, 1), "resnet26": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}
# Paper, "1 ATTN" and "5 ATTNs": how many attention blocks end each stage.
PLACEMENTS = {"attn0": {}, "attn1": {"res3": 1}, "attn5": {"res3": 2, "res4": 2, "res5": 1}}


def backbone_names() -> tuple[str, ...]:
    """Every name `build_backbone` takes; a depth alone means no attention."""
    return tuple(name for depth in DEPTHS for name in (depth, *(f"{depth}-{attention}" for attention in PLACEMENTS)))


def full_name(name: str) -> str:
    """The name with its attention spelt out (`resnet50` → `resnet50-attn0`); MstlError for an unknown name."""
    if name not in backbone_names():
        raise MstlError(
            f"network '{name}'",
            why="there is no network of this name",
            remedy=f"Choose from {', '.join(backbone_names())}",
        )
    return name if "-" in name else f"{name}-attn0"
