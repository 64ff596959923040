"""ImageNet (ILSVRC2012) as downloaded or as class folders; archives are read in place, nothing is unpacked.

The names of the 1000 classes (imagenet_classes.txt, a wnid and its name a line) are WordNet 3.0's words for them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath

from shards.errors import MstlError
from shards.progress import QUIET, Progress
from shards.source_options import NO_OPTIONS, SourceOptions
from shards.sources.archives import TarMember, tar_members
from shards.sources.blob import Blob
from shards.sources.imagenet_val import DEVKIT_TAR, KAGGLE_TABLE, image_number, validation_wnids
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
LAYOUT = (
    f"{TRAIN_TAR} (as downloaded) or train/<wnid>/*.JPEG; {VAL_TAR} or val/*.JPEG with {DEVKIT_TAR} "
    f"(or {KAGGLE_TABLE}), or val/<wnid>/*.JPEG"
)
FULL_COUNTS = {"train": 1_281_167, "val": 50_000}

_Images = list[tuple[str, Blob]]  # (origin, place) of each


def read(root: Path, options: SourceOptions = NO_OPTIONS, progress: Progress = QUIET) -> Listing:
    """List ImageNet or a subset of it; classes are the sorted wnids of train, val may be missing.

    Of tars only headers are read. Images and class folders may be symbolic links: people link ImageNet together.
    Raises MstlError for a missing train part, validation images whose classes nothing tells, and class folders in val
    that train does not have.
    """
    options.refuse_others("imagenet")
    need_folder("imagenet", root, LAYOUT)
    notes: list[str] = []
    if (root / TRAIN_TAR).is_file():
        train = _tar_classes(root / TRAIN_TAR, progress)
        if (root / "train").is_dir():
            notes.append(f"both {TRAIN_TAR} and train/ are there: the tar was used")
    elif (root / "train").is_dir():
        train = _folder_classes(root / "train", progress)
    else:
        raise MstlError(
            f"source imagenet in {root}",
            why=f"there is neither {TRAIN_TAR} nor train/",
            remedy=f"Expected there: {LAYOUT}",
        )
    val = _val_classes(root, train.keys(), notes, progress)
    classes = sorted(train)
    items = [
        Item(key=_stem(origin), split=split, label=label, patient=None, blob=blob, origin=origin)
        for split, part in (("train", train), ("val", val))
        for label, wnid in enumerate(classes)
        for origin, blob in part.pop(wnid, ())  # taken out class by class: a full set would stand in memory twice
    ]
    titles = class_titles()
    return make_listing(
        source="imagenet",
        root=root,
        layout=LAYOUT,
        modality="natural",
        classes=classes,
        items=items,
        expected=FULL_COUNTS if all(wnid in titles for wnid in classes) else None,  # a subset is told as such
        absent={"val": f"there are no validation images (val/ or {VAL_TAR})"},
        notes=notes,
        titles={wnid: titles[wnid] for wnid in classes if wnid in titles},
    )


def class_titles() -> dict[str, str]:
    """Wnid → name of ILSVRC2012's 1000 classes, by wnid; names may repeat (two cranes)."""
    text = Path(__file__).with_name("imagenet_classes.txt").read_text(encoding="utf-8")
    return dict(line.split("\t") for line in text.splitlines())


def _stem(origin: str) -> str:
    # All images are named like images, so there is a dot; PurePosixPath would take half the time of a listing.
    return origin.rpartition("/")[2].rpartition(".")[0]


def _folder_classes(folder: Path, progress: Progress) -> dict[str, _Images]:
    folders = class_folders(folder)
    progress.start(len(folders), f"listing {folder.name}/")
    classes: dict[str, _Images] = {}
    for place in folders:
        classes[place.name] = [
            (f"{folder.name}/{place.name}/{file.name}", file_blob(file)) for file in image_files(place)
        ]
        progress.advance()
    return classes


def _tar_classes(path: Path, progress: Progress) -> dict[str, _Images]:
    """The images of every class tar inside the tar."""
    inner_tars = [member for member in tar_members(path) if member.name.endswith(".tar")]
    progress.start(len(inner_tars), f"listing {path.name}")
    classes: dict[str, _Images] = {}
    for inner in inner_tars:
        wnid = PurePosixPath(inner.name).stem
        if wnid in classes:
            raise MstlError(str(path), why=f"class {wnid} is in it twice", remedy="Download it again")
        found = tar_members(path, start=inner.offset, size=inner.size, inner=inner.name)
        classes[wnid] = _images(path, found, f"{inner.name}/")
        progress.advance()
    return classes


def _images(path: Path, members: Iterator[TarMember], prefix: str = "") -> _Images:
    place = str(path)  # one string for all blobs
    return [
        (f"{path.name}/{prefix}{member.name}", Blob(place, member.size, prefix + member.name, member.offset))
        for member in members
        if named_like_image(member.name.rpartition("/")[2])
    ]


def _val_classes(root: Path, train: Collection[str], notes: list[str], progress: Progress) -> dict[str, _Images]:
    folder = root / "val"
    sorted_in = _folder_classes(folder, progress) if folder.is_dir() else {}
    if sorted_in:
        unknown = sorted(sorted_in.keys() - set(train))
        if unknown:
            raise MstlError(
                f"val classes in {root}",
                why=f"{len(unknown)} of {len(sorted_in)} are not in train: {first_few(unknown)}",
                remedy="Keep in val only the classes of train",
            )
        if (root / VAL_TAR).is_file():
            notes.append(f"both val/ and {VAL_TAR} are there: val/ was used")
        return sorted_in
    flat = [(f"val/{file.name}", file_blob(file)) for file in image_files(folder)] if folder.is_dir() else []
    why = "val/ holds images without class folders"
    if not flat and (root / VAL_TAR).is_file():
        flat = _images(root / VAL_TAR, tar_members(root / VAL_TAR))
        why = f"{VAL_TAR} holds the images without their classes"
    if not flat:
        return {}
    wnids = validation_wnids(root)
    if wnids is None:
        raise MstlError(
            f"validation images in {root}",
            why=f"{why}, and there is no {DEVKIT_TAR} to tell them",
            remedy=f"Put {DEVKIT_TAR} (from image-net.org) there, or Kaggle's {KAGGLE_TABLE}; or sort the images into "
            "val/<wnid>/*.JPEG; or move them away to convert train alone",
        )
    return _by_wnid(root, flat, wnids, train, notes)


def _by_wnid(
    root: Path, flat: _Images, wnids: dict[int, str], train: Collection[str], notes: list[str]
) -> dict[str, _Images]:
    classes: dict[str, _Images] = defaultdict(list)
    left_out = 0
    for origin, blob in flat:
        number = image_number(PurePosixPath(origin).name)
        wnid = None if number is None else wnids.get(number)
        if wnid is None:
            raise MstlError(
                f"validation image {origin} in {root}",
                why=f"its name is none of the {len(wnids):,} whose classes are known",
                remedy="Keep the names as downloaded: ILSVRC2012_val_00000001.JPEG and so on",
            )
        if wnid in train:
            classes[wnid].append((origin, blob))
        else:
            left_out += 1
    if left_out:
        notes.append(f"{left_out:,} of {len(flat):,} validation images are of classes train does not have: left out")
    return classes
