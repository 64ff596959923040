"""Options of commands that read a shard set from a folder or a URL: which one, and where copies of it lie."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from shards.remote_store import location, shown

Command = TypeVar("Command", bound=Callable[..., Any])


class _Folder(click.Path):
    """A folder of this machine; a URL, which a path would silently take for a name, is refused."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, str) and "://" in value:
            self.fail(f"{shown(value)} is a URL, and only a folder will do here", param, ctx)
        return super().convert(value, param, ctx)


FOLDER = _Folder(path_type=Path)
SHARD_SET = location  # as the type of an option: a URL arrives as str, a folder as Path
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?(?:([KMGT])(i)?)?B?", re.IGNORECASE)


def _size(text: str) -> int:
    """Bytes of "200GB", "1.5 TiB" or "1000"."""
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise click.BadParameter(f"{text!r} is no size; write for example 200GB, 1.5TB or 500GiB")
    number, unit, binary = found.groups()
    base = 1024.0 if binary else 1000.0
    return round(float(number) * base ** "_KMGT".index((unit or "_").upper()))


CACHE_OPTIONS = (
    click.option(
        "--cache",
        type=click.Path(path_type=Path, file_okay=False),
        help="Where tars of a shard set at a URL are copied to and read from: every epoch after the first at disk "
        "speed. Without it s3:// is read directly in training: no disk used, a request for every part of a sample.  "
        "[default: $MSTL_CACHE or ~/.cache/mstl]",
    ),
    click.option(
        "--cache-limit",
        type=_size,
        metavar="SIZE",
        help="What copies may take together (200GB): those used least recently give way. Implies copying.",
    ),
)


def with_options(command: Command, options: Sequence[Callable[[Command], Command]]) -> Command:
    """Add options to a click command; --help lists them in this order."""
    for option in reversed(options):
        command = option(command)
    return command


def cache_options(command: Command) -> Command:
    """Add --cache and --cache-limit; they arrive as `cache` and `cache_limit`, the fields of CacheOptions."""
    return with_options(command, CACHE_OPTIONS)
