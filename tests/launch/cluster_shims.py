"""Stand-ins for pdsh and Slurm's commands that do their work in the namespaces of node_lab."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from node_lab import Node

_PDSH = """\
# pdsh -S -f FANOUT -w HOST,HOST WORDS: the words go to a shell on every host at once, %n being the host's number.
words = sys.argv[1:]
at = words.index("-w")
assert words[:at] == ["-S", "-f", "1024"], words
hosts, command = words[at + 1].split(","), " ".join(words[at + 2:])
# A remote shell has the user's environment, not that of whoever started pdsh.
running = [subprocess.Popen([*enter(host), "bash", "-c", command.replace("%n", str(number))], env=REMOTE)
           for number, host in enumerate(hosts)]
sys.exit(max(process.wait() for process in running))
"""

_SCONTROL = """\
if sys.argv[1:3] == ["show", "hostnames"]:
    print("\\n".join(NODES))
elif sys.argv[1] == "requeue":
    with open(STATE / "requeued", "a") as file:
        file.write(sys.argv[2] + "\\n")
else:
    sys.exit(f"scontrol {sys.argv[1:]}")
"""

_SRUN = """\
# One task on each node; the step lasts until all have ended, and returns the highest code.
words = sys.argv[1:]
while words[0].startswith("--"):
    words.pop(0)
running = [subprocess.Popen([*enter(host), *words], env={**os.environ, "SLURM_NODEID": str(number)})
           for number, host in enumerate(NODES)]
(STATE / "tasks").write_text(" ".join(str(process.pid) for process in running))
codes = []
for process in running:
    codes.append(process.wait())
    told = STATE / f"told-{process.pid}"
    for left in map(int, told.read_text().split() if told.exists() else []):
        with contextlib.suppress(ProcessLookupError):
            os.kill(left, signal.SIGKILL)  # as slurmstepd does with what a task leaves
sys.exit(max(codes))
"""

_SCANCEL = """\
# Every process of the step gets the signal, as where Slurm tracks them by cgroup.
assert sys.argv[1] == "--signal=TERM" and sys.argv[2] == os.environ["SLURM_JOB_ID"], sys.argv
import psutil
for task in map(int, (STATE / "tasks").read_text().split()):
    processes = [psutil.Process(task), *psutil.Process(task).children(recursive=True)]
    (STATE / f"told-{task}").write_text(" ".join(str(process.pid) for process in processes))
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
"""


@dataclass(frozen=True, slots=True)
class Slurm:
    """What the stand-ins were asked for."""

    state: Path

    def requeued(self) -> list[str]:
        file = self.state / "requeued"
        return file.read_text().split() if file.exists() else []


def write_pdsh(folder: Path, nodes: Sequence[Node], remote: Mapping[str, str]) -> None:
    """pdsh for these nodes, whose login shells have the environment `remote`."""
    _write(folder / "pdsh", _PDSH, nodes, folder, remote)


def write_slurm(folder: Path, nodes: Sequence[Node]) -> Slurm:
    """scontrol, srun and scancel for a job on these nodes."""
    for name, body in (("scontrol", _SCONTROL), ("srun", _SRUN), ("scancel", _SCANCEL)):
        _write(folder / name, body, nodes, folder, {})
    return Slurm(folder)


def _write(file: Path, body: str, nodes: Sequence[Node], state: Path, remote: Mapping[str, str]) -> None:
    enter = {node.address: node.enter([]) for node in nodes}
    head = (
        f"#!{sys.executable}\nimport contextlib, os, signal, subprocess, sys\nfrom pathlib import Path\n"
        f"NODES = {enter!r}\nenter = NODES.__getitem__\nSTATE = Path({str(state)!r})\nREMOTE = {dict(remote)!r}\n"
    )
    file.write_text(head + body)
    file.chmod(0o755)
