"""Real trainings over two nodes: every way to start one, a node that dies, a job that is preempted; and no hostfile."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster_shims import write_pdsh, write_slurm
from node_lab import INTERFACE, Node, kill_tree, start_on, two_nodes

from mstl.runs import open_run, read_metrics

CLUSTER = Path(__file__).parents[2] / "launch" / "cluster"
BIN = Path(sys.executable).parent
SOURCES = {"stl_n": "imagenet", "stl_m": "covidx", "sstl_m": "covid19-ct", "finetune": "covid19-ct"}
TIMED = ("images_per_second", "data_wait")
FIELDS = ("data.image_size=32", "data.batch_size=8", "data.workers=1", "optim.lr=0.01", "checkpoint.every_steps=3")
EPOCHS = 6  # of three steps: of a job that is to be disturbed, much is left when its first checkpoint appears
PATIENCE = 1200.0  # seconds that a job of some steps may take on a busy machine
CUT_TIMEOUT = "60"  # seconds: more than one rank can be behind the other on a busy machine


@dataclass(frozen=True, slots=True)
class Lab:
    """Two nodes, the folder they share, and the finished runs of all four stages in it."""

    nodes: tuple[Node, Node]
    work: Path
    sets: Path

    @property
    def hostfile(self) -> Path:
        return self.work / "hostfile"

    def run(self, name: str) -> Path:
        return self.work / "runs" / name

    def words(self, stage: str, name: str, epochs: int = 1) -> list[str]:
        """The options of a small job, which takes its first weights from the stage before it in the same folder."""
        fields = [word for field in (*FIELDS, f"optim.epochs={epochs}") for word in ("--set", field)]
        shards = str(self.sets / SOURCES[stage])
        return [
            "--stage",
            stage,
            "--model",
            "resnet14-attn1",
            "--shards",
            shards,
            "--out",
            str(self.run(name)),
            *fields,
        ]

    def environment(self, **more: str) -> dict[str, str]:
        return {
            "OMP_NUM_THREADS": "1",
            "DS_ACCELERATOR": "cpu",
            "CUDA_VISIBLE_DEVICES": "",
            "GLOO_SOCKET_IFNAME": INTERFACE,
            "PATH": f"{self.work / 'bin'}:{BIN}:{os.environ['PATH']}",
            **more,
        }

    def start(self, stage: str, name: str, epochs: int, **environment: str) -> list[subprocess.Popen[str]]:
        """The launcher by hand, one on each node."""
        script = find_spec("launch.train")
        assert script is not None and script.origin is not None
        started = []
        for rank, node in enumerate(self.nodes):
            words = [str(BIN / "deepspeed"), "--hostfile", str(self.hostfile), "--no_ssh", "--node_rank", str(rank)]
            words += ["--master_addr", self.nodes[0].address, "--master_port", "29600", "--no_local_rank"]
            words += [script.origin, *self.words(stage, name, epochs)]
            started.append(start_on(node, words, self.environment(**environment)))
        return started


def ended(processes: Sequence[subprocess.Popen[str]], code: int | None = 0) -> list[str]:
    """What each has said by its end; `code` None accepts any."""
    try:
        outputs = [process.communicate(timeout=PATIENCE)[0] for process in processes]
    finally:
        for process in processes:
            kill_tree(process)
    for process in processes:
        assert code is None or process.returncode == code, "\n".join(outputs)
    return outputs


def checkpoints(run: Path) -> set[str]:
    return {folder.name for folder in run.glob("checkpoints/step-*")}


def wait_for_a_checkpoint(run: Path, processes: Sequence[subprocess.Popen[str]], *before: str) -> None:
    """Until there is one that was not there before."""
    deadline = time.monotonic() + PATIENCE
    while not checkpoints(run) - set(before):
        if any(process.poll() is not None for process in processes):
            pytest.fail("ended before its first checkpoint:\n" + "\n".join(ended(processes, code=None)))
        assert time.monotonic() < deadline, "no progress"
        time.sleep(0.005)


def one_cause(output: str) -> str:
    """The line that says why a job has ended; there is no other, and no traceback."""
    errors = [line for line in output.splitlines() if line.startswith("Error")]
    assert len(errors) == 1 and "Traceback" not in output, output
    return errors[0]


def untimed(run: Path) -> list[dict[str, Any]]:
    return [{name: value for name, value in line.items() if name not in TIMED} for line in read_metrics(run)]


@pytest.fixture(scope="module")
def lab(sample_sets: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with two_nodes() as nodes:
        work = tmp_path_factory.mktemp("shared")
        (work / "bin").mkdir()
        made = Lab(nodes=nodes, work=work, sets=sample_sets)
        made.hostfile.write_text("".join(f"{node.address} slots=1\n" for node in nodes))
        yield made


@pytest.fixture(scope="module")
def stages(lab: Lab) -> Lab:
    """The chain, each stage started in another way that `launch/cluster` or docs/cluster.md tells of."""
    ended(pytorchjob(lab, "stl_n"))
    ended([pdsh(lab, "stl_m")])
    ended(lab.start("sstl_m", "sstl_m", EPOCHS))
    ended(kubernetes_job(lab, "finetune", EPOCHS))
    return lab


def pytorchjob(lab: Lab, stage: str) -> list[subprocess.Popen[str]]:
    """The command of the PyTorchJob, in the environment that the operator gives its pods."""
    (manifest,) = manifests("pytorchjob.yaml")
    started = []
    for rank, (node, role) in enumerate(zip(lab.nodes, ("Master", "Worker"), strict=True)):
        (container,) = manifest["spec"]["pytorchReplicaSpecs"][role]["template"]["spec"]["containers"]
        told = {"PET_NNODES": "2", "PET_NODE_RANK": str(rank), "PET_NPROC_PER_NODE": "1"}
        told |= {"PET_MASTER_ADDR": lab.nodes[0].address, "PET_MASTER_PORT": "23456"}
        started.append(start_on(node, container_command(container), pod_environment(lab, container, stage, 1, told)))
    return started


def kubernetes_job(lab: Lab, stage: str, epochs: int) -> list[subprocess.Popen[str]]:
    """The command of the indexed Job, in the environment that its pods have; names become the nodes' addresses."""
    _, hosts, job = manifests("kubernetes-job.yaml")
    (container,) = job["spec"]["template"]["spec"]["containers"]
    text = hosts["data"]["hostfile"].replace("slots=8", "slots=1")
    started = []
    for rank, node in enumerate(lab.nodes):
        text = text.replace(f"mstl-{rank}.mstl", node.address)
    (lab.work / "hostfile-of-job").write_text(text)
    for rank, node in enumerate(lab.nodes):
        command = [word.replace("/etc/mstl/hostfile", str(lab.work / "hostfile-of-job"))
                   for word in container_command(container)]  # fmt: skip
        told = {"JOB_COMPLETION_INDEX": str(rank)}
        started.append(start_on(node, command, pod_environment(lab, container, stage, epochs, told)))
    return started


def manifests(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((CLUSTER / name).read_text()))


def container_command(container: dict[str, Any]) -> list[str]:
    return [*container["command"], *container["args"]]


def pod_environment(
    lab: Lab, container: dict[str, Any], stage: str, epochs: int, told: dict[str, str]
) -> dict[str, str]:
    words = dict(zip(*[iter(lab.words(stage, stage, epochs)[:8])] * 2, strict=True))
    ours = {"STAGE": words["--stage"], "SHARDS": words["--shards"], "RUN": words["--out"]}
    ours["OPTIONS"] = shlex.join(["--model", words["--model"], *lab.words(stage, stage, epochs)[8:]])
    assert {entry["name"] for entry in container["env"]} == ours.keys()
    return lab.environment(**ours, **told)


def pdsh(lab: Lab, stage: str) -> subprocess.Popen[str]:
    """One `mstl train` on a login node, which starts both through a pdsh that enters their namespaces."""
    write_pdsh(lab.work / "bin", lab.nodes, lab.environment())
    words = [str(BIN / "mstl"), "train", "--hostfile", str(lab.hostfile), *lab.words(stage, stage)]
    return start_on(None, words, lab.environment())


@pytest.mark.long
def test_every_stage_trains_over_two_nodes(stages: Lab) -> None:
    parents = {"stl_n": None, "stl_m": "stl_n", "sstl_m": "stl_m", "finetune": "sstl_m"}
    for stage, parent in parents.items():
        record = open_run(stages.run(stage))
        assert (record.status, record.body["world_size"]) == ("finished", 2)
        found = record.body["parent"]
        assert (None if found is None else found["path"]) == (None if parent is None else str(stages.run(parent)))
        steps = [line["step"] for line in read_metrics(stages.run(stage)) if "split" not in line]
        assert steps == list(range(1, len(steps) + 1)) and len(steps) >= 2
        assert len(list(stages.run(stage).glob("checkpoints/step-*/rank-*.pt"))) % 2 == 0


@pytest.mark.long
def test_a_lost_cable_and_a_dead_node_end_the_job_which_goes_on_as_if_nothing_had_happened(stages: Lab) -> None:
    broken = stages.run("sstl_m-broken")
    processes = stages.start("sstl_m", broken.name, EPOCHS, MSTL_GROUP_TIMEOUT=CUT_TIMEOUT)
    wait_for_a_checkpoint(broken, processes)
    stages.nodes[1].ip("link", "set", INTERFACE, "down")
    try:
        outputs = ended(processes, code=None)  # both, though neither hears of the other's end
    finally:
        stages.nodes[1].ip("link", "set", INTERFACE, "up")
    assert all(process.returncode > 0 for process in processes), outputs
    for output in outputs:
        one_cause(output)

    before = checkpoints(broken)
    processes = stages.start("sstl_m", broken.name, EPOCHS, MSTL_GROUP_TIMEOUT="7200")
    wait_for_a_checkpoint(broken, processes, *before)
    kill_tree(processes[1])
    (output,) = ended(processes[:1], code=None)  # long before an exchange would time out
    assert processes[0].returncode > 0
    assert "continues behind step" in output and "rank" in one_cause(output)

    first, _ = ended(stages.start("sstl_m", broken.name, EPOCHS))
    assert "continues behind step" in first
    assert untimed(broken) == untimed(stages.run("sstl_m"))
    weights = [(run / "weights.safetensors").read_bytes() for run in (broken, stages.run("sstl_m"))]
    assert weights[0] == weights[1]


@pytest.mark.long
def test_slurm_stops_the_job_at_the_time_limit_and_requeues_it(stages: Lab) -> None:
    slurm = write_slurm(stages.work / "bin", stages.nodes)
    run = stages.run("finetune-slurm")
    words = ["bash", str(CLUSTER / "slurm.sbatch"), *stages.words("finetune", run.name, EPOCHS)]
    words += ["--init-from", str(stages.run("sstl_m"))]
    told = {"SLURM_JOB_ID": "4242", "SLURM_JOB_NODELIST": "node[0-1]", "SLURM_GPUS_ON_NODE": "1"}
    environment = stages.environment(**told, SLURM_SUBMIT_DIR=str(stages.work), MSTL=str(BIN / "mstl"))
    script = start_on(None, words, environment)
    wait_for_a_checkpoint(run, [script])
    script.send_signal(10)  # SIGUSR1, to the script alone, as --signal=B:USR1@300 asks for
    (output,) = ended([script], code=143)
    assert open_run(run).status == "interrupted", output
    assert slurm.requeued() == ["4242"]
    (output,) = ended([start_on(None, words, environment)])
    assert "continues behind step" in output
    assert slurm.requeued() == ["4242"]
    assert untimed(run) == untimed(stages.run("finetune"))
    assert not list(stages.work.glob(".mstl-hostfile-*"))
    assert json.loads((run / "run.json").read_text())["world_size"] == 2
