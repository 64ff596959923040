"""A folder of class folders, or of any images with a table of labels: anyone's own images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from shards.progress import QUIET, Progress
from shards.schema import SPLITS
from shards.source_options import NO_OPTIONS, Modality, SourceOptions
from shards.sources.labels import LABELS_LAYOUT, Labels, Row, read_labels
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
from shards.sources.placing import refuse_missing, rows_by_class, unlisted_note, visible_files

LAYOUT = (
    "<class>/* for one training set, or train/<class>/*, val/<class>/*, test/<class>/*, "
    f"or images anywhere and --labels: {LABELS_LAYOUT}"
)


def read(root: Path, options: SourceOptions = NO_OPTIONS, progress: Progress = QUIET) -> Listing:
    """List class folders, sorted by name, or the lines of a table (labels.py); with no val, train gives some of it up.

    A folder is a class when it holds an image. Links to images and folders are followed. Raises MstlError for an empty
    folder, for classes of val or test that train does not have, and for lines of the table whose image is not there.
    """
    options.refuse_others("folder", "labels", "modality")
    need_folder("folder", root, LAYOUT)
    modality = options.modality or "natural"
    if options.labels is not None:
        return _labelled(root, read_labels(options.labels), modality)
    notes: list[str] = []
    found: dict[str, tuple[str, str]] = {}
    paths: dict[str, Path] = {}
    for split, folder, images in _class_images(root, notes, progress):
        for path in images:
            origin = path.relative_to(root).as_posix()
            found[origin], paths[origin] = (split, folder), path
    classes, rows = rows_by_class(root, found)
    items = [_item(origin, paths[origin], row) for origin, row in rows.items()]
    has_val = any(item.split == "val" for item in items)
    if not has_val:
        notes.append(
            "there is no val part: --val-fraction of train becomes val, image by image, for there are no patient ids; "
            "where a patient has several images, make train/ and val/ folders yourself, patient by patient, or name "
            "the patients in --labels"
        )
    return make_listing(
        source="folder",
        root=root,
        layout=LAYOUT,
        modality=modality,
        classes=classes,
        items=items,
        notes=notes,
        carve_val=not has_val,
    )


def _class_images(root: Path, notes: list[str], progress: Progress) -> Iterator[tuple[str, str, list[Path]]]:
    """Split, name and images of every class folder; one without images is no class, and is noted."""
    top = class_folders(root)
    parts = {path.name: class_folders(path) for path in top if path.name in SPLITS}
    in_train = parts.get("train", [])
    # Beside images of its own, train may have folders and still be a class called so.
    if any(image_files(folder) for folder in in_train) or (in_train and not image_files(root / "train")):
        beside = [path.name for path in top if path.name not in SPLITS]
        if beside:
            notes.append(f"folders beside train, val and test were left out: {first_few(beside)}")
    else:
        parts = {"train": top}
    empty: list[str] = []
    left_out: list[str] = []
    nested = 0
    progress.start(sum(map(len, parts.values())), "listing class folders")
    for split in (split for split in SPLITS if split in parts):
        for folder in parts[split]:
            images = image_files(folder)
            if images:
                others = sorted(set(folder.iterdir()).difference(images))
                left_out += [path.relative_to(root).as_posix() for path in others]
                nested += sum(len(image_files(path)) for path in others if path.is_dir())
                yield split, folder.name, images
            else:
                empty.append(folder.relative_to(root).as_posix())
                nested += sum(len(image_files(path)) for path in folder.iterdir() if path.is_dir())
            progress.advance()
    if empty:
        notes.append(f"{len(empty)} folders without images are no classes and were left out: {first_few(empty)}")
    if left_out:
        notes.append(f"{len(left_out)} files or folders not named like images were left out: {first_few(left_out)}")
    if nested:
        notes.append(
            f"{nested:,} images lie a folder deeper than <class>/* and were left out: where folders in a class are "
            "patients, list the images with --labels (path,label,patient)"
        )


def _labelled(root: Path, labels: Labels, modality: Modality) -> Listing:
    missing = [path for path in labels.rows if not (root / path).is_file()]
    refuse_missing(labels, root, missing, "files")
    files, notes = visible_files(root)
    there = {origin for origin, path in files if named_like_image(path.name)}
    notes += unlisted_note(len(there - labels.rows.keys()), "images")
    nameless = sum(row.patient is None for row in labels.rows.values())
    if labels.carve_val and nameless:
        notes.append(
            f"no line is of val, so --val-fraction of train becomes val; {nameless} of {len(labels.rows)} lines name "
            "no patient and count as patients of their own"
        )
    items = [_item(path, root / path, row) for path, row in labels.rows.items()]
    return make_listing(
        source="folder",
        root=root,
        layout=LAYOUT,
        modality=modality,
        classes=labels.classes,
        items=items,
        notes=notes,
        carve_val=labels.carve_val,
    )


def _item(origin: str, path: Path, row: Row) -> Item:
    return Item(
        key=path.stem, split=row.split, label=row.label, patient=row.patient, blob=file_blob(path), origin=origin
    )
