"""What may be secret in a URL never comes out of it."""

import pytest

from shards.cache import CacheOptions, direct_tars
from shards.errors import MstlError
from shards.remote_store import open_store, shown
from shards.remote_url import redacted


@pytest.mark.parametrize(
    ("url", "seen"),
    [
        ("ftp://me:secret@host/a@b", "ftp://host/a@b"),
        ("ftp://me@host/set", "ftp://host/set"),
        ("s3://bucket/a:b@c", "s3://bucket/a:b@c"),
        ("s3://key:sec/ret@bucket/set", "s3://bucket/set"),
        ("http://host:8080/a@b", "http://host:8080/a@b"),
        ("http://[::1]:80/a@b", "http://[::1]:80/a@b"),
        ("http://me:secret@[::1]/a", "http://[::1]/a"),
        ("http://me:p?q@host/a", "http://host/a"),
        ("http://me:p::q@host/a", "http://host/a"),
        ("abfs://container@account.dfs.core.windows.net/x", "abfs://container@account.dfs.core.windows.net/x"),
        ("abfs://me:secret@account/x", "abfs://account/x"),
        ("abfss://c@account/x?sv=1&sig=SECRET", "abfss://c@account/x"),
        ("https://host/set.zip?X-Amz-Signature=SECRET", "https://host/set.zip"),
        ("zip://x::https://user:pw@host/a.zip?sig=SECRET", "zip://x::https://host/a.zip"),
        ("simplecache::ftp://me:pw@host/x", "simplecache::ftp://host/x"),
        ("zip://::simplecache::https://me:pw@host/a.zip", "zip://::simplecache::https://host/a.zip"),
        ("file:///data/what?/me:a@b", "file:///data/what?/me:a@b"),
        ("data/set?", "data/set?"),
    ],
)
def test_what_is_shown(url: str, seen: str) -> None:
    assert shown(url) == seen


def test_a_presigned_url_is_not_read_directly() -> None:
    assert direct_tars("s3://bucket/set?sig=SECRET", CacheOptions()) is None


@pytest.mark.parametrize(
    "message",
    [
        "401, url='https://me:hunter22@host/a.zip?sig=SECRET%3D'",
        "cannot open me:hunter22@host/a.zip?sig=SECRET%3D",
        "bad password hunter22",
        "redirected to https://cdn/x?token=SECRET",
        "sig=SECRET= is no signature",
    ],
)
def test_a_drivers_message_loses_them(message: str) -> None:
    told = redacted(message, "zip://x::https://me:hunter22@host/a.zip?sig=SECRET%3D")
    assert "SECRET" not in told and "hunter22" not in told
    assert told.split()[0].strip(",") == message.split()[0].strip(",") or message.startswith("sig")


def test_words_that_only_look_like_a_short_secret_stay() -> None:
    assert redacted("a bad day at host", "ftp://me:a@host/x") == "a bad day at host"


def test_an_archive_that_cannot_be_opened_is_told_without_secrets() -> None:
    pytest.importorskip("aiohttp")
    with pytest.raises(MstlError) as caught:
        open_store("zip://set::http://me:hunter22@127.0.0.1:1/x.zip?sig=SECRET")
    assert "zip://set::http://127.0.0.1:1/x.zip" in str(caught.value)
    assert "hunter22" not in str(caught.value) and "SECRET" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["https://h/set?sig=abc", "abfs://c@a/set?sig=abc", "simplecache::https://h/set?sig=abc"]
)
def test_a_folder_can_have_no_query(url: str) -> None:
    with pytest.raises(MstlError, match="the URL of a folder can have no query") as caught:
        open_store(url)
    assert "abc" not in str(caught.value)
