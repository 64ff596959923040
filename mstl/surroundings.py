"""What the surroundings of a command tell it: which GPUs it may use, and that it is to stop."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any


def visible_devices() -> list[str] | None:
    """What CUDA_VISIBLE_DEVICES lets be seen: nothing where it is empty or -1; None where it is not set."""
    if "CUDA_VISIBLE_DEVICES" not in os.environ:
        return None
    words = [word.strip() for word in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if word.strip()]
    return [] if words == ["-1"] else words


def take_stop_signals(handler: Callable[[int, FrameType | None], None]) -> Callable[[], None]:
    """Let `handler` have SIGTERM, SIGINT and SIGHUP; returns what gives them back to whoever had them."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before: dict[int, Any] = {number: signal.signal(number, handler) for number in numbers}

    def give_back() -> None:
        for number, earlier in before.items():
            signal.signal(number, earlier)

    return give_back
