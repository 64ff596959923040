"""Listing tars and zips by their headers alone; archives that name places outside themselves are refused.

Nothing here unpacks an archive, so a name cannot write anywhere. An absolute name, `..`, a link or a device is refused
all the same: no image archive needs them, and the names go on into shard sets and tables.
"""

from __future__ import annotations

import os
import re
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from shards.errors import MstlError

BLOCK_BYTES = 512
_FILES, _FOLDER = frozenset(b"0\0" + b"7"), ord("5")  # 7: a "contiguous" file, stored like any other
_LONG_NAME, _LONG_LINK, _PAX, _PAX_GLOBAL = b"LKxg"
_MAX_EXTRA_BYTES = 2**20  # of a long name or a pax header
_REFUSED = {
    ord("1"): "a hard link",
    ord("2"): "a symbolic link",
    ord("3"): "a device",
    ord("4"): "a device",
    ord("6"): "a named pipe",
    ord("S"): "a sparse file",
}
_COMPRESSED = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ": "unxz", b"\x28\xb5\x2f\xfd": "unzstd"}


class TarMember(NamedTuple):
    """A regular file in a tar: its name, where its data start in the file that holds the tar, and their bytes."""

    name: str
    offset: int
    size: int


def tar_members(path: Path, *, start: int = 0, size: int | None = None, inner: str = "") -> Iterator[TarMember]:
    """The regular files of an uncompressed tar, in order, read header by header; folders are skipped.

    start, size: the span of `path` that is the tar, for a tar inside a tar, and inner is its name for messages; offsets
    count from the start of `path`. Reads ustar, GNU (long names, large sizes) and pax (path, size).
    Raises MstlError for a compressed, damaged or truncated tar, for unsafe names, and for links, devices and sparse
    files.
    """
    where = f"{path}/{inner}" if inner else str(path)
    with path.open("rb", buffering=0) as file:
        end = file.seek(0, os.SEEK_END) if size is None else start + size
        # A span is as long as the tar around it says; a file that merely stops may have been cut off.
        yield from _walk(file.fileno(), where, start, end, must_close=size is None)


def _walk(descriptor: int, where: str, start: int, end: int, *, must_close: bool) -> Iterator[TarMember]:
    at, long_name, long_size = start, None, None
    while at < end:
        block = os.pread(descriptor, min(BLOCK_BYTES, end - at), at)
        if len(block) == BLOCK_BYTES and not block[0] and not any(block):
            _need_only_zeros(descriptor, where, at, end)
            return
        if len(block) < BLOCK_BYTES or not _checksum_fits(block):
            raise _no_header(where, block, at - start)
        kind = block[156]
        name = _name(block) if long_name is None else long_name
        bytes_here = _number(block[124:136], where) if long_size is None else long_size
        if kind == _FOLDER:
            bytes_here = 0  # whatever its header says, no data follow
        data_at = at + BLOCK_BYTES
        at = data_at + (bytes_here + BLOCK_BYTES - 1) // BLOCK_BYTES * BLOCK_BYTES
        if data_at + bytes_here > end:
            raise _damaged(where, f"it ends in the middle of {name}")
        if kind in (_LONG_NAME, _LONG_LINK, _PAX, _PAX_GLOBAL):
            if bytes_here > _MAX_EXTRA_BYTES:
                raise _damaged(where, f"a header holds {bytes_here} bytes")
            extra = os.pread(descriptor, bytes_here, data_at)
            if kind == _LONG_NAME:
                long_name = _text(extra)
            elif kind == _PAX:
                records = _pax(extra, where)
                if any(record.startswith("GNU.sparse.") for record in records):
                    raise _refused(where, records.get("path", name), "a sparse file")
                long_name = records.get("path", long_name)
                long_size = int(records["size"]) if "size" in records else None
            continue
        refuse_unsafe_name(where, name)
        if kind in _FILES:
            if not name.endswith("/"):  # how tars of the seventies mark a folder
                yield TarMember(name, data_at, bytes_here)
        elif kind != _FOLDER:
            raise _refused(where, name, _REFUSED.get(kind, f"a member of the unknown type {chr(kind)!r}"))
        long_name = long_size = None
    if must_close or long_name is not None:
        raise _damaged(where, "it ends without the empty block that closes a tar")


def zip_members(path: Path) -> list[zipfile.ZipInfo]:
    """The files of a zip, in order; folders are left out.

    Raises MstlError for what is no whole zip, for unsafe or repeated names, and for links and devices.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    # Beside damage: a feature Python does not know, and a name that is not the UTF-8 it says it is.
    except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError) as error:
        raise MstlError(str(path), why=f"it is not a whole zip ({error})", remedy="Download it again") from error
    names: set[str] = set()
    for member in members:
        refuse_unsafe_name(str(path), member.filename)
        kind = stat.S_IFMT(member.external_attr >> 16)  # zero where the zip was not made on Unix
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise _refused(str(path), member.filename, "a symbolic link" if kind == stat.S_IFLNK else "a special file")
        if member.filename in names:
            raise _refused(str(path), member.filename, "there twice")
        names.add(member.filename)
    return [member for member in members if not member.is_dir()]


def refuse_unsafe_name(archive: str, name: str) -> None:
    """Raise MstlError for a member name that is empty, absolute or leads out of the folder it would be unpacked to."""
    if not name or name[0] in "/\\" or re.match(r"[A-Za-z]:[/\\]", name):
        raise _refused(archive, name, "named by an absolute path" if name else "a member without a name")
    if ".." in name and ".." in re.split(r"[/\\]", name):
        raise _refused(archive, name, "named with `..`, outside the archive")


def _refused(archive: str, name: str, what: str) -> MstlError:
    return MstlError(
        archive,
        why=f"its member {name!r} is {what}; such archives are refused",
        remedy="Use the archive as published, or pack the images anew as plain files with relative names",
    )


def _damaged(where: str, why: str) -> MstlError:
    return MstlError(where, why=f"it is not a whole uncompressed tar ({why})", remedy="Download it again")


def _no_header(where: str, block: bytes, at: int) -> MstlError:
    command = next((command for magic, command in _COMPRESSED.items() if block.startswith(magic)), None)
    if at == 0 and command:
        return MstlError(
            where,
            why="it is compressed, and single images cannot be read out of a compressed tar",
            remedy=f"Uncompress it first: {command} {where}",
        )
    if len(block) < BLOCK_BYTES:
        return _damaged(where, "it ends in the middle of a header")
    return _damaged(where, f"there is no header at byte {at}")


def _need_only_zeros(descriptor: int, where: str, at: int, end: int) -> None:
    while at < end:
        chunk = os.pread(descriptor, min(2**20, end - at), at)
        if not chunk or any(chunk):
            raise _damaged(where, "there are data after its end, as if tars were put one behind the other")
        at += len(chunk)


def _checksum_fits(block: bytes) -> bool:
    try:
        written = int(block[148:156].strip(b" \0"), 8)
    except ValueError:
        return False
    checksum = 8 * ord(" ")  # the field itself counts as spaces
    total = sum(block) - sum(block[148:156]) + checksum
    if total == written:
        return True
    rest = block[:148] + block[156:]  # some old programs summed signed bytes
    return total - 256 * sum(byte > 127 for byte in rest) == written


def _number(field: bytes, where: str) -> int:
    """A size: octal text, or for large ones a big-endian number behind the byte 128."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0")
    if not re.fullmatch(rb"[0-7]*", digits):
        raise _damaged(where, f"a member has the size {field!r}")
    return int(digits or b"0", 8)


def _name(block: bytes) -> str:
    name = block[:100].split(b"\0", 1)[0]
    if block[257:263] == b"ustar\0" and block[345]:  # GNU's own format keeps times where ustar has the folder
        name = block[345:500].split(b"\0", 1)[0] + b"/" + name
    return name.decode("utf-8", "surrogateescape")


def _text(data: bytes) -> str:
    return data.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _pax(data: bytes, where: str) -> dict[str, str]:
    """The records of a pax header, each `LENGTH KEY=VALUE\\n` where LENGTH counts all of it."""
    records: dict[str, str] = {}
    while data.rstrip(b"\0"):
        head = re.match(rb"(\d{1,7}) ([^=]+)=", data)
        length = int(head[1]) if head else 0
        if head is None or not head.end() < length <= len(data) or data[length - 1 : length] != b"\n":
            raise _damaged(where, "a pax header is malformed")
        key, value = head[2].decode("utf-8", "replace"), data[head.end() : length - 1]
        if key == "size" and not value.isdigit():
            raise _damaged(where, f"a pax header gives the size {value!r}")
        records[key] = value.decode("utf-8", "surrogateescape")
        data = data[length:]
    return records
