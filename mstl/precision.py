"""Full precision inside autocast: the few sums that must not be rounded to bfloat16."""

import torch
from torch import Tensor


def widen(tensor: Tensor) -> Tensor:
    """The tensor in float32, or in its own dtype where that is wider (float64 stays float64)."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def no_autocast(tensor: Tensor) -> torch.autocast:
    """A context in which autocast is off on the tensor's device."""
    return torch.autocast(tensor.device.type, enabled=False)
