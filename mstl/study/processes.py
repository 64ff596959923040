"""The processes of one node: training, then evaluation and heatmaps; each tied to the study and writing to a log."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress

from mstl.runs import now
from mstl.study.planned import Planned, StudyPlan
from mstl.study.state import Failure, log_of

_TAIL_BYTES = 65_536
_LONGEST = 600  # characters of a failure's reason in study.json; the log has all
_STEPS = {"train": "training", "judge": "evaluation", "leep": "LEEP"}
# A study that is killed outright must not leave its processes: they get SIGTERM then, and trainings save. 1 is
# PR_SET_PDEATHSIG, kept across exec. Not preexec_fn, which is not safe beside the thread that draws the screen.
_TIED = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 15); "
    "os.getppid() == int(sys.argv[1]) or sys.exit(143); os.execv(sys.argv[2], sys.argv[2:])"
)


def words_of(plan: StudyPlan, planned: Planned, step: str, ranks: int) -> list[str]:
    """The command of one of a node's steps (`mstl.study.state.undone`)."""
    node, folder = planned.node, str(plan.out / planned.path)
    source = str(plan.out / plan.nodes[node.parents[0]].path) if node.parents else node.spec.init or "none"
    if step == "judge":
        words = ["mstl.study.judge", "evaluate", folder, ",".join(planned.evaluate), str(node.spec.explain)]
    elif step == "leep":
        words = ["mstl.study.judge", "leep", source, node.network, str(node.seed), str(planned.image_size)]
        words += [str(planned.data.place), node.spec.split, folder]
    else:
        words = ["mstl", "train", *_train_options(plan, planned, source, ranks)]
    return [sys.executable, "-P", "-m", *words]  # a folder here called shards must not hide the package


def _train_options(plan: StudyPlan, planned: Planned, source: str, ranks: int) -> list[str]:
    training = planned.training
    assert training is not None, "only trainings are trained"
    options = {
        "stage": planned.node.spec.stage,
        "ssl": training.settled.ssl,
        "model": planned.node.network,
        "shards": planned.data.place,
        "out": plan.out / planned.path,
        "init-from": source,
        "seed": planned.node.seed,
        "resume": "auto",
        "flavour": plan.study.flavour,
        "ranks": ranks,
    }
    pairs = [(name, value) for name, value in options.items() if value is not None]
    pairs += [("set", word) for word in training.words] + [("waive-leakage", name) for name in planned.waived]
    return [text for name, value in pairs for text in (f"--{name}", str(value))]


def start_process(
    plan: StudyPlan, planned: Planned, words: Sequence[str], more: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """Start a command in a session of its own, its output behind the node's log; `more` joins the environment."""
    file = plan.out / log_of(planned)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("ab") as log:
        log.write(f"{now()} $ {shlex.join(words)}\n".encode())
        log.flush()
        return subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _TIED, str(os.getpid()), *words],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, **more},
        )


def failure_of(plan: StudyPlan, planned: Planned, step: str, code: int, behind: int) -> Failure:
    """Why a command failed: the last error in the log, `behind` so many bytes, else what the exit code says."""
    log = log_of(planned)
    lines: list[str] = []
    with suppress(OSError), (plan.out / log).open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(behind, size - _TAIL_BYTES))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    said = [line.partition("Error: ")[2] for line in lines if line.startswith("Error: ") or "MstlError: " in line]
    ended = f"it was ended by signal {-code}" if code < 0 else f"it ended with exit code {code}"
    if said:
        ended = said[-1]
    elif len(lines) > 1:
        ended = f"{ended}; its last words: {lines[-1]}"
    return Failure(
        what=f"{_STEPS[step]} of {planned.node.id}",
        why=ended[:_LONGEST],
        remedy="See the log; when it is mended, the same mstl run tries again and skips what is finished",
        log=log,
    )


def log_size(plan: StudyPlan, planned: Planned) -> int:
    """Bytes in a node's log."""
    with suppress(OSError):
        return (plan.out / log_of(planned)).stat().st_size
    return 0
