"""Keeping torch's profiler from telling stderr about itself."""

from __future__ import annotations

import os


def hush() -> None:
    """To be called before torch is imported; processes started later inherit it. What the user has set stays."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # starts, stops, and that there is no GPU
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # that memory older than the profile was freed
