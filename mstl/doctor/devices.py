"""Checks of the GPUs and of the libraries that use them; every import of one happens in a process of its own."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mstl.doctor.findings import Finding, fail, ok, warn

LEAST_DRIVER = {12: 525, 13: 580}  # of a CUDA release, by its major number (CUDA release notes, Linux)
TIMEOUT_SECONDS = 180.0  # of an import on a busy machine and a slow file system

_TORCH = """
import json, torch
cuda = torch.cuda.is_available()
nccl = torch.cuda.nccl.version() if torch.distributed.is_nccl_available() else None
if cuda:
    for device in range(torch.cuda.device_count()):
        torch.ones(2, device=f"cuda:{device}").sum().item()
print(json.dumps({"cuda": torch.version.cuda, "devices": torch.cuda.device_count() if cuda else 0,
                  "nccl": nccl, "bf16": cuda and torch.cuda.is_bf16_supported(),
                  "gloo": torch.distributed.is_gloo_available()}))
"""

_DALI = """
import io, json, sys
import numpy as np
from PIL import Image
from nvidia.dali import fn, pipeline_def, types
buffer = io.BytesIO()
Image.new("RGB", (64, 64), (200, 30, 30)).save(buffer, "JPEG")
encoded = np.frombuffer(buffer.getvalue(), dtype=np.uint8)
gpu = sys.argv[1] == "gpu"
@pipeline_def(batch_size=2, num_threads=1, device_id=0 if gpu else None)
def graph():
    images = fn.external_source(lambda sample: encoded, batch=False)
    return fn.decoders.image(images, device="mixed" if gpu else "cpu", output_type=types.RGB)
pipeline = graph()
pipeline.build()
(images,) = pipeline.run()
pixels = np.array((images.as_cpu() if gpu else images).at(0))
print(json.dumps({"mean": pixels.mean(axis=(0, 1)).tolist()}))
"""

_DEEPSPEED = "import json, deepspeed; print(json.dumps({'version': deepspeed.__version__}))"


@dataclass(frozen=True, slots=True)
class Gpu:
    """A line of nvidia-smi; memory in MiB."""

    name: str
    memory: int
    used: int
    driver: str


def read_gpus() -> list[Gpu] | str:
    """The GPUs as nvidia-smi tells them, or why it does not; the list is empty where there are none."""
    tool = shutil.which("nvidia-smi")
    nodes = list(Path("/dev").glob("nvidia[0-9]*"))
    if tool is None:
        return "there are GPUs in /dev, but no nvidia-smi" if nodes else []
    query = [tool, "--query-gpu=name,memory.total,memory.used,driver_version", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"nvidia-smi: {error}"
    lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    if done.returncode != 0:
        return f"nvidia-smi: {(lines or done.stderr.strip().splitlines() or ['it failed'])[-1]}"
    gpus = []
    for line in lines:
        words = [word.strip() for word in line.split(",")]
        if len(words) != 4 or not (words[1].isdigit() and words[2].isdigit()):
            return f"nvidia-smi says '{line}'"
        gpus.append(Gpu(words[0], int(words[1]), int(words[2]), words[3]))
    return gpus


def torch_cuda() -> str | None:
    """The CUDA release that torch was built with, read from its version file without importing it."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    file = Path(spec.origin).parent / "version.py"
    found = re.search(r"^cuda\b[^=]*=\s*'([^']+)'", file.read_text(), re.MULTILINE) if file.exists() else None
    return None if found is None else found[1]


def check_devices(python: str = sys.executable) -> Iterator[Finding]:
    """Every check of this module; the imports take some seconds."""
    gpus = read_gpus()
    yield check_gpus(gpus)
    count = len(gpus) if isinstance(gpus, list) else 0
    if count and isinstance(gpus, list):
        yield check_driver(gpus, torch_cuda())
        yield check_gpu_memory(gpus)
    yield check_cuda_toolkit(torch_cuda())
    yield from check_torch(count, python)
    yield check_dali("cpu", python)
    if count:
        yield check_dali("gpu", python)
    yield check_deepspeed(python)


def check_gpus(gpus: list[Gpu] | str) -> Finding:
    if isinstance(gpus, str):
        return fail("GPUs", gpus, "Install NVIDIA's driver and its tools, or start the container with --gpus all")
    if not gpus:
        return warn("GPUs", "none", "Training on the CPU serves trials only")
    names = sorted({f"{gpu.name}, {gpu.memory / 1024:.0f} GiB" for gpu in gpus})
    found = f"{len(gpus)} × {' and '.join(names)}"
    if len(names) > 1:
        return warn("GPUs", found, "The slowest sets the pace: choose equal ones by CUDA_VISIBLE_DEVICES")
    return ok("GPUs", found)


def check_driver(gpus: Sequence[Gpu], cuda: str | None) -> Finding:
    driver = gpus[0].driver
    least = LEAST_DRIVER.get(int(cuda.split(".")[0])) if cuda else None
    if least is not None and int(driver.split(".")[0]) < least:
        return fail("driver", f"{driver}; torch's CUDA {cuda} needs {least}", f"Install driver {least} or newer")
    return ok("driver", driver + (f" for torch's CUDA {cuda}" if cuda else ""))


def check_gpu_memory(gpus: Sequence[Gpu]) -> Finding:
    busy = [f"GPU {number} {gpu.used:,} of {gpu.memory:,} MiB" for number, gpu in enumerate(gpus)
            if gpu.used > 0.1 * gpu.memory]  # fmt: skip
    if busy:
        return warn("GPU memory", "in use: " + "; ".join(busy), "End the processes that nvidia-smi lists")
    return ok("GPU memory", "free")


def check_cuda_toolkit(cuda: str | None) -> Finding:
    """torch and DALI bring their own CUDA; the system's is of interest to those who build extensions."""
    if cuda is None:
        return warn("CUDA", "torch was built without it", "Install torch's CUDA build where there are GPUs")
    compiler = shutil.which("nvcc")
    return ok("CUDA", f"{cuda} (torch's own); the system's: {compiler or 'none'} (not needed)")


def run_python(python: str, program: str, *words: str) -> dict[str, Any] | str:
    """Run a program that prints an object as JSON in its last line; returns it, or the last line of what went wrong."""
    try:
        done = subprocess.run([python, "-c", program, *words], capture_output=True, text=True, timeout=TIMEOUT_SECONDS,
                              check=False)  # fmt: skip
        if done.returncode == 0:
            found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
            return found
        return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    except subprocess.TimeoutExpired:
        return f"not done within {TIMEOUT_SECONDS:.0f} s"
    except (OSError, ValueError, IndexError) as error:
        return str(error)


def check_torch(gpus: int, python: str) -> Iterator[Finding]:
    """torch loads, computes on every GPU, and can talk between ranks."""
    found = run_python(python, _TORCH)
    if isinstance(found, str):
        yield fail("torch runs", found, "Install MSTL again: make setup")
        return
    if found["devices"] < gpus:
        yield fail("torch runs", f"it sees {found['devices']} of {gpus} GPUs",
                   "Look at CUDA_VISIBLE_DEVICES and at driver and CUDA above")  # fmt: skip
    else:
        kind = "bf16" if found["bf16"] else "fp16"
        yield ok("torch runs", f"on {found['devices']} GPUs, mixed precision in {kind}" if gpus else "on the CPU")
    version = ".".join(map(str, found["nccl"])) if found["nccl"] else None
    if version is None and gpus:
        yield fail("NCCL", "torch was built without it", "Install torch's CUDA build")
    elif not found["gloo"] and not gpus:
        yield fail("gloo", "torch was built without it", "Install torch from its own wheels")
    else:
        yield ok("NCCL", version or "none; ranks on the CPU talk through gloo")


def check_dali(device: str, python: str) -> Finding:
    """DALI decodes a JPEG, on the CPU or as training on a GPU does (device="mixed"), to the colour that was put in."""
    name = f"DALI decodes on the {device.upper()}"
    found = run_python(python, _DALI, device)
    if isinstance(found, str):
        remedy = "Install MSTL again: make setup" if device == "cpu" else "Look at the driver above; DALI needs CUDA 13"
        return fail(name, found, remedy)
    if any(abs(got - put) > 8 for got, put in zip(found["mean"], (200, 30, 30), strict=True)):
        return fail(name, f"to another colour: {found['mean']}", "Install DALI in the version of constraints.txt")
    return ok(name, "a JPEG, right")


def check_deepspeed(python: str) -> Finding:
    found = run_python(python, _DEEPSPEED)
    if isinstance(found, str):
        return fail("DeepSpeed loads", found, "Install MSTL again: make setup")
    return ok("DeepSpeed loads", str(found["version"]))
