"""Shard sets at a URL: a folder of any store that fsspec knows, with every driver's failures told alike."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any, TypeVar

from shards.errors import MstlError
from shards.remote_url import has_query, plain, redacted

PIECE_BYTES = 8 * 2**20
THREADS = 8  # files in flight: enough to hide a store's latency, few enough for its rate limits

_BUCKETS = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss")  # stores without folders: making one would make a bucket
_DRIVERS = {
    "s3": "'mstl[s3]'", "s3a": "'mstl[s3]'", "gs": "gcsfs", "gcs": "gcsfs",
    "az": "adlfs", "abfs": "adlfs", "abfss": "adlfs",
}  # fmt: skip
# What drivers raise beside OSError; looked up only when something has failed, so that none is imported for it.
_FAILURES = (
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
    ("aiohttp.client_exceptions", "ClientError"),
    ("gcsfs.retry", "HttpError"),
    ("google.auth.exceptions", "GoogleAuthError"),
    ("azure.core.exceptions", "AzureError"),
)

Item = TypeVar("Item")
Result = TypeVar("Result")


class Gone(MstlError):
    """A file that a store does not have."""


def is_url(where: str | Path) -> bool:
    """Whether a shard set is named by a URL rather than by a folder."""
    return isinstance(where, str) and "://" in where


def location(text: str) -> str | Path:
    """A shard set as a user or a record names it: a URL without trailing slashes, or a folder."""
    return text.rstrip("/") if "://" in text else Path(text)


def shown(where: str | Path) -> str:
    """What may be printed and recorded of it: user names, passwords and queries of URLs are left out."""
    return plain(where) if isinstance(where, str) else str(where)


def scheme(url: str) -> str:
    """The part of a URL before ://, in small letters."""
    return url.partition("://")[0].lower()


@dataclass(frozen=True, slots=True)
class Store:
    """A folder in a store. Names are relative to it; all methods raise MstlError, `Gone` for a file that is missing."""

    url: str
    fs: Any  # fsspec.AbstractFileSystem; fsspec has no types
    root: str

    def read(self, name: str) -> bytes:
        """The content of a small file."""
        return b"".join(self.pieces(name))

    def pieces(self, name: str) -> Iterator[bytes]:
        """The content of a file in pieces of at most PIECE_BYTES."""
        with (
            self._told(name),
            self.fs.open(f"{self.root}/{name}", "rb", block_size=PIECE_BYTES, cache_type="none") as file,
        ):
            while piece := file.read(PIECE_BYTES):
                yield piece

    def sizes(self, under: str = "") -> dict[str, int]:
        """Name and size in bytes of every file here, or in a folder here; empty when there is none."""
        with self._told(under):
            found = self.fs.find(f"{self.root}/{under}".rstrip("/"), detail=True)
        return {name.removeprefix(self.root).lstrip("/"): int(about["size"]) for name, about in found.items()}

    def write(self, name: str, data: bytes) -> None:
        """Put a small file, over the one that is there."""
        with self._told(name):
            self._make_parent(name)
            self.fs.pipe_file(f"{self.root}/{name}", data)

    def put(self, name: str, file: Path) -> None:
        """Put a local file, over the one that is there."""
        with self._told(name):
            self._make_parent(name)
            self.fs.put_file(str(file), f"{self.root}/{name}")

    def remove(self, name: str) -> None:
        """Delete a file."""
        with self._told(name):
            self.fs.rm_file(f"{self.root}/{name}")

    def named(self, name: str) -> str:
        """The URL of a file as it may be printed."""
        return f"{shown(self.url)}/{name}".rstrip("/")

    def _make_parent(self, name: str) -> None:
        if scheme(self.url) not in _BUCKETS:
            self.fs.makedirs(f"{self.root}/{name}".rpartition("/")[0], exist_ok=True)

    @contextmanager
    def _told(self, name: str) -> Iterator[None]:
        """Turn what a driver raises into the user's error; nothing local may fail inside."""
        try:
            yield
        except _failures() as error:
            raise _failure(self.url, self.named(name), error) from error


def open_store(url: str) -> Store:
    """The store at a URL, not yet contacted; raises MstlError for an unknown scheme or a driver not installed."""
    from fsspec.core import url_to_fs  # type: ignore[import-untyped]

    url, kind = url.rstrip("/"), scheme(url)
    if has_query(url):
        raise MstlError(
            shown(url),
            why="the URL of a folder can have no query (?...)",
            remedy="Give the credentials to the driver in another way",
        )
    try:
        # Without a cache of listings: what another process has put there counts.
        fs, root = url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        driver = _DRIVERS.get(kind)
        raise MstlError(
            shown(url),
            why=f"the driver for {kind}:// is not installed ({_words(url, error)})",
            remedy=f"Install it: pip install {driver}" if driver else "Install the package that the message names",
        ) from error
    except ValueError as error:
        raise MstlError(
            shown(url),
            why=f"it cannot be opened ({_words(url, error)})",
            remedy="Name a folder, or a URL such as s3://bucket/set",
        ) from error
    except _failures() as error:  # the archive of a chained URL is opened at once
        raise _failure(url, shown(url), error) from error
    return Store(url, fs, root.rstrip("/"))


def in_threads(work: Callable[[Item, Event], Result], items: Sequence[Item]) -> Iterator[Result]:
    """What `work` gives for each item, in the order of completion.

    The first exception ends it: items not begun are dropped, and the event tells running ones to give up.
    """
    stop = Event()
    pool = ThreadPoolExecutor(THREADS)
    try:
        for done in as_completed([pool.submit(work, item, stop) for item in items]):
            yield done.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # first, or those that are told begin the next items
        stop.set()
        pool.shutdown()


def _failure(url: str, named: str, error: BaseException) -> MstlError:
    words = _words(url, error)
    if isinstance(error, FileNotFoundError):
        return Gone(named, why=f"it is not there ({words})", remedy="Check the URL")
    if isinstance(error, NotImplementedError):
        return MstlError(named, why=f"{scheme(url)}:// cannot do this", remedy="Use a store that can, as s3://")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return MstlError(named, why=f"there is no room for it ({words})", remedy="Make room, then repeat the command")
    if isinstance(error, PermissionError):
        remedy = "Check the rights of the credentials in use (for S3: AWS_PROFILE, AWS_ACCESS_KEY_ID, the policy)"
        return MstlError(named, why=f"access is denied ({words})", remedy=remedy)
    return MstlError(
        named,
        why=f"the store cannot be reached or refuses ({words})",
        remedy="Check network, credentials and endpoint (for S3: the AWS_ variables), then repeat the command",
    )


def _words(url: str, error: BaseException) -> str:
    """What a driver says, on one line and without secrets."""
    return redacted(" ".join((str(error) or type(error).__name__).split()), url)


def _failures() -> tuple[type[BaseException], ...]:
    loaded = [(sys.modules[module], name) for module, name in _FAILURES if module in sys.modules]
    return (OSError, NotImplementedError, *(getattr(module, name) for module, name in loaded))
