"""Learning: attention networks, losses, stages, the training loop, evaluation and reports."""

__version__ = "0.1.0"
