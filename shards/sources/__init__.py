"""Sources: readers of raw data sets in the layouts people download."""

from __future__ import annotations

from pathlib import Path

from shards.errors import MstlError
from shards.progress import QUIET, Progress
from shards.source_options import NO_OPTIONS, SourceOptions
from shards.sources import adopt, covid19_ct, covidx, dicom, folder, imagenet, nifti
from shards.sources.blob import Blob
from shards.sources.carve import carve_validation
from shards.sources.listing import Item, Listing

__all__ = ["SOURCES", "Blob", "Item", "Listing", "SourceOptions", "carve_validation", "read_source"]

_READERS = {
    "imagenet": imagenet.read,
    "covidx": covidx.read,
    "covid19-ct": covid19_ct.read,
    "folder": folder.read,
    "webdataset": adopt.read,
    "dicom": dicom.read,
    "nifti": nifti.read,
}
SOURCES = tuple(_READERS)


def read_source(name: str, root: Path, options: SourceOptions = NO_OPTIONS, progress: Progress = QUIET) -> Listing:
    """List a raw data set by the name of its layout; raises MstlError naming the sources, or the layout expected."""
    if name not in _READERS:
        raise MstlError(f"source {name!r}", why="it is not known", remedy=f"Use one of: {', '.join(SOURCES)}")
    try:
        return _READERS[name](root, options, progress)
    except OSError as error:
        raise MstlError(
            f"source {name} in {root}", why=f"it cannot be read ({error})", remedy="Check that the files are readable"
        ) from error
    except UnicodeDecodeError as error:
        raise MstlError(
            f"source {name} in {root}", why=f"a list is not UTF-8 text ({error})", remedy="Save the lists as UTF-8"
        ) from error
