"""A clock that a test holds."""


class Clock:
    """Seconds since nothing in particular; set `now`."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now
