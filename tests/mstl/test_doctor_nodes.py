"""`mstl doctor --hostfile`, over a stand-in for ssh that runs the probe here: every check, made to fail."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from mstl.cli.doctor import command
from mstl.doctor import devices, nodes, storage
from mstl.doctor.findings import Finding
from mstl.hostfile import Host, read_hostfile
from shards.errors import MstlError

A, B = "127.0.0.1", "127.0.0.2"  # both are this machine
_SSH = """\
import os, sys
words = sys.argv[1:]
assert words[:2] == ["-o", "BatchMode=yes"] and words[2] == "-o", words
host, command = words[4:]
print("Welcome to " + host + "!", flush=True)
behaviour = BEHAVIOURS.get(host, "")
if behaviour.startswith("exit "):
    sys.exit(behaviour.removeprefix("exit "))
if behaviour:
    os.execv(sys.executable, [sys.executable, "-c", "from mstl.doctor import probe\\n" + behaviour + "\\nprobe.main()"])
os.execvp("bash", ["bash", "-c", command])
"""
Check = Callable[..., dict[str, Finding]]


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("", 0))
        return int(free.getsockname()[1])


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, port: int) -> Check:
    """Runs the checks of hosts; `behaviours` are what to do to the probe there, or `exit MESSAGE`."""
    tools = tmp_path / "tools"
    tools.mkdir()

    def run(
        *hosts: Host, paths: tuple[Path, ...] = (), gpus: int = 2, at: int = port, **behaviours: str
    ) -> dict[str, Finding]:
        told = {{"a": A, "b": B}.get(name, name): text for name, text in behaviours.items()}
        smi = f"print('NVIDIA H200, 143771, 0, 580.65\\n' * {gpus})"
        for name, body in (("ssh", f"BEHAVIOURS = {told!r}\n{_SSH}"), ("nvidia-smi", smi)):
            (tools / name).write_text(f"#!{sys.executable}\n{body}\n")
            (tools / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
        findings = list(nodes.check_nodes(hosts, paths, at))
        named = {f"{finding.where} {finding.name}": finding for finding in findings}
        assert len(named) == len(findings)
        return named

    return run


def bad(found: dict[str, Finding]) -> list[str]:
    return [name for name, finding in found.items() if finding.state != "ok"]


def test_nodes_that_are_alike(check: Check, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    found = check(Host(A, 2), Host(B, 1), paths=(shared,))
    assert bad(found) == []
    assert found[f"{A} slots"].found == "2 of 2 × NVIDIA H200" and found[f"{B} slots"].found == "1 of 2 × NVIDIA H200"
    assert found[f"{A} reaches"].found == "all 2 nodes"
    assert {f"{B} versions", f"{B} clock", f"{B} shared {shared}"} <= found.keys()
    assert list(shared.iterdir()) == []


def test_a_node_that_is_not_reached_is_named_and_the_others_are_checked(check: Check) -> None:
    found = check(Host(A, 1), Host("down", 1), down="exit ssh: connect to host down port 22: Connection refused")
    assert bad(found) == ["down reached"]
    assert found["down reached"].found == "ssh: connect to host down port 22: Connection refused"
    assert found["down reached"].remedy == "Try: ssh -o BatchMode=yes -o ConnectTimeout=15 down true"
    assert found[f"{A} reaches"].found == "itself"


@pytest.mark.parametrize(
    "words",
    ["bash: line 1: /opt/python: No such file or directory", "/usr/bin/python: No module named mstl.doctor.probe"],
)
def test_a_node_without_mstl(check: Check, words: str) -> None:
    finding = check(Host("bare", 1), bare=f"exit {words}")["bare reached"]
    assert finding.state == "fail" and finding.remedy.startswith("Install MSTL there at the same path")


def test_a_node_that_says_nothing(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "ANSWER_SECONDS", 1.0)
    found = check(Host("hung", 1), hung="import time; time.sleep(600)")
    assert bad(found) == ["hung reached"] and found["hung reached"].found == "no answer within 1 s"


def test_other_versions_are_told_apart(check: Check) -> None:
    old = "probe.version = lambda package: '0.1' if package == 'torch' else 'same'"
    found = check(Host(A, 1), Host(B, 1), a="probe.version = lambda package: 'same'", b=old)
    assert bad(found) == [f"{B} versions"] and found[f"{B} versions"].found == f"torch 0.1 (same on {A})"


def test_other_files_of_the_same_version(check: Check) -> None:
    found = check(Host(A, 1), Host(B, 1), b="probe.code_digest = lambda: 'changed'")
    assert bad(found) == [f"{B} versions"] and "MSTL's files changed" in found[f"{B} versions"].found


def test_another_driver(check: Check) -> None:
    other = "from mstl.doctor.devices import Gpu\nprobe.read_gpus = lambda: [Gpu('NVIDIA H200', 1, 0, '570.1')]"
    assert bad(check(Host(A, 1), Host(B, 1), b=other)) == [f"{B} driver"]


@pytest.mark.parametrize(
    ("meet", "says"),
    [
        ("[str(path) + '-elsewhere' for path in paths]", "No such file or directory"),
        ("paths, token + 'x', index", "No such file or directory"),
    ],
)
def test_a_folder_that_is_not_shared(check: Check, tmp_path: Path, meet: str, says: str) -> None:
    arguments = meet if meet.startswith("paths") else f"{meet}, token, index"
    patch = "real = probe.meet\nprobe.meet = lambda paths, token, index: " \
            f"dict(zip(paths, real({arguments}).values()))"  # fmt: skip
    found = check(Host(A, 1), Host(B, 1), paths=(tmp_path,), b=patch)
    assert bad(found) == [f"{B} shared {tmp_path}"] and says in found[f"{B} shared {tmp_path}"].found


def test_a_folder_that_looks_the_same_and_does_not_pass_on_what_is_written(
    check: Check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, "SEEN_SECONDS", 0.3)
    found = check(Host(A, 1), paths=(tmp_path,), a="probe.meet = lambda paths, token, index: dict.fromkeys(paths, '')")
    assert found[f"{A} shared {tmp_path}"].found == "not the same folder there: what it writes does not appear here"
    other = "import pathlib\nreal = probe.meet\ndef meet(paths, token, index):\n" \
            " (pathlib.Path(paths[0]) / f'.mstl-doctor-{token}' / 'doctor').write_text('x')\n" \
            " return real(paths, token, index)\nprobe.meet = meet"  # fmt: skip
    assert "another file" in check(Host(A, 1), paths=(tmp_path,), a=other)[f"{A} shared {tmp_path}"].found


def test_a_folder_that_cannot_be_written_from_here(check: Check, tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    found = check(Host(A, 1), paths=(missing,))
    assert bad(found) == [f"this machine shared {missing}"]


@pytest.mark.parametrize(("shift", "says"), [(120, "ahead of"), (-120, "behind")])
def test_clocks_that_differ(check: Check, shift: int, says: str) -> None:
    patch = (
        f"import time\nclass time:\n time = staticmethod(lambda real=time.time: real() + {shift})\nprobe.time = time"
    )
    found = check(Host(A, 1), Host(B, 1), b=patch)
    assert bad(found) == [f"{B} clock"] and says in found[f"{B} clock"].found
    assert 60 < float(found[f"{B} clock"].found.split()[0]) <= 120  # less what the exchange took


def test_the_port_is_taken_on_the_first_node(check: Check) -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        found = check(Host(A, 1), Host(B, 1), at=taken.getsockname()[1])
    assert bad(found) == [f"{A} port"] and "Address already in use" in found[f"{A} port"].found


def test_a_node_that_the_others_do_not_reach(check: Check) -> None:
    found = check(Host(A, 1), Host(B, 1), b="probe._listen = lambda listener, port: 1")  # nobody is there
    assert bad(found) == [f"{A} reaches", f"{B} reaches"]
    assert found[f"{A} reaches"].found == f"{B}: Connection refused"


def test_more_slots_than_devices(check: Check) -> None:
    found = check(Host(A, 3), Host(B, 2))
    assert bad(found) == [f"{A} slots"] and found[f"{A} slots"].found == "3, but 2 GPUs"


def test_slots_without_gpus(check: Check) -> None:
    cores = len(os.sched_getaffinity(0))
    found = check(Host(A, cores), Host(B, cores + 1), a="probe.read_gpus = lambda: []",
                  b="probe.read_gpus = lambda: []")  # fmt: skip
    assert (found[f"{A} slots"].state, found[f"{B} slots"].state) == ("warn", "fail")


def test_gpus_that_do_not_answer(check: Check) -> None:
    found = check(Host(A, 1), a="probe.read_gpus = lambda: 'nvidia-smi: it failed'")
    assert found[f"{A} slots"].found == "nvidia-smi: it failed"


def test_the_command_looks_at_the_nodes_of_a_hostfile(
    check: Check, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, port: int
) -> None:
    check(Host(A, 1), down="exit ssh: connect to host down port 22: No route to host")  # lays out the stand-ins
    monkeypatch.setattr(devices, "check_devices", lambda: iter(()))
    monkeypatch.setattr(storage, "TRIAL_BYTES", 2**20)
    (tmp_path / "shared").mkdir()
    hostfile = tmp_path / "hostfile"
    for text, code in ((f"{A} slots=2\n{B} slots=2\n", 0), (f"{A} slots=2\ndown slots=2\n", 1)):
        hostfile.write_text(text)
        words = ["--hostfile", str(hostfile), "--master-port", str(port), str(tmp_path / "shared")]
        done = CliRunner().invoke(command, words)
        assert done.exit_code == code, done.output
        assert f"ok    {A}: shared {tmp_path / 'shared'}: the same folder there" in done.output
    assert "fail  down: reached: ssh: connect to host down port 22: No route to host" in done.output


def test_without_ssh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (finding,) = nodes.check_nodes([Host(A, 1)], (), 0)
    assert finding.state == "fail" and finding.name == "ssh"


def test_a_hostfile(tmp_path: Path) -> None:
    file = tmp_path / "hostfile"
    file.write_text("# nodes\n\nnode-0.cluster  slots=8 # the first\n10.0.0.2\tslots=4\nfe80::1 slots=1\n")
    assert read_hostfile(file) == (Host("node-0.cluster", 8), Host("10.0.0.2", 4), Host("fe80::1", 1))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("node0\n", "line 1: 'node0' is not a node"),
        ("node0 slots=8\nnode1 slots=\n", "line 2"),
        ("node0 slots=0\n", "line 1"),
        ("-oProxyCommand=x slots=1\n", "line 1"),
        ("node0 slots=8\nnode0 slots=8\n", "line 2: node0 stands in it twice"),
        ("# nobody\n", "it names no node"),
        (None, "cannot be read"),
    ],
)
def test_a_hostfile_that_says_something_else(tmp_path: Path, text: str | None, says: str) -> None:
    file = tmp_path / "hostfile"
    if text is not None:
        file.write_text(text)
    with pytest.raises(MstlError, match=says):
        read_hostfile(file)
    outcome = CliRunner().invoke(command, ["--hostfile", str(file)])
    assert isinstance(outcome.exception, MstlError)
