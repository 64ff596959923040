"""The optimizers of the recipes: SGD, and LARS for large contrastive batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from mstl.recipes import Optim

ETA = 0.001  # LARS's trust coefficient (You et al. 2017, eq. 6; SimCLR's code)


def build_optimizer(named_parameters: Iterable[tuple[str, nn.Parameter]], optim: Optim) -> torch.optim.Optimizer:
    """The recipe's optimizer over the parameters that require gradients; frozen ones (a key encoder) are left out.

    Every group of it takes the learning rate of the step: `group["lr"] = rate`.
    """
    trained = [parameter for _, parameter in named_parameters if parameter.requires_grad]
    if optim.algorithm == "lars":
        return Lars(trained, lr=optim.lr, momentum=optim.momentum, weight_decay=optim.weight_decay)
    return torch.optim.SGD(trained, lr=optim.lr, momentum=optim.momentum, weight_decay=optim.weight_decay, foreach=True)


class Lars(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling as SimCLR uses it (You et al. 2017; Chen et al. 2020, appendix B).

    For a weight w with gradient g:  g ← g + weight_decay · w;  v ← momentum · v + lr · ETA · |w| / |g| · g;
    w ← w - v. The rate enters the momentum, where torch's SGD applies it afterwards. Vectors (biases, and scales and
    shifts of norms) are neither decayed nor adapted, and neither are weights or gradients of norm 0.

    Whole tensors are needed for the norms, so this cannot run on the flattened parts of ZeRO 1 and 2.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], *, lr: float, momentum: float, weight_decay: float) -> None:
        every = list(parameters)
        matrices = [parameter for parameter in every if parameter.ndim > 1]
        vectors = [parameter for parameter in every if parameter.ndim <= 1]
        groups: list[dict[str, Any]] = [
            {"params": matrices, "weight_decay": weight_decay, "adapted": True},
            {"params": vectors, "weight_decay": 0.0, "adapted": False},
        ]
        super().__init__([group for group in groups if group["params"]], {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._update(group)
        return loss

    def _update(self, group: dict[str, Any]) -> None:
        trained = [parameter for parameter in group["params"] if parameter.grad is not None]
        if not trained:
            return
        velocities: list[Tensor] = []
        for parameter in trained:
            state = self.state[parameter]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            velocities.append(state["momentum_buffer"])
        updates = torch._foreach_add([p.grad for p in trained], trained, alpha=group["weight_decay"])
        if group["adapted"]:
            trust = _trust(torch.stack(torch._foreach_norm(trained)), torch.stack(torch._foreach_norm(updates)))
            torch._foreach_mul_(updates, trust.unbind())
        torch._foreach_mul_(velocities, group["momentum"])
        torch._foreach_add_(velocities, updates, alpha=group["lr"])
        torch._foreach_sub_(trained, velocities)


def _trust(weight_norms: Tensor, update_norms: Tensor) -> Tensor:
    """ETA · |w| / |g| of every layer, and 1 where either is 0; the device is not asked for a number."""
    usable = (weight_norms > 0) & (update_norms > 0)
    return torch.where(usable, ETA * weight_norms / update_norms, torch.ones_like(weight_norms))
