"""Two ranks with some of the predictions each, in a module that imports little: each rank imports it anew."""

from __future__ import annotations

import numpy as np
import torch

from mstl.evaluation.predictions import Predictions, gather_predictions


def gather_on(rank: int, folder: str) -> None:
    """Gather on this rank what both have (id 2 stands on both) and save it as FOLDER/rankN.npz."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    ids = np.array([[2, 4], [0, 2, 3]][rank], dtype=np.int64)
    both = np.stack([1 - ids / 10, ids / 10], 1).astype(np.float32)
    found = gather_predictions(Predictions(sample_ids=ids, labels=ids % 2, probabilities=both))
    np.savez(f"{folder}/rank{rank}.npz", ids=found.sample_ids, labels=found.labels, p=found.probabilities)
    torch.distributed.destroy_process_group()
