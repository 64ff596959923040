"""Worker processes: results in order, errors whole, a dead worker reported, and nothing left running."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shards.errors import MstlError
from shards.parallel import count, ordered_map
from shards.tally import Counts


def _work(job):
    if job == "refuse":
        raise MstlError("job", why="it was asked to", remedy="Do not ask")
    if job == "die":
        os._exit(3)
    return job, os.getpid()


def test_workers_pass_results_in_order_and_errors_whole():
    results = list(ordered_map(_work, range(30), workers=2))
    assert [job for job, _ in results] == list(range(30))
    assert os.getpid() not in {pid for _, pid in results}
    with pytest.raises(MstlError, match=r"^job: it was asked to\. Do not ask$"):
        list(ordered_map(_work, [1, "refuse", 2], workers=2))
    with pytest.raises(MstlError, match="a worker process died"):
        list(ordered_map(_work, [1, "die", 2], workers=2))


def _mark(folder):
    (Path(folder) / str(os.getpid())).touch()
    return folder


@pytest.mark.parametrize("workers", [1, 2])
def test_few_jobs_are_taken_ahead_and_closing_ends_the_workers(tmp_path, workers):
    taken = []

    def jobs():
        for number in range(1000):
            taken.append(number)
            yield str(tmp_path)

    results = ordered_map(_mark, jobs(), workers=workers)
    next(results)
    assert len(taken) <= 8
    results.close()
    pids = [int(path.name) for path in tmp_path.iterdir()]
    assert len(pids) >= 1 and (workers > 1 or pids == [os.getpid()])
    for pid in pids:
        assert pid == os.getpid() or not Path(f"/proc/{pid}").exists()


class Seen:
    """Progress that adds up what it is shown."""

    def __init__(self):
        self.totals = [0, 0, 0, 0]

    def start(self, total, what):
        raise AssertionError("the caller starts it")

    def advance(self, n=1, *, size_bytes=0, refused=0):
        for at, value in enumerate((n, size_bytes, refused)):
            self.totals[at] += value

    def skip(self, n):
        self.totals[3] += n


def _counting(job):
    for _ in range(3):
        count(Counts(images=2, size_bytes=10 * job, refused=job % 2))
    count(Counts(skipped=5))
    return job


@pytest.mark.parametrize("workers", [1, 2])
def test_what_jobs_count_is_shown(workers):
    seen = Seen()
    assert list(ordered_map(_counting, range(10), workers=workers, progress=seen)) == list(range(10))
    assert seen.totals == [60, 30 * 45, 15, 50]
    _counting(1)  # outside of a map nobody is told
    assert seen.totals[0] == 60


def _endless(job):
    path = Path(job) / str(os.getpid())
    path.touch()
    while True:
        count(Counts(images=1))
        time.sleep(0.01)


def test_jobs_that_nobody_waits_for_end_at_their_next_count(tmp_path):
    class Impatient(Seen):
        def advance(self, n=1, *, size_bytes=0, refused=0):
            if len(list(tmp_path.iterdir())) == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(ordered_map(_endless, [str(tmp_path)] * 2, workers=2, progress=Impatient()))
    assert not any(Path(f"/proc/{path.name}").exists() for path in tmp_path.iterdir())


SCRIPT = """
import sys
from test_parallel import _mark
from shards.parallel import ordered_map
if __name__ == "__main__":
    next(ordered_map(_mark, [sys.argv[1]] * 50, workers=2))
    print("working", flush=True)
    sys.stdin.read()
"""


def test_workers_do_not_outlive_a_killed_parent(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "marks").mkdir()
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])
    with subprocess.Popen(
        [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "marks")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path},
    ) as parent:  # fmt: skip
        assert parent.stdout.readline() == b"working\n"
        parent.send_signal(signal.SIGKILL)
    pids = [int(mark.name) for mark in (tmp_path / "marks").iterdir()]
    assert pids
    for _ in range(600):
        if not any(Path(f"/proc/{pid}").exists() for pid in pids):
            return
        time.sleep(0.1)
    pytest.fail(f"still running: {pids}")
