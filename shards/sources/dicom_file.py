"""Opening DICOM files; deflated ones (PS3.5 A.5) are inflated first, within bounds and whole."""

from __future__ import annotations

import zlib
from io import BytesIO
from pathlib import Path

from shards.sources.blob import MAX_BYTES

_PREAMBLE = bytes(128) + b"DICM"
_GROUP_LENGTH_BYTES = 12  # the first element behind the preamble: the length of all others of the file's own header


def plain_dicom(path: Path) -> Path | BytesIO:
    """The path of a DICOM file, or the file as if it had never been deflated.

    pydicom inflates without bounds, and finds no pixels when it reads a deflated file for its pixels alone.
    Raises what pydicom raises on a damaged file, zlib.error, and ValueError for more than a GiB.
    """
    from pydicom.filebase import DicomBytesIO
    from pydicom.filereader import read_file_meta_info
    from pydicom.filewriter import write_file_meta_info
    from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

    meta = read_file_meta_info(path)
    if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
        return path
    start = len(_PREAMBLE) + _GROUP_LENGTH_BYTES + int(meta.FileMetaInformationGroupLength)
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    content = inflater.decompress(path.read_bytes()[start:], MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"it inflates to more than {MAX_BYTES:,} bytes")
    if not inflater.eof:
        raise ValueError("its deflated data are cut off")
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header = DicomBytesIO()
    write_file_meta_info(header, meta)
    return BytesIO(_PREAMBLE + header.getvalue() + content)
