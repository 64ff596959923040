"""The four stages: what each trains on, which module it builds and how it is judged. Start reading here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mstl.distributed import mean_over_ranks_
from mstl.evaluation.evaluate import gather_predictions, positive_class, predict
from mstl.evaluation.metrics import classification_metrics
from mstl.models.classifier import Classifier
from mstl.models.resnet import ResNet
from mstl.recipes import ContrastiveLoss, Recipe
from mstl.ssl.moco import MomentumContrast
from pipelines.batch import Batch
from pipelines.loader import Loader
from pipelines.recipe import Inputs, evaluation, multi_view_ct, supervised_ct, supervised_cxr, supervised_natural
from shards.errors import MstlError
from shards.plan import Remainder


@dataclass(frozen=True, kw_only=True, slots=True)
class StageSpec:
    """What is fixed about a stage before anything is built.

    source: the shard set it trains on by default. parent: the stage whose weights it starts from.
    remainder: what becomes of an epoch's last, partial batch; small sets cannot afford to lose it (spec 1.8, 8).
    """

    name: str
    source: str
    parent: str | None
    remainder: Remainder
    train_inputs: Callable[[Recipe], Inputs]
    val_inputs: Callable[[Recipe], Inputs]


def _evaluation(recipe: Recipe) -> Inputs:
    return evaluation(image_size=recipe.data.image_size)


def _multi_view(recipe: Recipe) -> Inputs:
    return multi_view_ct(image_size=recipe.data.image_size, region_flip=recipe.data.region_flip)


STAGES: dict[str, StageSpec] = {
    spec.name: spec
    for spec in (
        StageSpec(
            name="stl_n",
            source="imagenet",
            parent=None,
            remainder="drop",
            train_inputs=lambda recipe: supervised_natural(image_size=recipe.data.image_size),
            val_inputs=_evaluation,
        ),
        StageSpec(
            name="stl_m",
            source="covidx",
            parent="stl_n",
            remainder="drop",
            train_inputs=lambda recipe: supervised_cxr(image_size=recipe.data.image_size),
            # Training sees the whole radiograph, uncropped, and so must validation.
            val_inputs=lambda recipe: evaluation(recipe.data.image_size, resize=recipe.data.image_size),
        ),
        StageSpec(
            name="sstl_m",
            source="covid19-ct",
            parent="stl_m",
            remainder="keep",
            train_inputs=_multi_view,
            val_inputs=_multi_view,
        ),
        StageSpec(
            name="finetune",
            source="covid19-ct",
            parent="sstl_m",
            remainder="keep",
            train_inputs=lambda recipe: supervised_ct(image_size=recipe.data.image_size),
            val_inputs=_evaluation,
        ),
    )
}


class Stage(Protocol):
    """What the training loop asks of a stage."""

    @property
    def module(self) -> nn.Module:
        """All that is trained and checkpointed; its forward takes a Batch and returns {"loss": scalar, parts...}."""

    def after_step(self) -> None:
        """Called once after every update of the parameters."""

    def evaluate(self, loader: Loader, device: torch.device) -> dict[str, float]:
        """Metrics over a loader's epoch, equal on every rank; the module is in evaluation mode."""

    def weights(self) -> dict[str, Tensor]:
        """What the next stage starts from: torchvision's names, and `fc.*` where the stage has a classifier."""


class _SupervisedModule(nn.Module):
    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        logits = self.classifier(batch.views["x"]).float()
        return {
            "loss": F.cross_entropy(logits, batch.labels),
            "accuracy": (logits.argmax(1) == batch.labels).float().mean().detach(),
        }


class SupervisedStage:
    """Cross entropy on labelled images: STL-N, STL-M and fine-tuning (paper 3, 5.2)."""

    def __init__(self, backbone: ResNet, recipe: Recipe, classes: tuple[str, ...]) -> None:
        self.classifier = Classifier(backbone, len(classes), dropout=recipe.model.dropout)
        self.module: nn.Module = _SupervisedModule(self.classifier)
        self._positive = positive_class(classes)

    def after_step(self) -> None:
        """Nothing beyond the update."""

    def evaluate(self, loader: Loader, device: torch.device) -> dict[str, float]:
        found = gather_predictions(predict(self.classifier, loader, device))
        return classification_metrics(found.probabilities, found.labels, positive=self._positive)

    def weights(self) -> dict[str, Tensor]:
        return {**self.classifier.backbone.state_dict(), **self.classifier.fc.state_dict(prefix="fc.")}


class ContrastiveStage:
    """SSTL-M: momentum contrast over CT images plus classification of five lobe regions (paper 4)."""

    def __init__(self, backbone: ResNet, recipe: Recipe, seed: int) -> None:
        loss = recipe.loss
        if not isinstance(loss, ContrastiveLoss):
            raise TypeError(f"SSTL-M needs a contrastive loss section, got {type(loss).__name__}")
        self.contrast = MomentumContrast(
            backbone,
            dim=loss.dim,
            queue_size=loss.queue_size,
            momentum=loss.momentum,
            temperature=loss.temperature,
            alpha1=loss.alpha1,
            alpha2=loss.alpha2,
            region_mode=loss.region,
            seed=seed,
        )
        self.module: nn.Module = self.contrast

    def after_step(self) -> None:
        """Put the step's keys into the queue."""
        self.contrast.after_step()

    @torch.inference_mode()
    def evaluate(self, loader: Loader, device: torch.device) -> dict[str, float]:
        names: list[str] = []
        sums: list[Tensor] = []
        images = 0
        for batch in loader:
            losses = self.module(batch)
            names = list(losses)
            sums.append(torch.stack([value.float() for value in losses.values()]) * len(batch))
            images += len(batch)
        means = mean_over_ranks_(torch.stack(sums).sum(0).to(device) / images)
        return dict(zip(names, means.tolist(), strict=True))

    def weights(self) -> dict[str, Tensor]:
        return dict(self.contrast.backbone.state_dict())


def build_stage(spec: StageSpec, backbone: ResNet, recipe: Recipe, classes: tuple[str, ...], seed: int) -> Stage:
    """The stage's module around a backbone; raises MstlError when the data cannot be classified."""
    if isinstance(recipe.loss, ContrastiveLoss):
        return ContrastiveStage(backbone, recipe, seed)
    if len(classes) < 2:
        raise MstlError(
            f"stage {spec.name}",
            why=f"its shard set has {len(classes)} class, and a classifier needs two",
            remedy="Make the shard set from data with at least two classes",
        )
    return SupervisedStage(backbone, recipe, classes)
