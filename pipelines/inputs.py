"""The one graph: read, decode, augment, locate and cut regions; the same definition for CPU and GPU."""

from __future__ import annotations

from collections.abc import Sequence

from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.data_node import DataNode
from nvidia.dali.pipeline import Pipeline

from pipelines import augment, lobes
from pipelines.recipe import Inputs

READER = "shards"
IMAGE_EXTENSIONS = "jpg;png"


def read(tars: Sequence[str], indexes: Sequence[str]) -> tuple[DataNode, DataNode]:
    """Encoded image and [2] int64 (sample_id, label), on the CPU, in the very order of the index files.

    Order, sharding and repeats are the plan's, written into the indexes; DALI's own stay off.
    """
    encoded, named = fn.readers.webdataset(  # type: ignore[misc]  # its stub cannot know that two come out
        paths=list(tars),
        index_paths=list(indexes),
        ext=[IMAGE_EXTENSIONS, "i64"],
        dtypes=[types.UINT8, types.INT64],
        missing_component_behavior="error",
        random_shuffle=False,
        name=READER,
    )
    return encoded, named


def decode(encoded: DataNode, device: str) -> DataNode:
    """HWC uint8 RGB whatever was stored: grey is repeated to three channels, an alpha channel dropped."""
    return fn.decoders.image(encoded, device="mixed" if device == "gpu" else "cpu", output_type=types.RGB)


@pipeline_def  # type: ignore[untyped-decorator]
def _graph(inputs: Inputs, tars: Sequence[str], indexes: Sequence[str], device: str) -> tuple[DataNode, ...]:
    encoded, named = read(tars, indexes)
    image = decode(encoded, device)
    resized = None if inputs.crop == "area" else augment.resize_square(image, inputs.resize)
    names = inputs.view_names[:2] if inputs.has_regions else inputs.view_names
    views = [augment.view(image, resized, inputs) for _ in names]
    if not inputs.has_regions:
        return (*views, named)
    box, fallback = lobes.locate(image, device)
    cut = [augment.region_view(region, inputs) for region in lobes.regions(image, box, inputs.image_size)]
    return (*views, *cut, named, fn.cat(box, fallback))


def build_pipeline(
    inputs: Inputs,
    tars: Sequence[str],
    indexes: Sequence[str],
    *,
    batch: int,
    threads: int,
    device: str,
    device_id: int,
    seed: int,
    checkpoint: bytes | None = None,
) -> Pipeline:
    """The pipeline of a recipe over (tar, index) pairs, not yet built; `checkpoint` restores a position.

    Outputs: one per view name ([B, H, W, 3] float, on the device), then [B, 2] int64 (sample_id, label) on the CPU,
    then, where the recipe has regions, [B, 5] float on the device: lung box (x0, y0, x1, y1) and fallback.
    """
    return _graph(
        inputs,
        tars,
        indexes,
        device,
        batch_size=batch,
        num_threads=threads,
        device_id=device_id if device == "gpu" else None,
        seed=seed,
        enable_checkpointing=True,
        checkpoint=checkpoint,
    )
