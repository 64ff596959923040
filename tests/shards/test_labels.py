"""Tables of labels: what they hold, and that a wrong one is refused with the line."""

import pytest

from shards.errors import MstlError
from shards.sources.labels import Row, read_labels, sorted_labels


def table(tmp_path, text):
    path = tmp_path / "labels.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_all_columns_in_any_order(tmp_path):
    labels = read_labels(
        table(
            tmp_path,
            '\ufefflabel, Path,split,patient\nsick,./a/1.png,val,p1\nwell,"b, c/2.png",train,\n\nwell,d,test,p 3\n',
        )
    )
    assert labels.classes == ("sick", "well") and not labels.carve_val
    assert dict(labels.rows) == {
        "a/1.png": Row(0, "p1", "val"),
        "b, c/2.png": Row(1, None, "train"),
        "d": Row(1, "p 3", "test"),
    }


def test_without_splits_all_is_train_and_val_may_be_carved(tmp_path):
    labels = read_labels(table(tmp_path, "path,label\na,10\nb,9\nc,-1\n"))
    assert labels.carve_val and labels.classes == ("-1", "9", "10")
    assert dict(labels.rows) == {"a": Row(2, None, "train"), "b": Row(1, None, "train"), "c": Row(0, None, "train")}
    assert read_labels(table(tmp_path, "path,label,split\na,1,train\nb,1,test\n")).carve_val


def test_the_nearest_line_holds(tmp_path):
    labels = read_labels(table(tmp_path, "path,label\na,1\na/b,2\na/b/c.dcm,3\n"))
    assert [labels.find(origin) for origin in ("a/b/c.dcm", "a/b/d.dcm", "a/e.dcm", "ab/e.dcm")] == [
        "a/b/c.dcm", "a/b", "a", None
    ]  # fmt: skip
    assert read_labels(table(tmp_path, "path,label\n.,1\n")).find("x/y.dcm") == "."


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label,split\na,1,train\nb,1,dev\n", r"line 3: split 'dev' is none of train, val, test"),
        ("path,label,split\na,1,\n", r"line 2: split ''"),
        ("path,label\n/etc/a,1\n", "line 2: path '/etc/a' is not a path inside"),
        ("path,label\na/../../b,1\n", "line 2: .* is not a path inside"),
        ("path,label\nC:/a,1\n", "line 2: .* is not a path inside"),
        ("path,label\na\\b,1\n", "line 2: .* is not a path inside"),
        ("path,label\n,1\n", "line 2: .* is not a path inside"),
        ("path,label\na,1\n\n./a,2\n", "line 4: a stands in an earlier line"),
        ("path,label\na, \n", "line 2: it has no label"),
        ("path,label\na,1,2\n", "line 2: it has 3 cells, the header has 2"),
        ("path,label,patients\na,1,2\n", "its columns are path, label, patients"),
        ("path,path,label\na,b,1\n", "its columns are path, path, label"),
        ("file,label\na,1\n", "its columns are file, label"),
        ("", "its columns are none"),
        ("path,label\n", "a header line only"),
        (b"path,label\n\xff,1\n", "cannot be read as CSV in UTF-8"),
        ('path,label\n"a,1\n', "cannot be read as CSV"),
    ],
)
def test_wrong_tables_are_refused(tmp_path, text, message):
    with pytest.raises(MstlError, match=message) as refused:
        read_labels(table(tmp_path, text))
    assert "path,label[,patient,split]" in refused.value.remedy


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('path,label,patient\na,1,p\nb,1,"p\nq"\n', r"line 4: its patient 'p\\nq' holds '\\n'"),
        ("path,label\na,1\x072\n", r"line 2: its label '1\\x072' holds '\\x07'"),
        ("path,label\na\u2028b,1\n", r"line 2: its path 'a\\u2028b' holds '\\u2028'"),
    ],
)
def test_cells_with_control_characters_are_refused(tmp_path, text, message):
    with pytest.raises(MstlError, match=message):
        read_labels(table(tmp_path, text))


def test_a_missing_table_is_refused(tmp_path):
    with pytest.raises(MstlError, match=r"gone\.csv"):
        read_labels(tmp_path / "gone.csv")


def test_numbers_sort_as_numbers_only_when_all_are():
    assert sorted_labels(["10", "9", "9"]) == ("9", "10")
    assert sorted_labels(["10", "9", "x"]) == ("10", "9", "x")
