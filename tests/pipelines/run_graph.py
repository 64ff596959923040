"""Run a piece of a graph on arrays: for tests of single ops against references."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from nvidia.dali import fn, pipeline_def


def run_graph(graph: Callable[..., object], *columns: Sequence[np.ndarray], seed: int = 1) -> list[list[np.ndarray]]:
    """Outputs of `graph(*edges)` for one batch: each column is a batch of HWC images, or else of plain tensors.

    Returns one list of arrays per output.
    """

    def source(column: Sequence[np.ndarray]) -> object:
        layout = "HWC" if column[0].ndim == 3 else None
        return fn.external_source(source=lambda: list(column), layout=layout, batch=True)

    @pipeline_def(batch_size=len(columns[0]), num_threads=2, device_id=None, seed=seed)
    def whole() -> object:
        return graph(*(source(column) for column in columns))

    pipeline = whole()
    outputs = pipeline.run()
    return [[np.array(output[i]) for i in range(len(output))] for output in outputs]
