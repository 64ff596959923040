"""The images of the loader benchmark: class folders, the shard sets made from them, and the same bytes for peers."""

from __future__ import annotations

import random
import statistics
import tarfile
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from shards.errors import MstlError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from shards.progress import Progress

LEAST_CPU_SECONDS = 0.5  # of a run: the system counts in ticks of 10 ms
Crop = Literal["area", "square", "views"]
_SUFFIXES = (".jpg", ".jpeg", ".png")  # what shards hold byte for byte
_CLASS_FOLDERS = "Name a folder of class folders, such as train/ of ImageNet"


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What every side is given: the files, the shard set with the same bytes, and how to read them.

    originals: the files before they were made smaller, else `images` again. crop: "area" (RandomResizedCrop), "square"
    (the printed recipe: the whole image to a square, a random square of that) or "views" (SSTL-M's seven).
    """

    images: Path
    originals: Path
    shards: Path
    crop: Crop
    size: int
    batch: int
    threads: int
    seconds: float


def draw_images(images: int, folder: Path, progress: Progress) -> None:
    """Generated pictures as class folders: those of `mstl sample` with seed 0, class after class in turn."""
    from shards.sample import natural
    from shards.sample.paint import encode

    progress.start(images, "drawing images")
    for i in range(images):
        number, label = divmod(i, len(natural.CLASSES))
        wnid = natural.CLASSES[label][0]
        (folder / wnid).mkdir(parents=True, exist_ok=True)
        (folder / wnid / f"{wnid}_{number + 1}.JPEG").write_bytes(encode(natural.draw(0, label, (0, number)), "JPEG"))
        progress.advance()


def link_images(raw: Path, images: int, folder: Path) -> None:
    """JPEG and PNG files of class folders, in random order (always the same), repeated up to `images`, as links."""
    from shards.sources.listing import class_folders, image_files

    try:
        files = [path for part in class_folders(raw) for path in image_files(part) if path.suffix.lower() in _SUFFIXES]
    except OSError as error:
        raise MstlError(f"--raw {raw}", why=f"it cannot be read ({error.strerror})", remedy=_CLASS_FOLDERS) from error
    if not files:
        raise MstlError(f"--raw {raw}", why="no folder in it holds a JPEG or PNG", remedy=_CLASS_FOLDERS)
    random.Random(0).shuffle(files)
    for i, path in enumerate(islice(cycle(files), images)):
        (folder / path.parent.name).mkdir(parents=True, exist_ok=True)
        (folder / path.parent.name / f"{i:06d}_{path.name}").symlink_to(path.resolve())


def write_set(
    images: Path, shards: Path, threads: int, progress: Progress, *, source: str = "folder", resize: int | None = None
) -> dict[str, Any]:
    """Convert a source to a shard set, several tars for each thread, and describe its training images as stored."""
    from shards.read import read_records
    from shards.sources import read_source
    from shards.writer import WriteOptions, write_shards

    listing = read_source(source, images)
    per_shard = max(1, -(-sum(item.split == "train" for item in listing.items) // (4 * threads)))
    options = WriteOptions(
        samples_per_shard=per_shard, val_fraction=0, max_bad=0, workers=threads, resize=resize
    )  # fmt: skip
    manifest = write_shards(listing, shards, options, progress)
    records = read_records(shards, "train")
    return {
        "images": len(records),
        "distinct_images": len({record.stored_sha256 for record in records}),
        "classes": len(manifest.classes),
        "mean_bytes": round(statistics.fmean(image_sizes(shards))),
        "mean_pixels": round(statistics.fmean(record.width * record.height for record in records)),
        "resize": resize,
        "shards": len(manifest.shards("train")),
        "shard_set_digest": manifest.digest(),
    }


def image_sizes(shards: Path) -> list[int]:
    """Bytes of every stored training image."""
    from shards.index import read_index
    from shards.schema import load_manifest

    indexes = (read_index(shards / shard.index) for shard in load_manifest(shards).shards("train"))
    return [part.size for index in indexes for sample in index for part in sample if part.ext in ("jpg", "png")]


def export_images(shards: Path, folder: Path) -> None:
    """The training images of a set byte for byte as class folders, each named by its sample id."""
    from shards.schema import load_manifest

    manifest = load_manifest(shards)
    for shard in manifest.shards("train"):
        with tarfile.open(shards / shard.path) as tar:
            kept: dict[str, tuple[str, bytes]] = {}
            for member in tar:
                key, _, extension = member.name.rpartition(".")
                data = tar.extractfile(member)
                assert data is not None, member.name
                if extension in ("jpg", "png"):
                    kept[key] = extension, data.read()
                elif extension == "i64":
                    _export(manifest.classes, folder, data.read(), *kept.pop(key))


def _export(classes: tuple[str, ...], folder: Path, named: bytes, extension: str, image: bytes) -> None:
    sample_id, label = (int.from_bytes(named[at : at + 8], "little", signed=True) for at in (0, 8))
    place = folder / classes[label]
    place.mkdir(parents=True, exist_ok=True)
    (place / f"{sample_id:07d}.{extension}").write_bytes(image)


def lung_boxes(job: Job) -> NDArray[np.float32]:
    """[samples, 4] lung box of every image of the set by sample id, as our pipeline locates it: free for the peers."""
    import sys

    import numpy as np

    from pipelines.loader import Loader
    from pipelines.recipe import multi_view_ct

    loader = Loader(
        multi_view_ct(job.size), job.shards, "train", rank=0, world=1, batch=job.batch, epochs=sys.maxsize,
        device="cpu", seed=0, shuffle=False, remainder="pad", threads=job.threads,
    )  # fmt: skip
    found = np.zeros((loader.plan.samples, 4), np.float32)
    for batch in loader:
        assert batch.boxes is not None
        found[batch.sample_ids.numpy()] = batch.boxes.numpy()
    loader.close()
    return found


def boxes_file(job: Job) -> Path:
    """Where the lung boxes of a job's images lie, as numpy stores them."""
    return job.images.parent / f"{job.images.name}-boxes.npy"
