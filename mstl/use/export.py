"""A run's network for other programs, written only when it says there what it says here."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mstl.runs import now, software
from mstl.study.checks import check_output
from mstl.use.formats import INPUT, OUTPUT, Made, as_onnx, as_safetensors, as_torchscript, need_onnx
from mstl.use.network import NOT_A_DEVICE, Network, open_network
from pipelines.loader import Loader
from pipelines.recipe import Inputs
from shards.cache import CacheOptions, local_set
from shards.errors import MstlError
from shards.files import write_atomic
from shards.progress import QUIET, Progress
from shards.verify import check_content

SCHEMA_VERSION = 1
LIMIT = 1e-4  # of a logit, as a share of the largest one where that is above 1 (ours): kernels add in other orders
REAL_IMAGES = 16
_NOISE = (1, 3, 8)  # images of the batches of noise: more than one size, so that a fixed one would be noticed
_PREFERRED = ("test", "val", "train")  # the split that real images are taken from: the first there is
Forward = Callable[[Tensor], NDArray[np.float32]]

FORMATS: dict[str, Callable[[Network, Tensor], Made]] = {
    "onnx": as_onnx,
    "torchscript": as_torchscript,
    "safetensors": as_safetensors,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Checked:
    """How far the exported network was from the run's: the largest difference of a logit on noise and on real images.

    limit: what it had to keep, as a share of the largest logit where that is above 1. real: None where there were
    no real images, because of `why`.
    """

    limit: float
    noise: float
    noise_images: int
    real: float | None
    real_images: int
    why: str

    def as_json(self) -> dict[str, Any]:
        return {
            "what": "largest absolute difference of a logit from the run's network, in float32 on the CPU",
            "limit": self.limit,
            "limit_is": "of the largest logit of a batch where that is above 1, else of 1",
            "noise": self.noise,
            "noise_images": self.noise_images,
            "real": self.real,
            "real_images": self.real_images,
            "why_no_real_images": self.why,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """Files written, and how the network in them was checked."""

    files: tuple[Path, ...]
    checked: Checked


def export_run(
    run: Path, *, form: str, out: Path, cache: CacheOptions | None = None, progress: Progress = QUIET
) -> Exported:
    """Write a run's classifier: normalised image [B, 3, H, W] float32 → logits [B, classes], for any B.

    form: one of FORMATS. What a user must know (how images are prepared, classes, operating point, digest, this check)
    stands in the metadata of ONNX and safetensors, and beside TorchScript in OUT.json. The network is run on noise and,
    where the run's shards are at hand, on real images. Raises MstlError, and writes nothing, when a logit differs by
    more than LIMIT; when a library is missing; as `open_network` does.
    """
    check_output(out)
    if form == "onnx":
        need_onnx()
    network = open_network(run, device=torch.device("cpu"), cache=cache)
    real, why = _real_images(network, cache or CacheOptions(), progress)
    side = network.inputs.image_size
    made = FORMATS[form](network, torch.zeros(2, 3, side, side))  # an example of one image would make 1 a special case
    about = describe(network)
    # Safetensors hold weights alone: what runs them is built from the metadata, as a reader would.
    checked = _check(network, made.open(about), real, why, what=f"--format {form} of {run}")
    about["checked"] = checked.as_json()
    out.parent.mkdir(parents=True, exist_ok=True)
    files = [out]
    write_atomic(out, made.write(about))
    if not made.holds_metadata:
        beside = out.with_name(out.name + ".json")
        write_atomic(beside, (json.dumps(about, indent=1, ensure_ascii=False) + "\n").encode())
        files.append(beside)
    return Exported(files=tuple(files), checked=checked)


def describe(network: Network) -> dict[str, Any]:
    """What a program that runs the network must know; plain JSON values."""
    record, chosen = network.record, network.operating
    model = record.recipe.get("model", {})
    return {
        "schema": SCHEMA_VERSION,
        "notice": NOT_A_DEVICE,
        "model": record.model,
        "attention": {name: model[name] for name in ("attention_scale", "attention_pool") if name in model},
        "stage": record.title,
        "weights_sha256": network.weights_sha256,
        "shards_digest": record.shards_digest,
        "classes": record.classes,
        "positive": None if network.positive is None else record.classes[network.positive],
        "operating": {
            "threshold": network.threshold,
            "of": "the probability that softmax gives the positive class, without the temperature",
            "chosen": None if chosen is None else chosen.model_dump(),
        },
        "temperature": network.temperature,
        "input": {
            "name": INPUT,
            "shape": ["batch", 3, network.inputs.image_size, network.inputs.image_size],
            "type": "float32",
        },
        "output": {"name": OUTPUT, "shape": ["batch", len(record.classes)], "type": "float32", "is": "logits"},
        "preprocessing": preprocessing(network.inputs),
        "date": now(),
        "software": software(),
    }


def preprocessing(inputs: Inputs) -> dict[str, Any]:
    """How a file becomes the input, in numbers and as steps in words."""
    corner = (inputs.resize - inputs.image_size) / 2
    colours = "one grey channel (luminance)" if inputs.is_grey else "RGB"
    return {
        "channels": inputs.channels,
        "bits": inputs.bits,
        "resize": inputs.resize,
        "crop": inputs.image_size,
        "mean": list(inputs.mean),
        "std": list(inputs.std),
        "steps": [
            f"decode upright to {colours}, values 0 to 255, an alpha channel dropped",
            f"resize the whole image to {inputs.resize} x {inputs.resize} (bilinear with antialiasing; the aspect "
            "ratio is given up)",
            f"crop the central {inputs.image_size} x {inputs.image_size} (from {corner:g}, {corner:g})",
            *(["repeat the channel three times"] if inputs.is_grey else []),
            "divide by 255, subtract mean, divide by std, channel by channel",
        ],
    }


def _real_images(network: Network, cache: CacheOptions, progress: Progress) -> tuple[Tensor | None, str]:
    """Up to 16 images of the run's own shard set as its evaluation shows them; None and why without."""
    if network.trained is None or network.folder is None:
        return None, network.why
    split = next(name for name in _PREFERRED if network.trained.splits.get(name))
    try:
        folder = local_set(network.record.shards, cache=cache, splits=(split,), tars=True, progress=progress)
        check_content(folder, network.trained, split, progress)
    except MstlError as error:
        return None, f"{error.what}: {error.why}"
    images = min(REAL_IMAGES, network.trained.samples(split))
    loader = Loader(
        network.inputs, folder, split, rank=0, world=1, batch=images, epochs=1, device="cpu", seed=0, shuffle=False,
        remainder="pad",
    )  # fmt: skip
    with closing(loader):
        return next(iter(loader)).views["x"].contiguous(), ""


def _check(network: Network, exported: Forward, real: Tensor | None, why: str, *, what: str) -> Checked:
    """Run both networks on the same images; raises MstlError when a logit differs by more than the limit."""
    side = network.inputs.image_size
    noise = torch.randn(sum(_NOISE), 3, side, side, generator=torch.Generator().manual_seed(0))
    differences: dict[str, float] = {}
    for name, images, sizes in (("noise", noise, _NOISE), ("real", real, None if real is None else (len(real),))):
        if images is None or sizes is None:
            continue
        worst = 0.0
        for part in torch.split(images, list(sizes)):
            with torch.inference_mode():
                own = network.classifier(part).numpy()
            other = exported(part)
            reach = LIMIT * max(1.0, float(np.abs(own).max()))
            far = float(np.abs(own - other).max()) if own.shape == other.shape else np.inf
            if not far <= reach:  # NaN is far too
                raise MstlError(
                    what,
                    why=f"its logits differ by {far:.3g} from those of the run's network on {len(part)} images of "
                    f"{name}, and {reach:.3g} is the limit; nothing was written",
                    remedy="Export to another format, and tell the makers of MSTL",
                )
            worst = max(worst, far)
        differences[name] = worst
    return Checked(
        limit=LIMIT,
        noise=differences["noise"],
        noise_images=sum(_NOISE),
        real=differences.get("real"),
        real_images=0 if real is None else len(real),
        why=why,
    )
