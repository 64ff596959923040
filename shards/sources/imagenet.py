"""ImageNet (ILSVRC2012): class folders, or the training tar of class tars, read in place without unpacking."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from shards.errors import MstlError
from shards.sources.blob import Blob
from shards.sources.listing import (
    Item,
    Listing,
    class_folders,
    file_blob,
    first_few,
    image_files,
    make_listing,
    named_like_image,
    need_folder,
)

TRAIN_TAR = "ILSVRC2012_img_train.tar"
VAL_TAR = "ILSVRC2012_img_val.tar"
LAYOUT = f"{TRAIN_TAR} (as downloaded) or train/<wnid>/*.JPEG, and val/<wnid>/*.JPEG"
FULL_COUNTS = {"train": 1_281_167, "val": 50_000}


def read(root: Path) -> Listing:
    """List ImageNet or a subset of it; classes are the sorted wnids of train, val may be missing.

    Raises MstlError for a missing train part, a flat val part, and val classes that train does not have.
    """
    need_folder("imagenet", root, LAYOUT)
    notes = []
    if (root / TRAIN_TAR).is_file():
        train = dict(_tar_classes(root / TRAIN_TAR))
        if (root / "train").is_dir():
            notes.append(f"both {TRAIN_TAR} and train/ are there: the tar was used")
    elif (root / "train").is_dir():
        train = _folder_classes(root, "train")
    else:
        raise MstlError(
            f"source imagenet in {root}",
            why=f"there is neither {TRAIN_TAR} nor train/",
            remedy=f"Expected there: {LAYOUT}",
        )
    val = _val_classes(root)
    unknown = sorted(val.keys() - train.keys())
    if unknown:
        raise MstlError(
            f"val classes in {root}",
            why=f"{len(unknown)} of {len(val)} are not in train: {first_few(unknown)}",
            remedy="Keep in val only the classes of train",
        )
    if not val:
        notes.append("there is no val/ folder, so the shard set gets no validation split")
    classes = sorted(train)
    label_of = {wnid: label for label, wnid in enumerate(classes)}
    items = [
        Item(key=PurePosixPath(origin).stem, split=split, label=label_of[wnid], patient=None, blob=blob, origin=origin)
        for split, part in (("train", train), ("val", val))
        for wnid, found in part.items()
        for origin, blob in found
    ]
    return make_listing(
        source="imagenet",
        root=root,
        layout=LAYOUT,
        modality="natural",
        classes=classes,
        items=items,
        expected=FULL_COUNTS if len(classes) == 1000 else None,
        notes=notes,
    )


def _val_classes(root: Path) -> dict[str, list[tuple[str, Blob]]]:
    folder = root / "val"
    classes = _folder_classes(root, "val") if folder.is_dir() else {}
    if classes:
        return classes
    flat = "val/ holds images without class folders" if folder.is_dir() and image_files(folder) else None
    if flat is None and (root / VAL_TAR).is_file():
        flat = f"{VAL_TAR} holds the images without their classes"
    if flat:
        raise MstlError(
            f"validation images in {root}",
            why=flat,
            remedy="Sort them into val/<wnid>/*.JPEG, or move them away to convert train alone",
        )
    return {}


def _folder_classes(root: Path, split: str) -> dict[str, list[tuple[str, Blob]]]:
    return {
        folder.name: [(f"{split}/{folder.name}/{path.name}", file_blob(path)) for path in image_files(folder)]
        for folder in class_folders(root / split)
    }


def _tar_classes(path: Path) -> Iterator[tuple[str, list[tuple[str, Blob]]]]:
    """Per class tar inside the tar: its wnid, and (origin, blob) of its images. Only headers are read."""
    try:
        with tarfile.open(path, "r:") as outer:
            inner_tars = [(m.name, m.offset_data, m.size) for m in outer if m.isreg() and m.name.endswith(".tar")]
        with path.open("rb") as file:
            for name, start, size in inner_tars:
                file.seek(start)
                yield PurePosixPath(name).stem, list(_inner_images(path, name, file_start=start, size=size))
    except tarfile.TarError as error:
        raise MstlError(
            str(path), why=f"it is not a whole uncompressed tar ({error})", remedy="Download it again"
        ) from error


def _inner_images(path: Path, inner_name: str, *, file_start: int, size: int) -> Iterator[tuple[str, Blob]]:
    with path.open("rb") as file:
        file.seek(file_start)
        with tarfile.open(fileobj=file, mode="r:") as inner:
            for member in inner:
                if member.offset >= file_start + size:  # a class tar without end blocks runs on into the next one
                    return
                if member.offset_data + member.size > file_start + size:
                    raise tarfile.ReadError(f"{inner_name} ends in the middle of {member.name}")
                base = PurePosixPath(member.name).name
                if member.isreg() and named_like_image(base):
                    blob = Blob(str(path), member.size, f"{inner_name}/{member.name}", member.offset_data)
                    yield f"{path.name}/{inner_name}/{member.name}", blob
