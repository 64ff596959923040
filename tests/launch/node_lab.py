"""Two machines on one: network namespaces of their own address, joined by a cable (a veth pair), without being root."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import psutil
import pytest

INTERFACE = "eth0"
NAMES = ("node0", "node1")


@dataclass(frozen=True, slots=True)
class Node:
    """A namespace with lo and eth0; `holder` is the process that keeps it in being."""

    name: str
    address: str
    holder: int

    def enter(self, words: Sequence[str]) -> list[str]:
        """The command line that runs these words on the node: its own network, everybody's files."""
        return ["nsenter", "--target", str(self.holder), "--user", "--net", "--preserve-credentials", "--", *words]

    def ip(self, *words: str) -> None:
        subprocess.run(self.enter(["ip", *words]), check=True, capture_output=True, text=True, timeout=60)


@contextmanager
def two_nodes() -> Iterator[tuple[Node, Node]]:
    """Two nodes that reach each other; skips the test, saying why, where namespaces cannot be made."""
    for tool in ("ip", "unshare", "nsenter"):
        if shutil.which(tool) is None:
            pytest.skip(f"no network namespaces: there is no `{tool}` (iproute2, util-linux) on this machine")
    holders: list[subprocess.Popen[str]] = []
    try:
        try:
            first = _hold(["unshare", "--user", "--map-root-user", "--net"], holders)
            left = Node(NAMES[0], "10.77.0.1", first)
            # In the user namespace of the first, so that a cable may be laid from one to the other.
            enter = ["nsenter", "--target", str(first), "--user", "--preserve-credentials", "--"]
            right = Node(NAMES[1], "10.77.0.2", _hold([*enter, "unshare", "--net"], holders))
            left.ip("link", "add", INTERFACE, "type", "veth", "peer", "name", INTERFACE, "netns", str(right.holder))
            for node in (left, right):
                node.ip("address", "add", f"{node.address}/24", "dev", INTERFACE)
                for interface in ("lo", INTERFACE):
                    node.ip("link", "set", interface, "up")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces: {str(error.stderr).strip() or error}")
        yield left, right
    finally:
        for holder in holders:
            holder.kill()
            holder.communicate()


def _hold(namespace: Sequence[str], holders: list[subprocess.Popen[str]]) -> int:
    """Start a process in new namespaces that stays there; its number once it is inside."""
    command = [*namespace, "sh", "-c", "echo inside; exec sleep 3600"]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    holders.append(holder)
    assert holder.stdout is not None and holder.stderr is not None
    if holder.stdout.readline() != "inside\n":
        raise subprocess.CalledProcessError(holder.wait(), command, stderr=holder.stderr.read())
    return holder.pid


def start_on(node: Node | None, words: Sequence[str], environment: dict[str, str]) -> subprocess.Popen[str]:
    """Run a command on a node, or outside both, in a process group of its own; both outputs in one pipe."""
    return subprocess.Popen(
        words if node is None else node.enter(words),
        env={**os.environ, **environment},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def kill_tree(process: subprocess.Popen[str]) -> None:
    """End a process and all below it at once, as when their machine dies: stopped first, so that none sees it."""
    if process.poll() is None:
        parent = psutil.Process(process.pid)
        parent.suspend()
        tree: list[psutil.Process] = [parent]
        while True:  # whoever was just being started is found in the next round
            found = [child for child in parent.children(recursive=True) if child not in tree]
            if not found:
                break
            for child in found:
                child.suspend()
            tree += found
        for member in tree:
            member.kill()
    process.communicate(timeout=60)
