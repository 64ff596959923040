"""Small shard sets and run folders, made by hand: what training would leave behind, without training."""

from __future__ import annotations

import atexit
import json
import shutil
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import torch
from PIL import Image

from mstl.inputs import train_inputs, val_inputs
from mstl.models.classifier import Classifier
from mstl.models.registry import build_backbone
from mstl.recipes import PRINTED, RESOLVED, build_recipe, flatten, settle_ssl
from mstl.runs import WEIGHTS_NAME, software, write_record
from mstl.weights import save_weights
from shards.files import sha256_file
from shards.schema import Manifest
from shards.sources.blob import Blob
from shards.sources.listing import Item, Listing
from shards.writer import WriteOptions, write_shards

SIDE = 48
CT_CLASSES = ("NonCOVID", "COVID")


def make_shards(
    folder: Path,
    *,
    classes: tuple[str, ...] = CT_CLASSES,
    per_class: int = 5,
    source: str = "tiny",
    seed: int = 0,
    without: tuple[str, int] | None = None,
) -> Manifest:
    """A shard set of noise images in three splits; even ones have a patient. without: a split and a label it lacks."""
    raw = folder.with_name(folder.name + "-raw")
    raw.mkdir(parents=True)
    random = np.random.default_rng(seed)
    items = []
    for split in ("train", "val", "test"):
        for label, _ in enumerate(classes):
            for number in range(0 if (split, label) == without else per_class):
                name = f"{split}-{label}-{number}.png"
                dark = 60 * label % 135
                pixels = random.integers(dark, dark + 120, (SIDE, SIDE, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(raw / name)
                items.append(
                    Item(
                        key=Path(name).stem,
                        split=split,
                        label=label,
                        patient=f"p{label}{number}" if number % 2 == 0 else None,
                        blob=Blob(path=str(raw / name), size=(raw / name).stat().st_size),
                        origin=name,
                    )
                )
    listing = Listing(source=source, modality="ct", classes=classes, items=tuple(items), expected=None, notes=())
    return write_shards(listing, folder, WriteOptions())


@cache
def tiny_classifier(model: str, classes: int) -> Classifier:
    """A seeded random network in evaluation mode, one for all tests, whose attention takes part as after training."""
    torch.manual_seed(1)
    classifier = Classifier(build_backbone(model), classes, dropout=0.5)
    for name, norm in classifier.named_modules():
        if name.endswith(".norm"):
            torch.nn.init.ones_(norm.weight)  # else attention blocks are the identity
    return classifier.eval()


@cache
def _weights(model: str, classes: int | None) -> Path:
    """A weights file of the network, without `fc.*` where there are no classes."""
    classifier = tiny_classifier(model, classes or 2)
    tensors = dict(classifier.backbone.state_dict())
    if classes is not None:
        tensors |= classifier.fc.state_dict(prefix="fc.")
    file = Path(mkdtemp(prefix="tiny-runs-")) / WEIGHTS_NAME
    atexit.register(shutil.rmtree, file.parent)
    save_weights(file, tensors)
    return file


def make_run(
    path: Path,
    shards: Path,
    manifest: Manifest,
    *,
    stage: str = "finetune",
    model: str = "resnet14-attn5",
    parent: Path | None = None,
    steps: int = 6,
    overrides: tuple[str, ...] = (),
    weights: bool = True,
    changes: Mapping[str, Any] | None = None,
) -> Path:
    """A finished run with seeded random weights and `steps` log lines in three epochs; `changes` go into run.json.

    Without `weights` the file of them is a stand-in, for tests that read records only.
    """
    recipe = build_recipe(stage, overrides=(f"data.image_size={SIDE}", "optim.epochs=3", *overrides))
    path.mkdir(parents=True)
    if weights:
        shutil.copyfile(_weights(model, None if stage == "sstl_m" else len(manifest.classes)), path / WEIGHTS_NAME)
    else:
        (path / WEIGHTS_NAME).write_bytes(stage.encode())
    body = {
        "schema": 1,
        "stage": stage,
        "ssl": settle_ssl(stage, None),
        "model": model,
        "flavour": "resolved",
        "recipe": recipe.model_dump(mode="json"),
        "inputs": {
            "train": train_inputs(stage, settle_ssl(stage, None), recipe).to_dict(),
            "evaluation": val_inputs(stage, settle_ssl(stage, None), recipe).to_dict(),
        },
        "printed": {item.field: {"value": item.value, "why": item.why} for item in PRINTED[stage]},
        "resolved": flatten(RESOLVED[stage]),
        "seed": 3,
        "world_size": 1,
        "parent": None
        if parent is None
        else {
            "path": str(parent.resolve()),
            "weights": str(parent.resolve() / WEIGHTS_NAME),
            "digest": sha256_file(parent / WEIGHTS_NAME),
        },
        "shards": {
            "path": str(shards),
            "digest": manifest.digest(),
            "source": manifest.source,
            "classes": list(manifest.classes),
        },
        "software": software(),
        "device": "cpu",
        "git": "0123456789abcdef+",
        "status": "finished",
        "started": "2026-01-02T03:04:05+00:00",
        "finished": "2026-01-02T03:09:10+00:00",
        "wall_seconds": 305.0,
        "carry": None if parent is None else {"carried": 80, "new": [], "dropped": ["fc.weight", "fc.bias"]},
    }
    write_record(path, {**body, **(changes or {})})
    lines: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        epoch = (step - 1) * 3 // steps
        lines.append({"step": step, "epoch": epoch, "stage": stage, "loss": 2.0 / step, "lr": 0.1})
        if step * 3 % steps == 0:
            lines.append({"step": step, "epoch": epoch, "split": "val", "accuracy": 0.5 + 0.1 * epoch, "auc": None})
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path
