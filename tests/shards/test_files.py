"""Locks of files: one holder at a time, of the file that stands there now."""

import os
import threading
from pathlib import Path

import pytest

from shards.files import await_lock, lock_file, locked


def test_one_holder_at_a_time_or_several_that_share(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    alone = lock_file(path)
    assert alone is not None and lock_file(path) is None and lock_file(path, shared=True) is None
    os.close(alone)
    one, other = lock_file(path, shared=True), await_lock(path, shared=True)
    assert one is not None and lock_file(path) is None
    for handle in (one, other):
        os.close(handle)
    with locked(path):
        assert lock_file(path) is None
    again = lock_file(path)
    assert again is not None
    os.close(again)


def test_a_lock_is_waited_for_and_is_that_of_the_file_that_stands_there(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    first, handles = await_lock(path), list[int]()
    waiting = threading.Thread(target=lambda: handles.append(await_lock(path)))
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive() and handles == []
    path.unlink()  # its owner removes it before letting go
    os.close(first)
    waiting.join(10)
    assert os.path.samestat(os.fstat(handles[0]), path.stat())
    assert lock_file(path) is None
    os.close(handles[0])


def test_a_file_that_is_only_locked_is_neither_made_nor_changed(tmp_path: Path) -> None:
    path = tmp_path / "there"
    with pytest.raises(FileNotFoundError):
        await_lock(path, create=False)
    path.write_text("content")
    path.chmod(0o400)
    before = path.stat()
    with locked(path, create=False):
        assert path.read_text() == "content"
    assert path.read_text() == "content" and path.stat().st_mtime_ns == before.st_mtime_ns
    assert [entry.name for entry in tmp_path.iterdir()] == ["there"]
