"""Index files: written and read back the same, and refused when they are not whole."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.errors import MstlError
from shards.index import Component, format_index, read_index

WORDS = st.text("abcXYZ019_-", min_size=1, max_size=8)
SAMPLES = st.lists(
    st.lists(st.builds(Component, WORDS, st.integers(0, 2**40), st.integers(0, 2**33), WORDS), min_size=1, max_size=4)
    .map(tuple)
)  # fmt: skip


def test_the_text_is_that_of_dali():
    sample = (Component("jpg", 512, 7, "a.jpg"), Component("cls", 1536, 1, "a.cls"))
    other = (Component("png", 2560, 9, "b.png"),)
    assert format_index([other, sample, other]) == (
        "v1.2 3\npng 2560 9 b.png\njpg 512 7 a.jpg cls 1536 1 a.cls\npng 2560 9 b.png\n"
    )


@given(samples=SAMPLES)
def test_what_is_written_is_read(tmp_path_factory, samples):
    path = tmp_path_factory.mktemp("index") / "a.idx"
    path.write_text(format_index(samples))
    assert read_index(path) == samples


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "starts with ''"),
        ("v1.1 1\njpg 1 2 a.jpg\n", "v1.1"),
        ("v1.2 2\njpg 1 2 a.jpg\n", "2 samples and lists 1"),
        ("v1.2 1\njpg 1 2 a.jp", "cannot be read"),
        ("v1.2 1\njpg 1 2\n", "3 words"),
        ("v1.2 1\njpg one 2 a.jpg\n", "'one'"),
        ("v1.2\n", "cannot be read"),
    ],
)
def test_damaged_indexes_are_refused(tmp_path, text, message):
    path = tmp_path / "a.idx"
    path.write_text(text)
    with pytest.raises(MstlError, match=message):
        read_index(path)


def test_a_missing_index_is_refused(tmp_path):
    with pytest.raises(MstlError, match="missing"):
        read_index(tmp_path / "a.idx")
