"""Checks of this machine apart from its GPUs: Python and packages, compiler, limits, cores, memory, ports."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from importlib.util import cache_from_source, find_spec
from pathlib import Path

from mstl.doctor.findings import Finding, fail, ok, warn

GIB = 2**30
SHOWN = ("torch", "torchvision", "nvidia-dali-cuda130", "deepspeed", "webdataset")
LEAST_MAPS = 65_530  # the kernel's default; DALI maps every index file, up to some 20,000 of a loader
INSTALL = "Install MSTL again: make setup, or pip install -e . -c constraints.txt"


def check_machine(port: int) -> Iterator[Finding]:
    """Every check of this module; `port` is where the nodes of a job would meet."""
    yield check_python(sys.version_info[:3])
    yield from check_packages()
    yield check_bytecode()
    yield check_compiler()
    yield check_shared_memory(Path("/dev/shm"))
    yield check_open_files()
    yield check_maps(Path("/proc/sys/vm/max_map_count"))
    yield check_cores(Path("/sys/fs/cgroup"))
    yield check_memory(Path("/proc/meminfo"), Path("/sys/fs/cgroup"))
    yield check_port(port)


def check_python(version: tuple[int, ...]) -> Finding:
    text = ".".join(map(str, version))
    if version < (3, 11):
        return fail("python", text, "Use Python 3.11 or newer")
    return ok("python", text)


def check_packages(requirements: Callable[[str], list[str] | None] = metadata.requires) -> Iterator[Finding]:
    """Every package that MSTL requires is there in a version that it accepts; the main ones have their own line."""
    from packaging.requirements import Requirement

    others, bad = 0, []
    for text in requirements("mstl") or []:
        wanted = Requirement(text)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue  # an extra's
        try:
            version = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            version = ""
        fits = bool(version) and wanted.specifier.contains(version, prereleases=True)
        found = version or "missing"
        if not fits:
            found = f"{found}, needed: {wanted.specifier or 'any version'}"
        if wanted.name in SHOWN:
            yield ok(wanted.name, found) if fits else fail(wanted.name, found, INSTALL)
        elif fits:
            others += 1
        else:
            bad.append(f"{wanted.name} {found}")
    yield fail("other packages", "; ".join(bad), INSTALL) if bad else ok("other packages", f"all {others} there")


def check_bytecode(packages: tuple[str, ...] = ("torch", "deepspeed")) -> Finding:
    """Without compiled bytecode the command needs twice as long to its first step."""
    if os.environ.get("PYTHONDONTWRITEBYTECODE"):
        return warn("bytecode", "PYTHONDONTWRITEBYTECODE is set: every start compiles anew", "Unset it")
    missing = []
    for package in packages:
        spec = find_spec(package)
        # The package's own __init__ is compiled as soon as somebody has imported it; not so all the rest.
        files = [] if spec is None or spec.origin is None else sorted(Path(spec.origin).parent.glob("*.py"))
        if not files or not all(Path(cache_from_source(str(file))).exists() for file in files):
            missing.append(package)
    if missing:
        remedy = f"{sys.executable} -m compileall -q {{site-packages}}, or install with uv pip --compile-bytecode"
        return warn("bytecode", f"not compiled: {', '.join(missing)}", remedy)
    return ok("bytecode", "compiled")


def check_compiler() -> Finding:
    """Training needs none; torch.compile does."""
    compiler = shutil.which("g++") or shutil.which("c++") or shutil.which("clang++")
    ninja = shutil.which("ninja") or shutil.which("ninja", path=str(Path(sys.executable).parent))
    if compiler is None:
        found = "no C++ compiler" + ("" if ninja else ", no ninja")
        return warn("compiler", found, "Needed for --compile only: install g++")
    return ok("compiler", f"{compiler}{', ninja' if ninja else ''} (needed for --compile only)")


def check_shared_memory(folder: Path) -> Finding:
    """NCCL passes data between the ranks of a machine through it; containers often have 64 MB."""
    remedy = "Enlarge it: docker run --shm-size 16g; in Kubernetes an emptyDir of medium Memory"
    try:
        size = os.statvfs(folder)
    except OSError as error:
        return fail("shared memory", f"{folder}: {error.strerror}", remedy)
    total, free = size.f_frsize * size.f_blocks, size.f_frsize * size.f_bavail
    found = f"{free / GIB:.1f} of {total / GIB:.1f} GiB free"
    if free < GIB / 8:
        return fail("shared memory", found, remedy)
    return ok("shared memory", found) if free >= GIB else warn("shared memory", found, remedy)


def check_open_files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    found = f"at most {'any number' if soft == unlimited else soft}"
    remedy = f"ulimit -n {'65536' if hard == unlimited else min(hard, 65_536)}; under systemd LimitNOFILE="
    if soft != unlimited and soft < 512:
        return fail("open files", found, remedy)
    return ok("open files", found) if soft == unlimited or soft >= 1024 else warn("open files", found, remedy)


def check_maps(file: Path) -> Finding:
    try:
        allowed = int(file.read_text())
    except (OSError, ValueError):
        return warn("memory maps", f"{file} cannot be read", "Loaders of very large sets may fail to build")
    found = f"at most {allowed:,} a process"
    if allowed < LEAST_MAPS:
        return fail("memory maps", found, f"sysctl vm.max_map_count={LEAST_MAPS}: DALI maps every index file")
    return ok("memory maps", found)


def check_cores(cgroup: Path) -> Finding:
    """Cores that this process may use; a container's share of time can be less than the cores it sees."""
    seen, allowed = os.cpu_count() or 1, len(os.sched_getaffinity(0))
    quota = cpu_quota(cgroup)
    found = f"{allowed} of {seen}"
    if quota is not None and quota < allowed:
        remedy = f"Give the container more, or say --set data.workers={max(1, int(quota) - 1)} and OMP_NUM_THREADS=1"
        return warn("cores", f"{found}, but the time of {quota:g}", remedy)
    if allowed < 2:
        return warn("cores", found, "One core decodes and trains in turn: give two or more for each rank")
    return ok("cores", found)


def cpu_quota(cgroup: Path) -> float | None:
    """The cores' worth of time that a control group (v2, else v1) grants; None is no limit."""
    try:
        words = (cgroup / "cpu.max").read_text().split()
    except OSError:
        try:
            words = [(cgroup / "cpu" / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period")]
        except OSError:
            return None
    if len(words) != 2 or words[0] in ("max", "-1"):
        return None
    return int(words[0]) / int(words[1])


def check_memory(meminfo: Path, cgroup: Path) -> Finding:
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
    total, available = (int(fields[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    found = f"{available / GIB:.1f} of {total / GIB:.1f} GiB available"
    limit = memory_limit(cgroup)
    if limit is not None and limit < available:
        available, found = limit, f"{limit / GIB:.1f} GiB, the container's limit, of {total / GIB:.1f}"
    remedy = "A rank takes 2 to 8 GiB: end other processes, raise the limit or start fewer ranks"
    if available < 2 * GIB:
        return fail("memory", found, remedy)
    return ok("memory", found) if available >= 4 * GIB else warn("memory", found, remedy)


def memory_limit(cgroup: Path) -> int | None:
    """Bytes that a control group (v2, else v1) grants; None is no limit."""
    for file in (cgroup / "memory.max", cgroup / "memory" / "memory.limit_in_bytes"):
        try:
            text = file.read_text().strip()
        except OSError:
            continue
        return None if text == "max" else int(text)
    return None


def check_port(port: int) -> Finding:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            why = "taken" if error.errno == errno.EADDRINUSE else error.strerror
            return warn("port", f"{port}: {why}", "Jobs on many nodes that start here need another --master-port")
    return ok("port", f"{port} is free")
