"""Finding lungs in images from anywhere as training does, step for step, and showing what was found."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.data_node import DataNode
from PIL import Image, ImageDraw, ImageOps

from pipelines import lobes, resize
from pipelines.inputs import decode, luminance
from pipelines.recipe import multi_view_ct
from shards.check import Checked, Refused, check_bytes
from shards.errors import MstlError
from shards.files import write_atomic
from shards.progress import QUIET, Progress
from shards.read import iter_images
from shards.schema import MANIFEST_NAME, load_manifest
from shards.sheet import Cell, contact_sheet, eight_bit

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
BATCH = 16
CELLS_PER_SHEET, COLUMNS, CELL_PX = 64, 8, 200
_LUNG_COLOUR, _REGION_COLOUR, _FALLBACK_COLOUR = (40, 220, 60), (255, 210, 0), (255, 60, 40)

Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Located:
    """One image: name, size in pixels as shown, lung box in pixels (x0, y0, x1, y1), whether it is the whole image
    because no lungs were found, and a small picture of it with the boxes drawn.
    """

    name: str
    width: int
    height: int
    lungs: Box
    fallback: bool
    picture: Image.Image

    def regions(self) -> dict[str, Box]:
        """The five regions in pixels, by name."""
        return {name: _region(self.lungs, place) for name, place in lobes.TEMPLATE.items()}


@dataclass(frozen=True, slots=True)
class Outcome:
    """How many images were located (fallbacks among them), fell back to the whole image, and were refused."""

    located: int
    fallbacks: int
    refused: int


@dataclass(frozen=True, slots=True)
class _Sound:
    name: str
    encoded: bytes
    width: int
    height: int


def locate_all(
    sources: Sequence[Path], out: Path, *, split: str | None = None, device: str = "cpu", progress: Progress = QUIET
) -> Outcome:
    """Locate lungs in files, folders and shard sets; write `boxes.json` and contact sheets `sheet-NNN.png` to `out`.

    split: of shard sets, by default all. Images that cannot be read are named in boxes.json under "refused". Raises
    MstlError when there are no images, or none can be read.
    """
    if device == "gpu" and not torch.cuda.is_available():
        raise MstlError("--device gpu", why="this machine has no GPU that CUDA sees", remedy="Leave it at cpu")
    count = sum(_count(source, split) for source in sources)
    if count == 0:
        raise MstlError(
            ", ".join(map(str, sources)),
            why=f"no images are there (files ending in {', '.join(SUFFIXES)})",
            remedy="Name images, folders of images or a shard set",
        )
    progress.start(count, "locating lungs")
    found: list[Located] = []
    refused: list[tuple[str, str]] = []
    batch: list[_Sound] = []
    for name, data in (item for source in sources for item in _images(source, split)):
        checked = check_bytes(data)
        if isinstance(checked, Refused):
            refused.append((name, checked.reason))
        else:
            batch.append(_sound(name, data, checked))
        if len(batch) == BATCH:
            found += _locate_batch(batch, device)
            batch = []
        progress.advance(refused=int(isinstance(checked, Refused)))
    found += _locate_batch(batch, device) if batch else []
    if not found:
        name, reason = refused[0]
        raise MstlError(
            f"{len(refused)} images, {name} the first",
            why=f"none of them can be read ({reason})",
            remedy="Name PNG, JPEG, TIFF, BMP, GIF or WebP images that are whole",
        )
    _write(found, refused, out)
    return Outcome(len(found), sum(one.fallback for one in found), len(refused))


def _is_shard_set(source: Path) -> bool:
    return (source / MANIFEST_NAME).is_file()


def _files(source: Path) -> list[Path]:
    if source.is_dir():
        return sorted(path for path in source.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not source.is_file():
        raise MstlError(str(source), why="there is no such file or folder", remedy="Check the path")
    return [source]


def _count(source: Path, split: str | None) -> int:
    if not _is_shard_set(source):
        return len(_files(source))
    manifest = load_manifest(source)
    return sum(manifest.samples(name) for name in ([split] if split else manifest.splits))


def _images(source: Path, split: str | None) -> Iterator[tuple[str, bytes]]:
    """Names and encoded bytes; a sample of a shard set is called SET/SPLIT/KEY."""
    if not _is_shard_set(source):
        yield from ((str(path), path.read_bytes()) for path in _files(source))
        return
    for name in [split] if split else load_manifest(source).splits:
        yield from ((f"{source}/{name}/{record.key}", data) for record, data in iter_images(source, name))


def _sound(name: str, data: bytes, checked: Checked) -> _Sound:
    """The image in a form that the graph decodes: as it is, or as PNG where training would get it re-encoded too."""
    if not checked.as_is:
        with Image.open(io.BytesIO(data)) as image:
            again = io.BytesIO()
            eight_bit(ImageOps.exif_transpose(image)).convert("RGB").save(again, "PNG")
            data = again.getvalue()
    return _Sound(name, data, checked.width, checked.height)


@pipeline_def  # type: ignore[untyped-decorator]
def _graph(encoded: list[np.ndarray], device: str) -> tuple[DataNode, ...]:
    """As SSTL-M sees it at its own image size: lungs are looked for in the square that the views are cut from."""
    seen_by = multi_view_ct()
    source = fn.external_source(source=[encoded], batch=True, dtype=types.UINT8)
    square = resize.square(decode(source, seen_by, device), seen_by.resize, bits=seen_by.bits)
    box, fallback = lobes.locate(luminance(square, seen_by))
    return box.cpu(), fallback.cpu()


def _locate_batch(batch: Sequence[_Sound], device: str) -> list[Located]:
    """Boxes of sound images by the graph of training."""
    encoded = [np.frombuffer(one.encoded, np.uint8) for one in batch]
    pipeline = _graph(
        encoded, device, batch_size=len(batch), num_threads=1, device_id=0 if device == "gpu" else None,
        prefetch_queue_depth=1,
    )  # fmt: skip
    boxes, fallbacks = pipeline.run()
    return [
        _located(one, np.asarray(boxes[at]), bool(np.asarray(fallbacks[at])[0] > 0.5)) for at, one in enumerate(batch)
    ]


def _located(one: _Sound, box: np.ndarray, fallback: bool) -> Located:
    x0, y0, x1, y1 = (float(place) for place in box)
    lungs = (x0 * one.width, y0 * one.height, x1 * one.width, y1 * one.height)
    with Image.open(io.BytesIO(one.encoded)) as image:
        picture = eight_bit(ImageOps.exif_transpose(image)).convert("RGB")
    scale = CELL_PX / max(picture.size)
    picture = picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))))
    draw = ImageDraw.Draw(picture)
    for place in () if fallback else lobes.TEMPLATE.values():
        _rectangle(draw, _region(lungs, place), scale, _REGION_COLOUR, 1)
    _rectangle(draw, lungs, scale, _FALLBACK_COLOUR if fallback else _LUNG_COLOUR, 2)
    return Located(one.name, one.width, one.height, lungs, fallback, picture)


def _rectangle(draw: ImageDraw.ImageDraw, box: Box, scale: float, colour: tuple[int, int, int], width: int) -> None:
    x0, y0, x1, y1 = (place * scale for place in box)
    draw.rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), outline=colour, width=width)


def _region(lungs: Box, place: Box) -> Box:
    """A location tuple (centre x, centre y, width, height) of the lung box, in pixels."""
    left, top, right, bottom = lungs
    wide, high = right - left, bottom - top
    x, y, w, h = place
    return (left + (x - w / 2) * wide, top + (y - h / 2) * high, left + (x + w / 2) * wide, top + (y + h / 2) * high)


def _write(found: Sequence[Located], refused: Sequence[tuple[str, str]], out: Path) -> None:
    """boxes.json and the sheets; those of an earlier run that had more are removed."""
    body = {
        "images": [
            {
                "image": one.name,
                "width": one.width,
                "height": one.height,
                "fallback": one.fallback,
                "lungs": _rounded(one.lungs),
                "regions": {name: _rounded(box) for name, box in one.regions().items()},
            }
            for one in found
        ],
        "refused": [{"image": name, "reason": reason} for name, reason in refused],
    }
    out.mkdir(parents=True, exist_ok=True)
    for stale in out.glob("sheet-[0-9][0-9][0-9].png"):
        stale.unlink()
    for number, first in enumerate(range(0, len(found), CELLS_PER_SHEET), start=1):
        cells = [_cell(one) for one in found[first : first + CELLS_PER_SHEET]]
        image = io.BytesIO()
        contact_sheet(cells, columns=COLUMNS, cell_px=CELL_PX).save(image, "PNG")
        write_atomic(out / f"sheet-{number:03d}.png", image.getvalue())
    write_atomic(out / "boxes.json", (json.dumps(body, indent=1, ensure_ascii=False) + "\n").encode())


def _rounded(box: Box) -> list[float]:
    return [round(place, 2) for place in box]


def _cell(one: Located) -> Cell:
    wide, high = one.lungs[2] - one.lungs[0], one.lungs[3] - one.lungs[1]
    about = "no lungs found: whole image" if one.fallback else f"lungs {wide:.0f} × {high:.0f}"
    return Cell(one.picture, (Path(one.name).name, f"{one.width} × {one.height}, {about}"))
