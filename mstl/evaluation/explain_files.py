"""Image files that are in no shard set, put into one for a while: the graph that a run was evaluated with then reads
them as it reads everything else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from shards.check import Refused, read_and_check
from shards.errors import MstlError
from shards.progress import QUIET, Progress
from shards.schema import Manifest
from shards.sources.blob import Readable
from shards.sources.listing import Item, Listing, file_blob, named_like_image
from shards.writer import WriteOptions, write_shards

MASK_ENDING = "_mask"
SPLIT = "train"  # of the set for a while: the one that every set has


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageFile:
    """name: its path below the folder that was named, without the ending. width, height: in pixels, as shown."""

    name: str
    path: Path
    width: int = 0
    height: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class FileSet:
    """A shard set of image files: the sample with key K holds files[int(K)]. refused: names and reasons."""

    folder: Path
    manifest: Manifest
    files: tuple[ImageFile, ...]
    refused: tuple[tuple[str, str], ...]


def find_images(paths: Sequence[Path]) -> list[ImageFile]:
    """The image files that are named, and those in folders and below, by name; X_mask beside X is a mask, not an image.

    Raises MstlError for a path that is not there, when there are none, and for two of the same name.
    """
    found: dict[str, Path] = {}
    for path in paths:
        if not path.exists():
            raise MstlError(f"--images {path}", why="there is no such file or folder", remedy="Check the path")
        for file in [path] if path.is_file() else _images_below(path):
            name = path.stem if path.is_file() else name_below(path, file)
            if name in found:
                raise MstlError(
                    f"image {file}",
                    why=f"{found[name]} has the same name, {name}",
                    remedy="Name the folder above both, or rename one",
                )
            found[name] = file
    images = [name for name in found if not (name.endswith(MASK_ENDING) and name.removesuffix(MASK_ENDING) in found)]
    if not images:
        raise MstlError(
            f"--images {' '.join(map(str, paths))}", why="no images are there", remedy="Name images or folders of them"
        )
    return [ImageFile(name=name, path=found[name]) for name in images]


def name_below(folder: Path, file: Path) -> str:
    """The path of a file below a folder, with forward slashes and without the ending of its name."""
    return str(PurePosixPath(file.relative_to(folder).with_suffix("")))


def find_masks(folder: Path) -> dict[str, Path]:
    """Name of an image → file of its mask, in a folder and below: NAME_mask.png; where no file is called so, NAME.png.

    Raises MstlError when the folder is not there or holds no PNG.
    """
    if not folder.is_dir():
        raise MstlError(f"--masks {folder}", why="there is no such folder", remedy="Name a folder of PNG masks")
    files = {name_below(folder, file): file for file in _images_below(folder) if file.suffix.lower() == ".png"}
    if not files:
        raise MstlError(
            f"--masks {folder}",
            why="no PNG is there",
            remedy=f"Put a mask NAME{MASK_ENDING}.png there for each image NAME",
        )
    masks = {name.removesuffix(MASK_ENDING): file for name, file in files.items() if name.endswith(MASK_ENDING)}
    return masks or files


def write_file_set(
    files: Sequence[ImageFile], folder: Path, *, classes: tuple[str, ...], progress: Progress = QUIET
) -> FileSet:
    """Make a shard set of image files at `folder`; what cannot be read is left out and named.

    Every label is 0, which says nothing. Raises MstlError when no image can be read.
    """
    sound: list[ImageFile] = []
    refused: list[tuple[str, str]] = []
    progress.start(len(files), "reading images")
    for file in files:
        _, found = read_and_check(file_blob(file.path))
        if isinstance(found, Refused):
            refused.append((file.name, found.reason))
        else:
            sound.append(ImageFile(name=file.name, path=file.path, width=found.width, height=found.height))
        progress.advance(refused=int(isinstance(found, Refused)))
    if not sound:
        raise MstlError(
            f"{len(files)} images, {files[0].path} the first",
            why=f"none of them can be read ({refused[0][1]})",
            remedy="Name PNG, JPEG, TIFF, BMP, GIF or WebP images that are whole",
        )
    manifest = write_set([file_blob(file.path) for file in sound], folder, classes=classes)
    return FileSet(folder=folder, manifest=manifest, files=tuple(sound), refused=tuple(refused))


def write_set(
    blobs: Sequence[Readable],
    folder: Path,
    *,
    classes: tuple[str, ...],
    modality: str = "natural",
    options: WriteOptions | None = None,
) -> Manifest:
    """Make a shard set of images that were found sound; the sample with key K holds blobs[int(K)], its label 0.

    modality: decides how images are written where `options` resizes them, and nothing else: how they are read stands in
    the run's own inputs. options: by default images are stored as they came; they were decoded in full, and are not
    again.
    """
    items = tuple(
        Item(key=f"{i:08d}", split=SPLIT, label=0, patient=None, blob=blob, origin=f"{i:08d}")
        for i, blob in enumerate(blobs)
    )
    listing = Listing(
        source="image files", modality=modality, classes=classes, items=items, expected=None, notes=()
    )  # fmt: skip
    return write_shards(listing, folder, options or WriteOptions(decode=False), QUIET)


def _images_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if named_like_image(path.name) and path.is_file())
