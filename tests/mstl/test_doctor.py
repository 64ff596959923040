"""`mstl doctor` on this machine: every check, made to fail."""

from __future__ import annotations

import json
import os
import pty
import resource
import socket
import subprocess
import sys
from collections import namedtuple
from contextlib import suppress
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mstl.cli.doctor import command
from mstl.doctor import devices, machine, storage
from mstl.doctor.devices import Gpu
from mstl.doctor.findings import HERE, Finding

GIB = 2**30
Disk = namedtuple("Disk", "f_frsize f_blocks f_bavail f_files f_favail")


def program(file: Path, body: str) -> Path:
    """An executable Python program."""
    file.write_text(f"#!{sys.executable}\n{body}\n")
    file.chmod(0o755)
    return file


def disk(monkeypatch: pytest.MonkeyPatch, total: float, free: float, inodes: int = 100) -> None:
    monkeypatch.setattr(os, "statvfs", lambda path: Disk(1, int(total), int(free), 100, inodes))


def states(*findings: Finding) -> list[str]:
    assert all(finding.where == HERE for finding in findings)
    return [finding.state for finding in findings]


def test_python() -> None:
    assert machine.check_python((3, 10, 9)).state == "fail"
    assert machine.check_python((3, 11, 0)) == Finding(name="python", state="ok", found="3.11.0")


def test_packages_that_are_missing_or_too_old_are_named() -> None:
    def requirements(name: str) -> list[str]:
        assert name == "mstl"
        return ["torch>=99", "no-such-package", "click>=1", "numpy<1", 'pytest>=99; extra == "dev"']

    torch, others = machine.check_packages(requirements)
    assert torch.name == "torch" and torch.state == "fail" and torch.found.endswith(", needed: >=99")
    assert others.state == "fail" and "no-such-package missing" in others.found and "numpy" in others.found
    assert "click" not in others.found and "pytest" not in others.found
    assert set(states(*machine.check_packages())) == {"ok"}


def test_bytecode(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    package = tmp_path / "some_package"
    package.mkdir()
    for name in ("__init__", "other"):
        (package / f"{name}.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    assert machine.check_bytecode(("some_package",)).found == "not compiled: some_package"
    subprocess.run([sys.executable, "-m", "compileall", "-q", str(package)], check=True)
    assert machine.check_bytecode(("some_package",)).state == "ok"
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    assert "PYTHONDONTWRITEBYTECODE" in machine.check_bytecode(("some_package",)).found


def test_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.check_compiler().state == "warn"
    program(tmp_path / "g++", "")
    assert machine.check_compiler().state == "ok"


def test_shared_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert machine.check_shared_memory(tmp_path / "missing").state == "fail"
    for size, state in ((64 * 2**20, "fail"), (GIB / 2, "warn"), (GIB, "ok")):
        disk(monkeypatch, size, size)
        assert machine.check_shared_memory(tmp_path).state == state
    disk(monkeypatch, 100 * GIB, 0)
    assert machine.check_shared_memory(tmp_path).state == "fail"


def test_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    for soft, state in ((256, "fail"), (1000, "warn"), (1024, "ok"), (resource.RLIM_INFINITY, "ok")):
        monkeypatch.setattr(resource, "getrlimit", lambda kind, soft=soft: (soft, 4096))
        assert machine.check_open_files().state == state
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (256, 4096))
    assert "ulimit -n 4096" in machine.check_open_files().remedy


def test_memory_maps(tmp_path: Path) -> None:
    file = tmp_path / "max_map_count"
    assert machine.check_maps(file).state == "warn"
    for text, state in (("1000", "fail"), ("65530", "ok")):
        file.write_text(text)
        assert machine.check_maps(file).state == state


def test_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    assert machine.check_cores(tmp_path).state == "ok"
    for quota, state in (("max 100000", "ok"), ("800000 100000", "ok"), ("250000 100000", "warn")):
        (tmp_path / "cpu.max").write_text(quota)
        assert machine.check_cores(tmp_path).state == state
    assert "the time of 2.5" in machine.check_cores(tmp_path).found
    (tmp_path / "cpu.max").unlink()
    (tmp_path / "cpu").mkdir()
    for name, value in (("quota", "100000"), ("period", "100000")):
        (tmp_path / "cpu" / f"cpu.cfs_{name}_us").write_text(value)
    assert "the time of 1" in machine.check_cores(tmp_path).found
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1")
    assert machine.check_cores(tmp_path).state == "ok"
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0})
    assert machine.check_cores(tmp_path).state == "warn"


def test_memory(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    for available, state in ((1, "fail"), (3, "warn"), (5, "ok")):
        meminfo.write_text(f"MemTotal: {64 * 2**20} kB\nMemAvailable: {available * 2**20} kB\n")
        assert machine.check_memory(meminfo, tmp_path).state == state
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.check_memory(meminfo, tmp_path).state == "ok"
    (tmp_path / "memory.max").write_text(str(GIB))
    assert machine.check_memory(meminfo, tmp_path).found.startswith("1.0 GiB, the container's limit")
    (tmp_path / "memory.max").unlink()
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text(str(GIB))
    assert machine.check_memory(meminfo, tmp_path).state == "fail"


def test_port() -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert machine.check_port(port).found == f"{port}: taken"
    assert machine.check_port(0).state == "ok"


def smi(monkeypatch: pytest.MonkeyPatch, folder: Path, body: str) -> None:
    program(folder / "nvidia-smi", body)
    monkeypatch.setenv("PATH", str(folder))


def test_gpus_are_read_from_nvidia_smi(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    smi(monkeypatch, tmp_path, "print('NVIDIA H200, 143771, 0, 580.65.06\\nNVIDIA H200, 143771, 90000, 580.65.06')")
    gpus = devices.read_gpus()
    assert gpus == [Gpu("NVIDIA H200", 143771, 0, "580.65.06"), Gpu("NVIDIA H200", 143771, 90000, "580.65.06")]
    assert isinstance(gpus, list)
    assert devices.check_gpus(gpus) == Finding(name="GPUs", state="ok", found="2 × NVIDIA H200, 140 GiB")
    assert devices.check_gpu_memory(gpus).found == "in use: GPU 1 90,000 of 143,771 MiB"
    assert devices.check_gpu_memory(gpus[:1]).state == "ok"
    assert devices.check_gpus([*gpus, Gpu("NVIDIA L4", 23034, 0, "580.65.06")]).state == "warn"


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("import sys; sys.exit('NVIDIA-SMI has failed because it could not talk to the driver')", "could not talk"),
        ("print('[Insufficient Permissions], N/A')", "N/A"),
    ],
)
def test_a_driver_that_does_not_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, body: str, says: str) -> None:
    smi(monkeypatch, tmp_path, body)
    gpus = devices.read_gpus()
    finding = devices.check_gpus(gpus)
    assert finding.state == "fail" and says in finding.found


def test_without_gpus_training_is_slow_and_possible(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(Path, "glob", lambda self, pattern: [])
    assert devices.read_gpus() == []
    assert devices.check_gpus([]).state == "warn"
    monkeypatch.setattr(Path, "glob", lambda self, pattern: [Path("/dev/nvidia0")])
    assert devices.check_gpus(devices.read_gpus()).state == "fail"


def test_driver_and_cuda() -> None:
    old = [Gpu("NVIDIA A100", 40960, 0, "535.104.05")]
    assert devices.check_driver(old, "12.8").state == "ok"
    assert "torch's CUDA 13.2 needs 580" in devices.check_driver(old, "13.2").found
    assert devices.check_cuda_toolkit(None).state == "warn"
    assert devices.check_cuda_toolkit("13.2").found.startswith("13.2 (torch's own)")


def test_the_cuda_release_is_that_of_torch() -> None:
    import torch

    assert devices.torch_cuda() == torch.version.cuda


def answering(tmp_path: Path, **answer: object) -> str:
    """A Python that prints this object, whatever program it is given."""
    return str(program(tmp_path / "python", f"import json; print('noise'); print(json.dumps({answer!r}))"))


def test_torch(tmp_path: Path) -> None:
    good = {"cuda": "13.2", "devices": 2, "nccl": (2, 30, 7), "bf16": True, "gloo": True}
    assert states(*devices.check_torch(2, answering(tmp_path, **good))) == ["ok", "ok"]
    runs, nccl = devices.check_torch(4, answering(tmp_path, **good))
    assert runs.found == "it sees 2 of 4 GPUs" and nccl.found == "2.30.7"
    assert states(*devices.check_torch(2, answering(tmp_path, **{**good, "nccl": None}))) == ["ok", "fail"]
    assert states(*devices.check_torch(0, answering(tmp_path, **{**good, "gloo": False}))) == ["ok", "fail"]


def test_dali_must_decode_to_the_colour_that_was_put_in(tmp_path: Path) -> None:
    assert devices.check_dali("gpu", answering(tmp_path, mean=[199.0, 30.0, 31.0])).state == "ok"
    assert "another colour" in devices.check_dali("gpu", answering(tmp_path, mean=[30.0, 30.0, 200.0])).found


def test_libraries_that_do_not_load_say_why(tmp_path: Path) -> None:
    python = str(program(tmp_path / "python", "raise ImportError('libcudart.so.13: cannot open')"))
    for finding in (*devices.check_torch(0, python), devices.check_dali("cpu", python),
                    devices.check_deepspeed(python)):  # fmt: skip
        assert finding.state == "fail" and finding.found == "ImportError: libcudart.so.13: cannot open"
    assert devices.check_deepspeed(str(tmp_path / "missing")).state == "fail"


@pytest.mark.slow
def test_the_libraries_that_are_installed_load() -> None:
    assert states(*devices.check_torch(0, sys.executable)) == ["ok", "ok"]
    assert devices.check_dali("cpu", sys.executable).state == "ok"
    assert devices.check_deepspeed(sys.executable).state == "ok"


def test_room(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for free, state in ((0.5e9, "fail"), (5e9, "warn"), (50e9, "ok")):
        disk(monkeypatch, 1e12, free)
        assert storage.check_room(tmp_path).state == state
    disk(monkeypatch, 1e12, 50e9, inodes=0)
    assert storage.check_room(tmp_path).state == "fail"


def test_the_kind_of_file_system_is_that_of_the_longest_mount(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/a / ext4 rw 0 0\nserver:/x {tmp_path} nfs4 rw 0 0\ntmpfs {tmp_path}x tmpfs rw 0 0\n")
    assert storage.filesystem(tmp_path / "runs", mounts) == "nfs4"
    assert storage.filesystem(Path("/"), mounts) == "ext4"
    assert storage.filesystem(tmp_path, tmp_path / "missing") == "unknown"


def test_a_folder_that_does_not_lock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert storage.check_locks("locks", tmp_path).state == "ok"
    monkeypatch.setattr(storage, "lock_file", lambda path: os.open(path, os.O_CREAT | os.O_RDWR))
    assert storage.check_locks("locks", tmp_path).found == "a file can be locked twice"

    def refuse(path: Path) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(storage, "lock_file", refuse)
    assert "No locks available" in storage.check_locks("locks", tmp_path).found


def test_speed_classes() -> None:
    speeds = {(600e6, 600e6): "fast", (600e6, 120e6): "medium", (99e6, 600e6): "slow", (600e6, 50e6): "slow"}
    for (written, read), kind in speeds.items():
        finding = storage.judge_speed("speed", written, read)
        assert finding.found.startswith(kind) and finding.state == ("warn" if kind == "slow" else "ok")


def test_paths_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(storage, "TRIAL_BYTES", 2**20)
    room, locks, speed = storage.check_path(tmp_path)
    assert [f.name for f in (room, locks, speed)] == [f"{what} {tmp_path}" for what in ("room", "locks", "speed")]
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "missing"):
        assert states(*storage.check_path(path)) == ["fail"]
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert [finding.name for finding in storage.check_path(tmp_path)][1:] == [f"writing {tmp_path}"]
    monkeypatch.undo()

    def full(*words: object) -> Finding:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage, "check_speed", full)
    assert "No space left" in list(storage.check_path(tmp_path))[-1].found


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command without its slow imports and trial files."""
    monkeypatch.setattr(devices, "check_devices", lambda: iter([devices.check_gpus([])]))
    monkeypatch.setattr(storage, "TRIAL_BYTES", 2**20)


def doctor(*words: str) -> Result:
    return CliRunner().invoke(command, list(words))


@pytest.mark.usefixtures("quick")
def test_the_command_exits_with_1_when_something_would_not_work(tmp_path: Path) -> None:
    good, bad = doctor(str(tmp_path)), doctor(str(tmp_path), str(tmp_path / "missing"))
    assert good.exit_code == 0 and bad.exit_code == 1
    lines = bad.output.splitlines()
    assert f"fail  this machine: room {tmp_path / 'missing'}: not there. Make the folder, or name another" in lines
    assert lines[-1].endswith("1 to mend") and "warn  this machine: GPUs: none" in bad.output


@pytest.mark.usefixtures("quick")
def test_findings_as_json(tmp_path: Path) -> None:
    body = json.loads(doctor("--json", str(tmp_path)).output)
    names = [finding["name"] for finding in body["findings"]]
    assert len(names) == len(set(names)) and {"torch", "GPUs", f"room {tmp_path}"} <= set(names)
    assert all(bool(finding["remedy"]) == (finding["state"] != "ok") for finding in body["findings"])


def test_on_a_terminal_the_command_draws_a_table_and_imports_no_library_itself(tmp_path: Path) -> None:
    program_text = (
        "import sys; from mstl.doctor import devices; devices.check_devices = lambda: iter(())\n"
        "from mstl.cli.doctor import command\n"
        "try: command.main(standalone_mode=False)\n"
        "except SystemExit as error: print(error.code, {'torch', 'nvidia', 'deepspeed'} & set(sys.modules))\n"
    )
    left, right = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    words = [sys.executable, "-c", program_text, str(tmp_path / "missing")]
    process = subprocess.Popen(words, stdout=right, stdin=subprocess.DEVNULL, env=environment)
    os.close(right)
    text = b""
    with suppress(OSError):  # the other end is gone, and all of it was read
        while piece := os.read(left, 65536):
            text += piece
    os.close(left)
    assert process.wait() == 0 and text.endswith(b"1 set()\r\n") and b"\x1b[1;31mfail" in text
