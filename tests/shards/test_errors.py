"""The error users see: one line, and whole after crossing a process boundary."""

import pickle

from shards.errors import MstlError


def test_one_line_with_what_why_and_remedy() -> None:
    error = MstlError("shard set x", why="it is not there", remedy="Make it")
    assert str(error) == "shard set x: it is not there. Make it"


def test_pickling_keeps_all_of_it() -> None:
    error = pickle.loads(pickle.dumps(MstlError("a", why="b", remedy="c")))
    assert (error.what, error.why, error.remedy, str(error)) == ("a", "b", "c", "a: b. c")
