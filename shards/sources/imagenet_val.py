"""ImageNet's validation images come without their classes: those stand in the devkit, or in Kaggle's table."""

from __future__ import annotations

import csv
import gzip
import io
import re
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from shards.errors import MstlError
from shards.sources.archives import refuse_unsafe_name

DEVKIT = "ILSVRC2012_devkit_t12"
DEVKIT_TAR = f"{DEVKIT}.tar.gz"
KAGGLE_TABLE = "LOC_val_solution.csv"
_TRUTH, _META = "data/ILSVRC2012_validation_ground_truth.txt", "data/meta.mat"
_MAX_DEVKIT_BYTES = 256 * 2**20  # unpacked; the real one is a small part of that


def validation_wnids(root: Path) -> dict[int, str] | None:
    """Image number → wnid, as in ILSVRC2012_val_00000001.JPEG; None where nothing under the root tells.

    Read from the devkit (as downloaded, or unpacked) or from LOC_val_solution.csv. Raises MstlError for broken ones.
    """
    if (root / DEVKIT_TAR).is_file():
        return _from_devkit(str(root / DEVKIT_TAR), *_unpacked(root / DEVKIT_TAR))
    if (root / DEVKIT).is_dir():
        missing = [name for name in (_TRUTH, _META) if not (root / DEVKIT / name).is_file()]
        if missing:
            raise _broken(str(root / DEVKIT), f"it has no {missing[0]}")
        return _from_devkit(str(root / DEVKIT), *((root / DEVKIT / name).read_bytes() for name in (_TRUTH, _META)))
    if (root / KAGGLE_TABLE).is_file():
        try:
            return dict(_kaggle_rows(root / KAGGLE_TABLE))
        except csv.Error as error:
            raise _broken(str(root / KAGGLE_TABLE), f"it cannot be read as a table ({error})") from error
    return None


def image_number(name: str) -> int | None:
    """The number in the name of a validation image; None for other names."""
    match = re.fullmatch(r"ILSVRC2012_val_(\d{1,8})", name.partition(".")[0])
    return int(match[1]) if match else None


def _unpacked(path: Path) -> tuple[bytes, bytes]:
    """The ground truth and meta.mat out of the packed devkit."""
    found: dict[str, bytes] = {}
    try:
        with gzip.open(path) as file:
            unpacked = file.read(_MAX_DEVKIT_BYTES + 1)  # to the end, where gzip keeps its checksum
        if len(unpacked) > _MAX_DEVKIT_BYTES:
            raise _broken(str(path), f"it unpacks to more than {_MAX_DEVKIT_BYTES:,} bytes")
        # Not by `archives`, which reads tars that lie on disk as they are: this one was compressed.
        with tarfile.open(fileobj=io.BytesIO(unpacked), mode="r:") as archive:
            for member in archive:
                refuse_unsafe_name(str(path), member.name)
                if not (member.isreg() or member.isdir()):
                    raise _broken(str(path), f"its member {member.name!r} is a link or a device")
                name = "/".join(member.name.removeprefix("./").split("/")[1:])
                content = archive.extractfile(member) if name in (_TRUTH, _META) else None
                if content is not None:
                    found[name] = content.read()
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise _broken(str(path), f"it is not a whole .tar.gz ({error})") from error
    missing = [name for name in (_TRUTH, _META) if name not in found]
    if missing:
        raise _broken(str(path), f"it has no {DEVKIT}/{missing[0]}")
    return found[_TRUTH], found[_META]


def _from_devkit(where: str, truth: bytes, meta: bytes) -> dict[int, str]:
    """The devkit numbers the classes its own way: ILSVRC2012_ID, one a line of the truth, which meta.mat translates."""
    wnid_of = _leaf_wnids(where, meta)
    try:
        numbers = [int(line) for line in truth.split()]
    except ValueError as error:
        raise _broken(where, f"{_TRUTH} holds more than numbers ({error})") from error
    unknown = next((number for number in numbers if number not in wnid_of), None)
    if unknown is not None:
        raise _broken(where, f"{_TRUTH} names class {unknown}, which {_META} does not have")
    return {image: wnid_of[number] for image, number in enumerate(numbers, start=1)}


def _leaf_wnids(where: str, meta: bytes) -> dict[int, str]:
    """ILSVRC2012_ID → wnid of the classes without children; the table lists their ancestors too."""
    from scipy.io import loadmat  # type: ignore[import-untyped]
    from scipy.io.matlab import MatReadError  # type: ignore[import-untyped]

    try:
        synsets = loadmat(io.BytesIO(meta), squeeze_me=True, variable_names=["synsets"])["synsets"].reshape(-1)
        return {
            int(number): str(wnid)
            for number, wnid, children in zip(
                synsets["ILSVRC2012_ID"], synsets["WNID"], synsets["num_children"], strict=True
            )
            if int(children) == 0
        }
    except (MatReadError, OSError, ValueError, TypeError, LookupError, NotImplementedError, zlib.error) as error:
        raise _broken(where, f"{_META} cannot be read ({error})") from error


def _kaggle_rows(path: Path) -> Iterator[tuple[int, str]]:
    """Rows `ILSVRC2012_val_00048981,n03995372 85 1 499 272`: the first word of the second cell is the class."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        table = csv.reader(file)
        if next(table, [])[:1] != ["ImageId"]:
            raise _broken(str(path), "its header row does not start with ImageId")
        for row in table:
            number = image_number(row[0]) if len(row) == 2 else None
            if number is None or not re.match(r"n\d{8}( |$)", row[1]):
                raise _broken(str(path), f"line {table.line_num} names no validation image and class: {row}")
            yield number, row[1].split(" ", 1)[0]


def _broken(where: str, why: str) -> MstlError:
    return MstlError(where, why=why, remedy=f"Download {DEVKIT_TAR} from image-net.org again and put it there")
