"""Checks of the nodes of a hostfile before a job: reached, alike, seeing the same files, reaching each other."""

from __future__ import annotations

import json
import secrets
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from mstl.doctor.findings import Finding, fail, ok, warn
from mstl.doctor.probe import MARK
from mstl.hostfile import Host

ANSWER_SECONDS = 90.0
SEEN_SECONDS = 10.0  # network file systems keep what they know of a folder for some seconds
MOST_SKEW_SECONDS = 1.0
SSH = ("ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=15")


class Line:
    """A probe at the other end of ssh; `facts` is what it said of its node, None where it cannot be reached."""

    def __init__(self, host: Host, index: int) -> None:
        self.host, self.index = host, index
        self.facts: dict[str, Any] | None = None
        self.skew: tuple[float, float] = (0.0, 0.0)
        self.why = ""
        command = f"cd {shlex.quote(str(Path.cwd()))} && exec {shlex.quote(sys.executable)} -m mstl.doctor.probe"
        self._process = subprocess.Popen([*SSH, host.name, command], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                         stderr=subprocess.PIPE, text=True)  # fmt: skip
        self._errors: list[str] = []
        self._reader = threading.Thread(target=self._read_errors, daemon=True)
        self._reader.start()

    def open(self, port: int, token: str, paths: Sequence[str]) -> None:
        """Ask for the node's facts; `why` says what went wrong where there are none."""
        if self._hear() is None:
            return
        began = time.time()
        self._say({"index": self.index, "port": port, "token": token, "paths": list(paths)})
        said = self._hear()
        if said is not None:
            # Its clock was read between our asking and our hearing of it.
            self.skew = (said["time"] - time.time(), said["time"] - began)
            self.facts = self._hear()

    def reach(self, peers: dict[str, int]) -> dict[str, str]:
        """Which of the nodes it cannot reach, and why."""
        self._say({"peers": peers})
        answer = self._hear()
        unreached: dict[str, str] = answer["unreached"] if answer else dict.fromkeys(peers, self.why)
        return unreached

    def close(self) -> None:
        with suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(10)
        for pipe in (self._process.stdout, self._process.stderr):
            assert pipe is not None
            pipe.close()

    def _say(self, words: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        with suppress(OSError):  # why it is gone, its errors say
            self._process.stdin.write(json.dumps(words) + "\n")
            self._process.stdin.flush()

    def _hear(self) -> dict[str, Any] | None:
        """The next object it says; None when it ends or says nothing in time. Greetings of login shells are skipped."""
        assert self._process.stdout is not None
        timer = threading.Timer(ANSWER_SECONDS, self._process.kill)
        timer.start()
        began = time.monotonic()
        try:
            for text in self._process.stdout:
                with suppress(ValueError):
                    words = json.loads(text)
                    if isinstance(words, dict):
                        return words
        finally:
            timer.cancel()
        code = self._process.wait()
        self._reader.join(10)
        self.why = self._errors[-1] if self._errors else f"ssh ended with code {code}"
        if time.monotonic() - began >= ANSWER_SECONDS:
            self.why = f"no answer within {ANSWER_SECONDS:.0f} s"
        return None

    def _read_errors(self) -> None:
        assert self._process.stderr is not None
        self._errors += [text.strip() for text in self._process.stderr if text.strip()]


def check_nodes(hosts: Sequence[Host], paths: Sequence[Path], port: int) -> Iterator[Finding]:
    """Every check of the nodes; `paths` are the folders that a job shares, `port` where it would meet on the first."""
    if shutil.which("ssh") is None:
        yield fail("ssh", "not installed", "Install it (openssh-client), or run mstl doctor on every node")
        return
    token = secrets.token_hex(8)
    shared = [str(path.resolve()) for path in paths]
    with ExitStack() as stack, ThreadPoolExecutor(len(hosts)) as pool:
        unwritten = {}
        for path in shared:
            try:
                (Path(path) / f"{MARK}{token}").mkdir()
                stack.callback(shutil.rmtree, Path(path) / f"{MARK}{token}", ignore_errors=True)
                (Path(path) / f"{MARK}{token}" / "doctor").write_text(token)
            except OSError as error:
                unwritten[path] = error.strerror or str(error)
        lines = [Line(host, index) for index, host in enumerate(hosts)]
        for line in lines:
            stack.callback(line.close)
        here = [path for path in shared if path not in unwritten]
        list(pool.map(lambda line: line.open(0 if line.index else port, token, here), lines))
        reached = [line for line in lines if line.facts is not None]
        for path, why in unwritten.items():
            yield fail(f"shared {path}", f"cannot be written from here: {why}", "Name folders that you may write")
        yield from (_unreached(line) for line in lines if line.facts is None)
        for line in reached:
            yield from _alike(line, reached[0])
            yield _devices(line)
            yield _clock(line)
            yield from (_path(line, path, token) for path in here)
        yield from _ports(reached, port, pool)


def _unreached(line: Line) -> Finding:
    remedy = f"Try: {' '.join(SSH)} {line.host.name} true"
    if "No module named" in line.why or "not found" in line.why or "No such file" in line.why:
        remedy = f"Install MSTL there at the same path: {sys.executable}"
    return fail("reached", line.why, remedy, where=line.host.name)


def _alike(line: Line, first: Line) -> Iterator[Finding]:
    """Packages, Python, driver and GPUs are those of the first node."""
    assert line.facts is not None and first.facts is not None
    ours, theirs = line.facts["versions"], first.facts["versions"]
    differing = [f"{name} {ours.get(name)} ({theirs[name]} on {first.host.name})" for name in theirs
                 if ours.get(name) != theirs[name]]  # fmt: skip
    where = line.host.name
    if differing:
        yield fail("versions", "; ".join(differing), "Install the same everywhere, best on a shared disk", where=where)
    else:
        yield ok("versions", f"MSTL {ours['mstl']}, torch {ours['torch']}, Python {ours['python']}", where=where)
    if line.facts["driver"] != first.facts["driver"]:
        yield fail("driver", f"{line.facts['driver']} ({first.facts['driver']} on {first.host.name})",
                   "Install the same driver on every node", where=where)  # fmt: skip


def _devices(line: Line) -> Finding:
    """A node has a device for each of its slots."""
    assert line.facts is not None
    gpus, slots, where = line.facts["gpus"], line.host.slots, line.host.name
    remedy = f"Write at most {{}} as slots of {where} in the hostfile"
    if isinstance(gpus, str):
        return fail("slots", gpus, "Mend the driver there: nvidia-smi must list the GPUs", where=where)
    if not gpus:
        cores = line.facts["cores"]
        if slots > cores:
            return fail("slots", f"{slots}, but no GPU and {cores} cores", remedy.format(cores), where=where)
        return warn("slots", f"{slots}, but no GPU", "Ranks without a GPU run on the CPU: for trials only", where=where)
    if slots > len(gpus):
        return fail("slots", f"{slots}, but {len(gpus)} GPUs", remedy.format(len(gpus)), where=where)
    return ok("slots", f"{slots} of {len(gpus)} × {gpus[0]}", where=where)


def _clock(line: Line) -> Finding:
    low, high = line.skew
    least = max(low, -high, 0.0)  # what the clocks differ by at least, whenever within the exchange it was read
    if least > MOST_SKEW_SECONDS:
        found = f"{least:.1f} s {'ahead of' if low > 0 else 'behind'} this machine"
        return warn("clock", found, "Let it be set (chrony, ntpd): logs and files will disagree", where=line.host.name)
    return ok("clock", f"within {max(least, 0.1):.1f} s of this machine", where=line.host.name)


def _path(line: Line, path: str, token: str) -> Finding:
    """What was written here was read there, and the other way round."""
    assert line.facts is not None
    why, remedy = line.facts["paths"][path], "Mount the same shared file system there, for reading and writing"
    answer = Path(path) / f"{MARK}{token}" / str(line.index)
    if not why:
        deadline = time.monotonic() + SEEN_SECONDS
        while not answer.exists() and time.monotonic() < deadline:
            time.sleep(0.2)
        if not answer.exists():
            why = "what it writes does not appear here"
    if why:
        return fail(f"shared {path}", f"not the same folder there: {why}", remedy, where=line.host.name)
    return ok(f"shared {path}", "the same folder there", where=line.host.name)


def _ports(reached: Sequence[Line], port: int, pool: ThreadPoolExecutor) -> Iterator[Finding]:
    """Every node reaches every other by the name that the hostfile gives it."""
    peers: dict[str, int] = {}
    for line in reached:
        assert line.facts is not None
        at = line.facts["port"]
        if isinstance(at, str):
            yield fail("port", f"{port}: {at}", "Choose another --master-port, or end who has it", where=line.host.name)
        else:
            peers[line.host.name] = at
    for line, unreached in zip(reached, pool.map(lambda line: line.reach(peers), reached), strict=True):
        if unreached:
            found = "; ".join(f"{name}: {why}" for name, why in unreached.items())
            remedy = "Let the nodes reach each other on all ports, by these names (firewall, /etc/hosts)"
            yield fail("reaches", found, remedy, where=line.host.name)
        else:
            yield ok("reaches", f"all {len(peers)} nodes" if len(peers) > 1 else "itself", where=line.host.name)
