"""Lung masks brought to where the network sees the lungs: through the very graph that brings the images there."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from mstl.evaluation.explain_files import SPLIT, ImageFile, write_file_set
from pipelines.loader import Loader
from pipelines.recipe import Inputs
from shards.errors import MstlError
from shards.progress import QUIET, Progress
from shards.read import read_records

SIDES_MAY_DIFFER = 0.02  # of an image's proportions: sizes of small copies are rounded
BATCH = 32
Size = tuple[int, int]


def mask_inputs(inputs: Inputs) -> Inputs:
    """The recipe that does to a mask what `inputs` does to its image: resize and centre crop, values left at 0..1.

    Raises MstlError where images are flipped, moved or cropped at random, for no mask could follow.
    """
    if inputs.views != "one" or inputs.crop != "centre" or inputs.flip or inputs.moves:
        raise MstlError(
            "--masks",
            why="this run evaluates images that are flipped or moved at random, which masks cannot follow",
            remedy="Name a run without data.evaluation=as_printed, or leave the masks out",
        )
    return Inputs(
        name="mask",
        channels="grey",
        image_size=inputs.image_size,
        resize=inputs.resize,
        crop="centre",
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
    )


def load_masks(
    masks: Mapping[str, Path], sizes: Mapping[str, Size], inputs: Inputs, *, progress: Progress = QUIET
) -> dict[str, Tensor]:
    """Name → [image_size, image_size] float32: how much of each pixel that the network sees is lung.

    masks: name → PNG of 0 outside and anything else inside, of the image's proportions. sizes: name → width and height
    of the image in pixels; masks of names that are not there are passed over. Raises MstlError for a mask that cannot
    be read or is of another shape than its image, naming it, and as `mask_inputs` does.
    """
    seen_by = mask_inputs(inputs)
    wanted = sorted(masks.keys() & sizes.keys())
    if not wanted:
        return {}
    found: dict[str, Tensor] = {}
    with TemporaryDirectory(prefix="mstl-masks-") as folder:
        files = []
        for index, name in enumerate(wanted):
            plain = Path(folder) / f"{index:08d}.png"
            Image.fromarray(255 * _inside(masks[name], sizes[name]).astype(np.uint8)).save(plain)
            files.append(ImageFile(name=name, path=plain))
        made = write_file_set(files, Path(folder) / "set", classes=("mask",))
        names = {r.sample_id: made.files[int(r.key)].name for r in read_records(made.folder, SPLIT)}
        loader = Loader(
            seen_by, made.folder, SPLIT, rank=0, world=1, batch=min(BATCH, len(wanted)), epochs=1, device="cpu",
            seed=0, shuffle=False, remainder="pad",
        )  # fmt: skip
        progress.start(len(wanted), "reading masks")
        with closing(loader):
            for batch in loader:
                for sample_id, mask in zip(batch.sample_ids.tolist(), batch.views["x"], strict=True):
                    found[names[sample_id]] = mask[0].clone()
                progress.advance(len(batch))
    return found


def _inside(path: Path, size: Size) -> NDArray[np.bool_]:
    """[H, W]: where a mask is not 0 in any colour; transparency says nothing."""
    try:
        with Image.open(path) as image:
            image.load()
            values = np.asarray(image)
            colours = len(image.getbands()) - ("A" in image.getbands())
    except (OSError, ValueError, SyntaxError) as error:
        raise MstlError(f"mask {path}", why=f"it cannot be read ({error})", remedy="Bring a whole PNG") from error
    inside: NDArray[np.bool_] = values != 0 if values.ndim == 2 else (values[..., :colours] != 0).any(2)
    height, width = inside.shape
    if abs(width * size[1] / (height * size[0]) - 1) > SIDES_MAY_DIFFER:
        raise MstlError(
            f"mask {path}",
            why=f"it is {width} × {height} pixels and its image {size[0]} × {size[1]}, of another shape",
            remedy="Give the mask that was drawn on this image",
        )
    return inside
