"""The one graph: read, decode, augment, locate and cut regions; the same definition for CPU and GPU.

One kind of node is the CPU's own: see resize.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.data_node import DataNode
from nvidia.dali.pipeline import Pipeline

from pipelines import augment, colour, lobes, resize
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


def decode(encoded: DataNode, inputs: Inputs, device: str) -> DataNode:
    """The image as the recipe works on it, or its random crop alone: HWC, RGB or one grey channel, values 0 … 255.

    uint8, whatever was stored: grey is repeated to RGB, colour becomes luminance, an alpha channel is dropped, 16 bits
    are scaled to 8. Float where the recipe keeps 16 bits; 8 bits are spread over the same range, so both may be mixed.
    """
    placed = "mixed" if device == "gpu" else "cpu"
    kind = types.GRAY if inputs.is_grey else types.RGB
    # Left to itself the decoder gives 8 bits of 16, unasked.
    dtype = types.UINT16 if inputs.bits == 16 else types.UINT8
    if inputs.decodes_crop:
        image = fn.decoders.image_random_crop(
            encoded,
            device=placed,
            output_type=kind,
            dtype=dtype,
            random_area=(inputs.area_min, inputs.area_max),
            random_aspect_ratio=augment.ASPECT_RATIOS,
        )
    else:
        image = fn.decoders.image(encoded, device=placed, output_type=kind, dtype=dtype)
    return fn.cast(image, dtype=types.FLOAT) * (255 / 65535) if inputs.bits == 16 else image


def luminance(image: DataNode, inputs: Inputs) -> DataNode:
    """The decoded image, or the square made of it, as uint8 of one channel."""
    if not inputs.is_grey:
        return colour.luminance(image)
    return fn.cast(image, dtype=types.UINT8) if inputs.bits == 16 else image


@pipeline_def  # type: ignore[untyped-decorator]
def _graph(inputs: Inputs, tars: Sequence[str], indexes: Sequence[str], device: str) -> tuple[DataNode, ...]:
    encoded, named = read(tars, indexes)
    image = decode(encoded, inputs, device)
    names = inputs.view_names[:2] if inputs.has_regions else inputs.view_names
    shared = inputs.crop != "area" and len(names) > 1
    resized = resize.square(image, inputs.resize, bits=inputs.bits) if shared else None
    views = [augment.view(image, resized, inputs) for _ in names]
    if not inputs.has_regions:
        return (*views, named)
    # The square that the views are cut from is cheaper to look at than the image; too small a one shows too little.
    seen = image if resized is None or inputs.resize < lobes.SIDE else resized
    box, fallback = lobes.locate(luminance(seen, inputs))
    cut = [augment.region_view(image, start, end, inputs) for start, end in lobes.region_windows(box)]
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
        exec_dynamic=True,  # torch may hold a batch as long as it likes: no other executor promises that
    )
