"""Functions of numpy as nodes of a CPU graph: a batch in parts, in as many threads as the pipeline has.

Nothing is drawn or kept in such a node, so checkpoints need not know of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from nvidia.dali import fn
from nvidia.dali.data_node import DataNode
from nvidia.dali.pipeline import Pipeline
from torch.utils.dlpack import from_dlpack

Array = NDArray[Any]
Compute = Callable[..., tuple[Array, ...]]

PART = 16
"""Images at a time: few enough that what is made of small ones stays in a core's cache."""


def batchwise(compute: Compute, *inputs: DataNode, outputs: int) -> tuple[DataNode, ...]:
    """`compute` takes each input, all of one shape, stacked along a new first axis, and gives its outputs like that."""
    made = fn.dl_tensor_python_function(
        *inputs,
        function=_batch_function(compute, outputs, threads=Pipeline.current().num_threads),
        batch_processing=True,
        num_outputs=outputs,
    )
    return tuple(cast(Sequence[DataNode], made))


def _batch_function(compute: Compute, outputs: int, threads: int) -> Callable[..., tuple[list[Any], ...]]:
    """What DALI calls with the images of a batch; the threads are of this graph alone and end with it."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="batchwise")

    def part(columns: Sequence[Sequence[Any]]) -> tuple[Array, ...]:
        return compute(*(np.stack([from_dlpack(value).numpy() for value in column]) for column in columns))

    def batch(*columns: Sequence[Any]) -> tuple[list[Any], ...]:
        size = max(1, min(PART, -(-len(columns[0]) // threads)))
        parts = [[column[first : first + size] for column in columns] for first in range(0, len(columns[0]), size)]
        rows = [row for done in pool.map(part, parts) for row in zip(*done, strict=True)]
        return tuple([torch.from_numpy(row[at]).__dlpack__() for row in rows] for at in range(outputs))

    return batch
