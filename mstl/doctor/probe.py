"""What `mstl doctor --hostfile` runs on every node, over ssh: it answers one JSON a line to one JSON a line.

    ← {"ready": true}
    → {"index": 0, "port": 29600, "token": "…", "paths": ["/shared/runs"]}     port 0: any
    ← {"time": 1700000000.0}
    ← {"versions": {…}, "gpus": […], "driver": "…", "cores": 8, "paths": {"/shared/runs": ""}, "port": 29600}
    → {"peers": {"node0": 29600, "node1": 43121}}
    ← {"unreached": {"node1": "timed out"}}
    → end of file: it stops listening and leaves

Nothing but the standard library and `mstl.doctor`, so that it starts at once.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import socket
import sys
import threading
import time
from contextlib import suppress
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mstl.doctor.devices import read_gpus

MARK = ".mstl-doctor-"
PACKAGES = ("mstl", "torch", "torchvision", "nvidia-dali-cuda130", "deepspeed", "webdataset", "numpy")
OURS = ("shards", "pipelines", "mstl", "launch")
CONNECT_SECONDS = 10.0


def main() -> None:
    """Answer the doctor until it closes the line."""
    _say({"ready": True})
    request = json.loads(sys.stdin.readline())
    _say({"time": time.time()})
    with socket.socket(socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET) as listener:
        port = _listen(listener, request["port"])
        _say({**facts(), "paths": meet(request["paths"], request["token"], request["index"]), "port": port})
        peers = json.loads(sys.stdin.readline() or '{"peers": {}}')["peers"]
        _say({"unreached": {name: why for name, at in peers.items() if (why := _reach(name, at))}})
        sys.stdin.read()


def facts() -> dict[str, Any]:
    """What nodes of one job must have alike, and what this one has."""
    gpus = read_gpus()
    known = gpus if isinstance(gpus, list) else []
    return {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES},
                     "MSTL's files": code_digest()},
        "gpus": gpus if isinstance(gpus, str) else [gpu.name for gpu in known],
        "driver": known[0].driver if known else None,
        "cores": len(os.sched_getaffinity(0)),
    }  # fmt: skip


def version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "missing"


def code_digest() -> str:
    """The first digits of a digest of MSTL's own Python files: checkouts of one version can still differ."""
    digest = hashlib.sha256()
    for package in OURS:
        spec = find_spec(package)
        folder = None if spec is None or spec.origin is None else Path(spec.origin).parent
        for file in sorted([] if folder is None else folder.rglob("*.py")):
            assert folder is not None
            digest.update(f"{package}/{file.relative_to(folder)}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:12]


def meet(paths: list[str], token: str, index: int) -> dict[str, str]:
    """Read what the doctor has left at each path and leave an answer there; "" or why that failed."""
    outcome = {}
    for path in paths:
        folder = Path(path) / f"{MARK}{token}"
        try:
            left = (folder / "doctor").read_text()
            outcome[path] = "" if left == token else "another file is there"
            (folder / str(index)).write_text(token)
        except OSError as error:
            outcome[path] = error.strerror or str(error)
    return outcome


def _listen(listener: socket.socket, port: int) -> int | str:
    """Accept on a port, in the background; its number, or why that cannot be."""
    if listener.family == socket.AF_INET6:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("", port))
        listener.listen(1024)
    except OSError as error:
        return error.strerror or str(error)

    def accept() -> None:
        with suppress(OSError):  # closed at the end
            while True:
                listener.accept()[0].close()

    threading.Thread(target=accept, daemon=True).start()
    return int(listener.getsockname()[1])


def _reach(name: str, port: int) -> str:
    try:
        socket.create_connection((name, port), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _say(words: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(words) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
