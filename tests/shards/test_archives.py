"""Archives: what Python's own tarfile lists is listed, and what is damaged or leads outside is refused."""

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_data import put, tar_of, zip_of

from shards.errors import MstlError
from shards.sources.archives import TarMember, tar_members, zip_members


def add(tar, name, data=b"x", **changes):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in changes.items():
        setattr(info, field, value)
    tar.addfile(info, io.BytesIO(data))


def tar_with(name, data=b"", format=tarfile.GNU_FORMAT, **changes):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as tar:
        add(tar, "good.png")
        add(tar, name, data, **changes)
    return out.getvalue()


def resized(info, size):
    """A header with another size field and the checksum that fits it."""
    header = info.tobuf(tarfile.USTAR_FORMAT)
    header = header[:124] + size + header[136:148] + b" " * 8 + header[156:]
    return header[:148] + b"%06o\0 " % sum(header) + header[156:]


NAMES = st.lists(
    st.text(st.characters(exclude_characters="/\\\0\n", exclude_categories=["Cs"]), min_size=1, max_size=120),
    max_size=4,
).map("/".join)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(NAMES, st.integers(0, 1500), st.booleans()), max_size=5),
    st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_tars_are_listed_as_python_lists_them(tmp_path_factory, files, format):
    path = tmp_path_factory.mktemp("tar") / "a.tar"
    with tarfile.open(path, "w", format=format) as tar:
        for i, (name, size, folder) in enumerate(files):
            name = f"{i}{name}".replace("..", "__")
            add(tar, name, bytes(size * (not folder)), type=tarfile.DIRTYPE if folder else tarfile.REGTYPE)
    with tarfile.open(path) as tar:
        expected = [TarMember(m.name, m.offset_data, m.size) for m in tar if m.isreg()]
    assert list(tar_members(path)) == expected
    outer = put(path.with_name("outer.tar"), tar_of({"before": b"x" * 700, "a.tar": path.read_bytes()}))
    inner = list(tar_members(outer))[1]
    assert inner.name == "a.tar"
    assert list(tar_members(outer, start=inner.offset, size=inner.size)) == [
        m._replace(offset=m.offset + inner.offset) for m in expected
    ]


def test_ustar_folders_and_tars_of_the_seventies(tmp_path):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        add(tar, "f" * 90 + "/" + "g" * 90, b"data")  # too long for the name field: the folder goes to the prefix
        add(tar, "old/", b"", type=tarfile.AREGTYPE)
        add(tar, "old/file", b"1", type=tarfile.AREGTYPE)
        add(tar, "more", b"22", type=tarfile.CONTTYPE)
    path = put(tmp_path / "a.tar", out.getvalue())
    assert [(m.name, m.size) for m in tar_members(path)] == [
        ("f" * 90 + "/" + "g" * 90, 4), ("old/file", 1), ("more", 2)
    ]  # fmt: skip
    assert [path.read_bytes()[m.offset : m.offset + m.size] for m in tar_members(path)] == [b"data", b"1", b"22"]


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_beyond_8_gib(tmp_path, format):
    info = tarfile.TarInfo("big")
    info.size = 9 * 2**30 + 5
    head = info.tobuf(format)
    with (tmp_path / "a.tar").open("wb") as file:
        file.write(head)
        file.seek(len(head) + info.size // 512 * 512 + 512)
        file.write(tarfile.TarInfo("after").tobuf(format) + bytes(1024))
    big, after = tar_members(tmp_path / "a.tar")
    assert big == TarMember("big", len(head), info.size)
    assert after == TarMember("after", len(head) + info.size + 507 + 512, 0)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("/etc/passwd", {}, "'/etc/passwd' is named by an absolute path"),
        ("\\share", {}, "absolute"),
        ("C:\\x.png", {}, "absolute"),
        ("../x.png", {}, "'../x.png' is named with `..`"),
        ("a/../../x.png", {}, "`..`"),
        ("a/..", {}, "`..`"),
        ("a\\..\\x", {}, "`..`"),
        ("x" * 200 + "/../y", {}, "`..`"),  # in a GNU long name or a pax record
        ("../folder", {"type": tarfile.DIRTYPE}, "`..`"),
        ("link.png", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, "'link.png' is a symbolic link"),
        ("link.png", {"type": tarfile.SYMTYPE, "linkname": "x" * 200}, "symbolic link"),
        ("link.png", {"type": tarfile.LNKTYPE, "linkname": "good.png"}, "a hard link"),
        ("null", {"type": tarfile.CHRTYPE}, "a device"),
        ("disk", {"type": tarfile.BLKTYPE}, "a device"),
        ("pipe", {"type": tarfile.FIFOTYPE}, "a named pipe"),
        ("sparse", {"type": tarfile.GNUTYPE_SPARSE}, "a sparse file"),
        ("label", {"type": b"V"}, "unknown type 'V'"),
        ("s", {"pax_headers": {"GNU.sparse.major": "1"}}, "a sparse file"),
        ("x", {"pax_headers": {"path": "/abs"}}, "'/abs' is named by an absolute"),
    ],
)
@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tars_that_lead_outside_are_refused(tmp_path, name, changes, message, format):
    if "pax_headers" in changes:
        format = tarfile.PAX_FORMAT
    path = put(tmp_path / "a.tar", tar_with(name, format=format, **changes))
    with pytest.raises(MstlError, match=message) as refused:
        list(tar_members(path))
    assert refused.value.what == str(path)


def test_names_with_dots_that_lead_nowhere_are_fine(tmp_path):
    names = ["./a.png", "a..b.png", "..a/b..", ".../x", "a/./b"]
    path = put(tmp_path / "a.tar", tar_of(dict.fromkeys(names, b"")))
    assert [m.name for m in tar_members(path)] == names
    assert [m.filename for m in zip_members(put(tmp_path / "a.zip", zip_of(dict.fromkeys(names, b""))))] == names


def test_every_flipped_bit_of_a_header_and_every_cut_is_noticed(tmp_path):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        add(tar, "n" * 101, b"x" * 600)  # a long name's header and block, a header, two blocks of data
    whole = out.getvalue()
    path = tmp_path / "a.tar"
    path.write_bytes(whole)
    listed = list(tar_members(path))
    for at in [*range(512), *range(1024, 1536)]:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        if at % 512 == 148:  # the checksum's first digit: 0 becomes a space, which means the same
            assert list(tar_members(path)) == listed
            continue
        with pytest.raises(MstlError):
            list(tar_members(path))
    end = 1536 + 1024
    for length in [*range(0, end, 37), *range(0, end + 1, 512)]:
        path.write_bytes(whole[:length])
        if length:
            with pytest.raises(MstlError, match="it ends "):
                list(tar_members(path))
    for length in (end + 512, end + 1024, len(whole)):
        path.write_bytes(whole[:length])
        assert [m.size for m in tar_members(path)] == [600]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (gzip.compress(tar_of({"a": b"x"})), r"compressed.*gunzip .*a\.tar"),
        (bz2.compress(tar_of({"a": b"x"})), "bunzip2"),
        (lzma.compress(tar_of({"a": b"x"})), "unxz"),
        (b"\x28\xb5\x2f\xfd" + bytes(600), "unzstd"),
        (b"text " * 200, "no header at byte 0"),
        (tar_of({"a": b"x"}) + tar_of({"b": b"x"}), "data after its end"),
        (tar_of({"a": b"x"})[:1024] + b"BZh" + b"y" * 509 + bytes(1024), "no header at byte 1024"),
        (tar_of({"a": b"x"})[:1024] + b"y" * 512 + bytes(1024), "no header at byte 1024"),
        (b"", "without the empty block"),
    ],
)
def test_what_is_no_plain_tar_is_refused(tmp_path, data, message):
    path = put(tmp_path / "a.tar", data)
    with pytest.raises(MstlError, match=message):
        list(tar_members(path))


@pytest.mark.parametrize("size", [b"-0000000005\0", b"0000000_005\0", b"00000000009\0", b"\xff" * 12])
def test_sizes_that_are_no_octal_numbers_are_refused(tmp_path, size):
    path = put(tmp_path / "a.tar", resized(tarfile.TarInfo("a.png"), size) + bytes(1024))
    with pytest.raises(MstlError, match="has the size"):
        list(tar_members(path))


def test_a_folder_has_no_data_whatever_its_header_says(tmp_path):
    folder = tarfile.TarInfo("folder")
    folder.type = tarfile.DIRTYPE
    path = put(tmp_path / "a.tar", resized(folder, b"00000007777\0") + tar_of({"folder/a.png": b"x"}))
    assert [m.name for m in tar_members(path)] == ["folder/a.png"]


def test_a_tar_inside_a_tar_stays_inside(tmp_path):
    """A member whose data would run beyond the span is refused, though the file goes on."""
    inner = tar_of({"a.png": b"x" * 600})
    path = put(tmp_path / "a.tar", inner + tar_of({"b.png": b"y"}))
    assert [m.name for m in tar_members(path, start=0, size=512 + 1024)] == ["a.png"]  # no end blocks, but all of it
    with pytest.raises(MstlError, match=r"a\.tar/c\.tar: .*ends in the middle of a\.png"):
        list(tar_members(path, start=0, size=512 + 512, inner="c.tar"))


def test_a_long_name_without_its_member_is_refused(tmp_path):
    path = put(tmp_path / "a.tar", tarfile.TarInfo("n" * 101).tobuf(tarfile.GNU_FORMAT))
    with pytest.raises(MstlError, match="it ends without"):
        list(tar_members(path, start=0, size=1024))  # cut behind the long name, before the member it belongs to


def test_a_long_name_of_megabytes_is_refused(tmp_path):
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 2**20 + 1
    with pytest.raises(MstlError, match="a header holds 1048577 bytes"):
        list(tar_members(put(tmp_path / "a.tar", info.tobuf() + bytes(2**20 + 2048))))


def test_checksums_of_signed_bytes_are_known(tmp_path):
    header = tarfile.TarInfo("\u00e4.png").tobuf(tarfile.GNU_FORMAT)
    signed = sum(byte - 256 * (byte > 127) for byte in header[:148] + b" " * 8 + header[156:])
    path = put(tmp_path / "a.tar", header[:148] + b"%06o\0 " % signed + header[156:] + bytes(1024))
    assert [m.name for m in tar_members(path)] == ["\u00e4.png"]
    put(path, header[:148] + b"%06o\0 " % (signed + 128) + header[156:] + bytes(1024))
    with pytest.raises(MstlError, match="no header at byte 0"):
        list(tar_members(path))


@pytest.mark.parametrize("record", [b"9 path=ab\n", b"99 path=a\n", b"x path=a\n", b"12 size=-33\n", b"4 a=\n"])
def test_malformed_pax_headers_are_refused(tmp_path, record):
    info = tarfile.TarInfo("pax")
    info.type, info.size = b"x", len(record)
    bad = info.tobuf(tarfile.USTAR_FORMAT) + record.ljust(512, b"\0") + tar_of({"a": b"x"})
    with pytest.raises(MstlError, match="pax header"):
        list(tar_members(put(tmp_path / "a.tar", bad)))


def test_zips_list_files_in_order(tmp_path):
    path = put(tmp_path / "a.zip", zip_of({"z/": b"", "z/b.png": b"bb", "a.png": b"a"}))
    assert [(m.filename, m.file_size) for m in zip_members(path)] == [("z/b.png", 2), ("a.png", 1)]


@pytest.mark.parametrize(
    ("name", "mode", "message"),
    [
        ("/etc/passwd", 0, "absolute"),
        ("a/../../x.png", 0, "`..`"),
        ("C:/x.png", 0o100644, "absolute"),
        ("link.png", 0o120777, "'link.png' is a symbolic link"),
        ("null", 0o020644, "a special file"),
        ("good.png", 0, "'good.png' is there twice"),
    ],
)
def test_zips_that_lead_outside_are_refused(tmp_path, name, mode, message):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("good.png", b"x")
        member = zipfile.ZipInfo(name)
        member.external_attr = mode << 16
        if name == "good.png":
            with pytest.warns(UserWarning, match="Duplicate name"):
                archive.writestr(member, b"x")
        else:
            archive.writestr(member, b"x")
    with pytest.raises(MstlError, match=message):
        zip_members(path)


def test_a_cut_zip_is_refused(tmp_path):
    path = put(tmp_path / "a.zip", zip_of({"a.png": b"x" * 99})[:-10])
    with pytest.raises(MstlError, match="not a whole zip"):
        zip_members(path)


def test_a_zip_whose_names_are_not_the_text_they_say_is_refused(tmp_path):
    whole = zip_of({"\u00e4.png": b"x"})
    path = put(tmp_path / "a.zip", whole.replace("\u00e4".encode(), b"\xab\xab"))
    with pytest.raises(MstlError, match="not a whole zip"):
        zip_members(path)
