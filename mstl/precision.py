"""Which precision a device computes in under autocast, and the few sums that must not be rounded to it."""

import torch
from torch import Tensor

from mstl.recipes import Precision

_BF16_SINCE = (8, 0)  # compute capability (Ampere); torch emulates bfloat16 on older GPUs, slowly


def autocast_dtype(precision: Precision, device: torch.device) -> torch.dtype | None:
    """The dtype of torch.autocast on a device, or None for float32.

    "auto" is bfloat16 on a GPU that has it, float16 (with loss scaling) on an older one, float32 on a CPU.
    """
    choice = precision.autocast
    if choice == "auto":
        if device.type != "cuda":
            return None
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= _BF16_SINCE else torch.float16
    return {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}[choice]


def widen(tensor: Tensor) -> Tensor:
    """The tensor in float32, or in its own dtype where that is wider (float64 stays float64)."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def no_autocast(tensor: Tensor) -> torch.autocast:
    """A context in which autocast is off on the tensor's device."""
    return torch.autocast(tensor.device.type, enabled=False)
