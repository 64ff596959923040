"""The learning rate as a function of where training stands: no state, so a resume needs nothing."""

from __future__ import annotations

import math

from mstl.recipes import Optim


def learning_rate(optim: Optim, *, epoch: int, step: int, steps: int) -> float:
    """The rate of a step (counted from 0) of an epoch (from 0) of `steps` steps.

    Rises linearly to `lr` over the warm-up: its first update is made at a part of the rate, its last at all of it.
    Then "step" multiplies by gamma at each milestone (paper 6.2), "cosine" falls as lr (1 + cos πt) / 2, t from 0 at
    the end of the warm-up towards 1 at the end of training (SimCLR; MoCo v2 without warm-up). With `lr_per` "epoch" all
    steps of an epoch have the rate of its first.
    """
    if optim.lr_per == "epoch":
        step, steps = 0, 1
    done = epoch * steps + step
    warmup, total = optim.warmup_epochs * steps, optim.epochs * steps
    if done < warmup:
        return optim.lr * (done + 1) / warmup
    if optim.schedule == "cosine":
        return optim.lr * (1 + math.cos(math.pi * (done - warmup) / (total - warmup))) / 2
    return optim.lr * optim.gamma ** sum(epoch >= milestone for milestone in optim.milestones)
