"""The numbers of every recipe as we resolved them; `mstl.recipes.printed` has what the papers print instead."""

from __future__ import annotations

from mstl.recipes.schema import Checkpoint, ContrastiveLoss, Data, Model, NTXentLoss, Optim, Recipe, SupervisedLoss

_SMALL = Checkpoint(every_steps=20)  # for sets of a few hundred images: ten epochs

RESOLVED: dict[str, Recipe] = {
    "stl_n": Recipe(
        data=Data(batch_size=512),
        model=Model(dropout=0.2),
        optim=Optim(epochs=90, lr=0.1, milestones=(30, 60)),
        loss=SupervisedLoss(),
    ),
    "stl_m": Recipe(
        data=Data(batch_size=64),
        model=Model(dropout=0.5),
        optim=Optim(epochs=30, lr=2e-4),
        loss=SupervisedLoss(),
        checkpoint=Checkpoint(every_steps=200),
    ),
    "sstl_m": Recipe(
        data=Data(batch_size=256),
        optim=Optim(epochs=200, lr=0.03, milestones=(120, 160)),
        loss=ContrastiveLoss(),
        checkpoint=_SMALL,
    ),
    "sstl_m-moco": Recipe(
        data=Data(batch_size=256),
        optim=Optim(epochs=200, lr=0.03, milestones=(120, 160)),
        loss=ContrastiveLoss(alpha1=1.0, alpha2=0.0, region="off"),
        checkpoint=_SMALL,
    ),
    "sstl_m-moco_v2": Recipe(
        data=Data(batch_size=256),
        optim=Optim(epochs=200, lr=0.03, schedule="cosine"),
        loss=ContrastiveLoss(temperature=0.2, head="mlp", alpha1=1.0, alpha2=0.0, region="off"),
        checkpoint=_SMALL,
    ),
    "sstl_m-simclr": Recipe(
        data=Data(batch_size=256),
        optim=Optim(
            algorithm="lars",
            epochs=200,
            lr=0.3,
            schedule="cosine",
            warmup_epochs=10,
            lr_per="step",
            weight_decay=1e-6,
        ),
        loss=NTXentLoss(),
        checkpoint=_SMALL,
    ),
    "finetune": Recipe(
        data=Data(batch_size=256),
        optim=Optim(epochs=200, lr=0.03, milestones=(120, 160)),
        loss=SupervisedLoss(),
        checkpoint=Checkpoint(every_steps=20, select="best"),
    ),
}
