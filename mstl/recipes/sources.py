"""Where each number of a recipe comes from."""

from __future__ import annotations

from mstl.recipes.build import flatten
from mstl.recipes.describe import split_description
from mstl.recipes.values import RESOLVED

_MOCO, _MOCO_V2, _SIMCLR = "MoCo v1, He et al. 2020", "MoCo v2, Chen et al. 2020", "SimCLR, Chen et al. 2020"
_TRAINING = ("data.batch_size", "optim.algorithm", "optim.epochs", "optim.lr", "optim.schedule", "optim.momentum",
             "optim.weight_decay", "loss.temperature")  # fmt: skip
_MOCO_TRAINING = {
    **dict.fromkeys((*_TRAINING, "optim.milestones", "optim.gamma", "loss.momentum", "loss.queue_size"), _MOCO),
    "data.image_size": _MOCO,
    "loss.bn_group": f"{_MOCO}: 256 on 8 GPUs",
    **dict.fromkeys(("loss.alpha1", "loss.alpha2", "loss.region"), f"{_MOCO}: one loss"),
}

# What the description of a field in the schema says holds unless it stands here.
EXCEPTIONS: dict[str, dict[str, str]] = {
    "stl_n": {},
    "stl_m": {
        "data.image_size": "ours: as stl_n",
        "optim.momentum": "ours: as stl_n",
        "optim.weight_decay": "ours: as stl_n",
        "optim.schedule": "ours: constant, as none is printed",
        "optim.milestones": "ours: constant, as none is printed",
        "optim.gamma": "ours: constant, as none is printed",
    },
    "sstl_m": {
        "data.region_flip": "paper 6.2",
        "data.channels": "paper 6.2",
        "loss.temperature_on": "paper 5.2, eq. 2",
        "loss.region": "paper 5.4, eq. 6",
    },
    "sstl_m-moco": _MOCO_TRAINING,
    "sstl_m-moco_v2": {
        **_MOCO_TRAINING,
        "optim.schedule": _MOCO_V2,
        "loss.temperature": _MOCO_V2,
        "loss.head": _MOCO_V2,
    },
    "sstl_m-simclr": {
        **dict.fromkeys((*_TRAINING, "optim.warmup_epochs", "optim.lr_per", "data.image_size"), _SIMCLR),
    },
    "finetune": {
        "data.channels": "paper 6.2",
        "data.evaluation": "paper 6.2",
        "model.dropout": "ours: none is printed",
    },
}

MODALITY = {"stl_n": "natural", "stl_m": "cxr", "sstl_m": "ct", "finetune": "ct"}
"""Of the data that each stage trains on by default."""

_CT = {
    "flip": "paper 6.2",
    "jitter": "paper 6.2",
    "grayscale": "paper 6.2",
    **dict.fromkeys(("brightness", "contrast", "saturation", "hue"), f"{_MOCO}: not printed"),
}
_COVID_NET = "COVID-Net: not printed"
_VIEWS = ("views", "crop", "area_min", "flip", "grayscale", "jitter", "brightness", "contrast", "saturation", "hue",
          "blur", "blur_sigma_min", "blur_sigma_max", "blur_window")  # fmt: skip

# The same of the fields of `pipelines.recipe.Inputs`; "" holds for every recipe.
INPUTS: dict[str, dict[str, str]] = {
    "": {
        "views": "paper 5.2, 5.3",
        "channels": "ours: grey for radiographs and CT",
        "resize": "paper 6.2: 256 for 224",
        "crop": "paper 6.2",
        "image_size": "paper 6.2",
        "region_flip": "ours: printed true",
        "mean": "ours: ImageNet's, with its std",
    },
    "stl_n": {"views": "paper 4", "flip": "paper 6.2"},
    "stl_m": {
        "views": "paper 4",
        "image_size": "ours: as stl_n",
        "resize": "ours: no crop is printed, the whole image is used",
        "crop": "ours: no crop is printed, the whole image is used",
        "flip": "paper 6.2",
        "geometry": "paper 6.2",
        "translation": _COVID_NET,
        "rotation": _COVID_NET,
        "intensity": _COVID_NET,
    },
    "sstl_m": _CT,
    "sstl_m-moco": dict.fromkeys(_VIEWS, _MOCO),
    "sstl_m-moco_v2": dict.fromkeys(_VIEWS, _MOCO_V2),
    "sstl_m-simclr": dict.fromkeys(_VIEWS, _SIMCLR),
    "finetune": {"views": "paper 4", **_CT},
}


def described(name: str) -> dict[str, tuple[str, str]]:
    """Each field's meaning and source, as they stand in the schema and in EXCEPTIONS."""
    found = {}
    for field in flatten(RESOLVED[name]):
        section, _, own = field.partition(".")
        kind = type(getattr(RESOLVED[name], section))
        meaning, source = split_description(kind.model_fields[own])
        found[field] = (meaning, EXCEPTIONS[name].get(field, source))
    return found
