"""What a result was measured on and with, and how: sides in turn, in fresh processes, by wall and CPU time."""

from __future__ import annotations

import os
import platform
import re
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from rich.table import Table

from shards.errors import MstlError
from shards.progress import Progress


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One run of one side: images delivered, wall time, and CPU time of its whole process tree."""

    images: int
    seconds: float
    cpu_seconds: float

    @property
    def rates(self) -> dict[str, float]:
        """Images a second and images a CPU-second."""
        return {
            "images_per_second": self.images / self.seconds,
            "images_per_cpu_second": self.images / self.cpu_seconds,
        }


def hardware() -> dict[str, Any]:
    """CPU model, its cores, the cores this process may use, memory in GiB, and how busy the machine is right now."""
    named = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return {
        "cpu": named.group(1).strip() if named else platform.machine(),
        "cores": os.cpu_count(),
        "cores_allowed": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load_average_1_minute": round(os.getloadavg()[0], 2),
    }


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Python, kernel and these distributions; raises PackageNotFoundError where one is missing."""
    return {
        "python": platform.python_version(),
        "kernel": f"{platform.system()} {platform.release()}",
        **{name: metadata.version(name) for name in packages},
    }


def tree_cpu_seconds(root: int) -> float:
    """CPU time, user and system, of a process and all its descendants since they began, to a clock tick (10 ms).

    Descendants that have ended count through the parent that waited for them, so the figure never falls.
    """
    ticks: dict[int, int] = {}
    children: dict[int, list[int]] = defaultdict(list)
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended while we looked
        fields = text.rpartition(")")[2].split()  # behind the name, which may hold anything
        pid, parent = int(stat.parent.name), int(fields[1])
        ticks[pid] = sum(int(field) for field in fields[11:15])  # utime, stime, and those of children waited for
        children[parent].append(pid)
    total, waiting = 0, [root]
    while waiting:
        pid = waiting.pop()
        total += ticks.get(pid, 0)
        waiting += children[pid]
    return total / os.sysconf("SC_CLK_TCK")


def require_writable(out: Path) -> None:
    """Make the folder of a result before the measurement; raises MstlError where the result cannot be written."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        writable = os.access(out.parent, os.W_OK) and not out.is_dir()
    except OSError:
        writable = False
    if not writable:
        raise MstlError(f"--out {out}", why="no file can be written there", remedy="Name a file in a folder of yours")


def alternate(
    measure: Callable[[str], Run], sides: Sequence[str], repeats: int, progress: Progress
) -> dict[str, list[Run]]:
    """Every side in turn, `repeats` times, each run in a fresh process: what slows the machine slows all of them."""
    runs: dict[str, list[Run]] = {side: [] for side in sides}
    progress.start(repeats * len(sides), "measuring")
    for _ in range(repeats):
        for side, done in runs.items():
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                done.append(process.submit(measure, side).result())
            progress.advance()
    return runs


def summary(runs: Mapping[str, Sequence[Run]], ours: str) -> dict[str, Any]:
    """Every run of every side with its rates, their medians, and for each peer our median divided by its own."""
    medians = {
        side: {name: statistics.median(run.rates[name] for run in done) for name in done[0].rates}
        for side, done in runs.items()
    }
    return {
        "sides": {
            side: {"runs": [{**asdict(run), **run.rates} for run in done], "median": medians[side]}
            for side, done in runs.items()
        },
        "ratios": {
            side: {name: medians[ours][name] / value for name, value in median.items()}
            for side, median in medians.items()
            if side != ours
        },
    }


def rates_table(summarised: Mapping[str, Any], titles: Mapping[str, str]) -> Table:
    """A summary as a table, one row a side under its title: median rates with least and most, ours divided by it."""
    table = Table()
    table.add_column("")
    for title in ("images/s", "images/CPU-s", "ours/peer, images/s", "ours/peer, images/CPU-s"):
        table.add_column(title, justify="right")
    for side, measured in summarised["sides"].items():
        cells = []
        for name, median in measured["median"].items():
            values = [run[name] for run in measured["runs"]]
            cells.append(f"{median:,.0f} ({min(values):,.0f} to {max(values):,.0f})")
        table.add_row(titles[side], *cells, *(f"{ratio:.2f}" for ratio in summarised["ratios"].get(side, {}).values()))
    return table
