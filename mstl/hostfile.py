"""The hostfile of the deepspeed launcher: a line `NODE slots=N` for each node."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from shards.errors import MstlError


@dataclass(frozen=True, slots=True)
class Host:
    """A node: the name or address that the others reach it by, and how many processes it runs."""

    name: str
    slots: int


def read_hostfile(path: Path) -> tuple[Host, ...]:
    """The hosts in the order of their lines; comments and empty lines are passed over.

    Raises MstlError for a file that is missing or says something else. The launcher would go on without it, on this
    machine alone.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
        raise MstlError(f"hostfile {path}", why=f"it cannot be read ({why})", remedy="Name another one") from error
    hosts: list[Host] = []
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        # A name that began with a dash would be an option of ssh.
        found = re.fullmatch(r"([\w.:][\w.:-]*)\s+slots=(\d+)(?:\s*#.*)?", text)
        if found is None or int(found[2]) < 1:
            raise _bad(path, number, f"'{text}' is not a node and its number of processes")
        if found[1] in (host.name for host in hosts):
            raise _bad(path, number, f"{found[1]} stands in it twice")
        hosts.append(Host(found[1], int(found[2])))
    if not hosts:
        raise MstlError(f"hostfile {path}", why="it names no node", remedy="Write a line such as: node0 slots=8")
    return tuple(hosts)


def _bad(path: Path, number: int, why: str) -> MstlError:
    return MstlError(f"hostfile {path}, line {number}", why=why, remedy="Write one line a node, such as: node0 slots=8")
