"""A folder of class folders: anyone's own images."""

from __future__ import annotations

from pathlib import Path

from shards.errors import MstlError
from shards.schema import SPLITS
from shards.sources.listing import (
    Item,
    Listing,
    class_folders,
    file_blob,
    first_few,
    image_files,
    make_listing,
    need_folder,
)

LAYOUT = "<class>/* for one training set, or train/<class>/*, val/<class>/*, test/<class>/*"


def read(root: Path) -> Listing:
    """List class folders, sorted by name; with no val folder a validation part is carved from train.

    Raises MstlError for an empty folder and for classes of val or test that train does not have.
    """
    need_folder("folder", root, LAYOUT)
    notes = []
    if (root / "train").is_dir() and class_folders(root / "train"):
        parts = {split: class_folders(root / split) for split in SPLITS if (root / split).is_dir()}
        beside = [path.name for path in class_folders(root) if path.name not in SPLITS]
        if beside:
            notes.append(f"folders beside train, val and test were left out: {first_few(beside)}")
    else:
        parts = {"train": class_folders(root)}
    classes = [folder.name for folder in parts["train"]]
    label_of = {name: label for label, name in enumerate(classes)}
    items: list[Item] = []
    left_out = 0
    for split, folders in parts.items():
        unknown = [folder.name for folder in folders if folder.name not in label_of]
        if unknown:
            raise MstlError(
                f"{split} classes in {root}",
                why=f"train does not have {first_few(unknown)}",
                remedy=f"Name the folders of {split} like those of train",
            )
        for folder in folders:
            images = image_files(folder)
            left_out += sum(1 for _ in folder.iterdir()) - len(images)
            items += [_item(root, path, split, label_of[folder.name]) for path in images]
    if left_out:
        notes.append(f"{left_out} files or folders not named like images were left out")
    has_val = any(item.split == "val" for item in items)
    if not has_val:
        notes.append(
            "there is no val part: --val-fraction of train becomes val, image by image, for there are no patient ids; "
            "where a patient has several images, make train/ and val/ folders yourself, patient by patient"
        )
    return make_listing(
        source="folder",
        root=root,
        layout=LAYOUT,
        modality="natural",
        classes=classes,
        items=items,
        notes=notes,
        carve_val=not has_val,
    )


def _item(root: Path, path: Path, split: str, label: int) -> Item:
    origin = path.relative_to(root).as_posix()
    return Item(key=path.stem, split=split, label=label, patient=None, blob=file_blob(path), origin=origin)
