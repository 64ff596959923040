"""The examples of `launch/cluster`: shell that parses, manifests that say what they mean, one hostfile."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from mstl.cli.train import command as train
from mstl.hostfile import read_hostfile

CLUSTER = Path(__file__).parents[2] / "launch" / "cluster"
POD = {"subdomain", "restartPolicy", "terminationGracePeriodSeconds", "containers", "volumes"}
CONTAINER = {"name", "image", "workingDir", "command", "args", "env", "resources", "volumeMounts"}


def manifests(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((CLUSTER / name).read_text()))


def pods(name: str) -> list[dict[str, Any]]:
    if name == "kubernetes-job.yaml":
        return [manifests(name)[2]["spec"]["template"]["spec"]]
    return [replica["template"]["spec"] for replica in manifests(name)[0]["spec"]["pytorchReplicaSpecs"].values()]


def test_the_hostfile_is_one() -> None:
    assert [(host.name, host.slots) for host in read_hostfile(CLUSTER / "hostfile")] == [("node0", 8), ("node1", 8)]


def test_the_slurm_script_parses() -> None:
    script = CLUSTER / "slurm.sbatch"
    subprocess.run(["bash", "-n", str(script)], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", str(script)], check=True)
    asked = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?$", script.read_text(), re.MULTILINE))
    assert asked["ntasks-per-node"] == "1" and asked["signal"].startswith("B:USR1@") and "requeue" in asked
    # Anything above the first command; sbatch reads no further.
    head = script.read_text().split("\nset -uo pipefail")[0]
    assert head.count("#SBATCH") == len(asked)


@pytest.mark.parametrize("name", ["kubernetes-job.yaml", "pytorchjob.yaml"])
def test_pods_of_a_manifest(name: str) -> None:
    for pod in pods(name):
        assert pod.keys() <= POD
        (container,) = pod["containers"]
        assert container.keys() == CONTAINER
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        (shm,) = [volume for volume in pod["volumes"] if volume["name"] == mounts["/dev/shm"]]
        assert shm["emptyDir"]["medium"] == "Memory"
        (line,) = container["args"]
        assert container["command"] == ["bash", "-c"] and line.startswith("exec ")
        used = set(re.findall(r"\$([A-Z]+)\b", line))
        assert used == {entry["name"] for entry in container["env"]}
        known = {option for parameter in train.params for option in parameter.opts}
        assert {word for word in shlex.split(line) if word.startswith("--")} <= known
        assert pod["terminationGracePeriodSeconds"] >= 60 and container["resources"]["limits"]["nvidia.com/gpu"] == 8


def test_the_job_its_service_and_its_hostfile_name_the_same_pods() -> None:
    service, hosts, job = manifests("kubernetes-job.yaml")
    assert [part["kind"] for part in (service, hosts, job)] == ["Service", "ConfigMap", "Job"]
    assert service["spec"]["clusterIP"] == "None" and service["spec"]["publishNotReadyAddresses"] is True
    spec, name = job["spec"], job["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": name}
    assert spec["completionMode"] == "Indexed" and spec["completions"] == spec["parallelism"]
    pod = spec["template"]["spec"]
    assert pod["subdomain"] == service["metadata"]["name"] and pod["restartPolicy"] == "Never"
    lines = hosts["data"]["hostfile"].splitlines()
    assert lines == [f"{name}-{index}.{pod['subdomain']} slots=8" for index in range(spec["completions"])]
    (mounted,) = [volume for volume in pod["volumes"] if "configMap" in volume]
    assert mounted["configMap"]["name"] == hosts["metadata"]["name"]
    for rule in spec["podFailurePolicy"]["rules"]:
        assert rule["action"] in ("FailJob", "Ignore")
        named = rule.get("onExitCodes", {}).get("containerName", pod["containers"][0]["name"])
        assert named == pod["containers"][0]["name"]


def test_the_pytorchjob_has_what_the_operator_looks_for() -> None:
    (job,) = manifests("pytorchjob.yaml")
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    replicas = job["spec"]["pytorchReplicaSpecs"]
    assert replicas.keys() == {"Master", "Worker"} and replicas["Master"]["replicas"] == 1
    assert isinstance(job["spec"]["nprocPerNode"], str)
    for replica in replicas.values():
        (container,) = replica["template"]["spec"]["containers"]
        assert container["name"] == "pytorch"
        assert str(container["resources"]["limits"]["nvidia.com/gpu"]) == job["spec"]["nprocPerNode"]
