"""Tars of samples: USTAR headers, digest and index."""

import hashlib
import io
import tarfile

import pytest

from shards.errors import MstlError
from shards.tar import SampleTar, ustar_header


def test_headers_are_ustar():
    header = ustar_header("key.json", 1234567)
    info = tarfile.TarInfo.frombuf(header, "ascii", "strict")  # checks the sum
    assert (info.name, info.size, info.mode, info.mtime, info.uid, info.gid) == ("key.json", 1234567, 0o644, 0, 0, 0)
    assert info.isreg() and header[257:265] == b"ustar\x0000" and len(header) == 512
    with pytest.raises(MstlError, match="bytes"):
        ustar_header("x" * 101, 1)


def test_a_tar_of_samples_knows_its_digest_and_index():
    out = io.BytesIO()
    tar = SampleTar(out)
    tar.add("a", {"bin": b"x" * 512, "cls": b"1"})
    tar.add("b", {"bin": b""})
    tar.close()
    data = out.getvalue()
    assert (tar.size_bytes, tar.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert [[data[c.offset : c.offset + c.size] for c in sample] for sample in tar.index] == [[b"x" * 512, b"1"], [b""]]
    with tarfile.open(fileobj=io.BytesIO(data)) as read:
        assert read.getnames() == ["a.bin", "a.cls", "b.bin"]
