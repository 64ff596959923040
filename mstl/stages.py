"""The four stages: what each trains on, which module it builds and how it is judged. Start reading here.

What is fixed about each is in `mstl.stage_specs`, what the networks see in `mstl.inputs`, the numbers are in
`mstl.recipes.values`.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mstl.distributed import mean_over_ranks_
from mstl.evaluation.metrics import classification_metrics
from mstl.evaluation.predictions import gather_predictions, positive_class, predict
from mstl.models.classifier import Classifier
from mstl.models.resnet import ResNet
from mstl.recipes import Recipe, SupervisedLoss
from mstl.ssl.build import build_method
from mstl.stage_specs import STAGES as STAGES
from mstl.stage_specs import StageSpec
from pipelines.batch import Batch
from pipelines.loader import Loader
from shards.errors import MstlError


class Stage(Protocol):
    """What the training loop asks of a stage."""

    @property
    def module(self) -> nn.Module:
        """All that is trained and checkpointed; its forward takes a Batch and returns {"loss": scalar, parts...}."""

    def after_step(self) -> None:
        """Called once after every update of the parameters."""

    def skip_step(self) -> None:
        """Called instead where the update was given up, on all ranks alike (overflow in float16, for one)."""

    def check_ranks(self) -> None:
        """Raise MstlError when what all ranks must share beside the weights differs; all ranks call it."""

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

    def skip_step(self) -> None:
        """Nothing to take back."""

    def check_ranks(self) -> None:
        """Nothing is shared beside the weights."""

    def evaluate(self, loader: Loader, device: torch.device) -> dict[str, float]:
        found = gather_predictions(predict(self.classifier, loader, device))
        return classification_metrics(found.probabilities, found.labels, positive=self._positive)

    def weights(self) -> dict[str, Tensor]:
        return {**self.classifier.backbone.state_dict(), **self.classifier.fc.state_dict(prefix="fc.")}


class SelfSupervisedStage:
    """SSTL-M: momentum contrast of CT images and their lobe regions (paper 4), or one of the baselines."""

    def __init__(self, backbone: ResNet, recipe: Recipe, seed: int) -> None:
        self.method = build_method(backbone, recipe, seed)
        self.module: nn.Module = self.method

    def after_step(self) -> None:
        """Let the method remember the batch: momentum contrast queues its keys."""
        self.method.after_step()

    def skip_step(self) -> None:
        """Let the method forget the batch."""
        self.method.skip_step()

    def check_ranks(self) -> None:
        """Compare what the method keeps beside its weights: momentum contrast's queue."""
        self.method.check_ranks()

    @torch.inference_mode()
    def evaluate(self, loader: Loader, device: torch.device) -> dict[str, float]:
        self.check_ranks()
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
        return dict(self.method.backbone.state_dict())


def build_stage(spec: StageSpec, backbone: ResNet, recipe: Recipe, classes: tuple[str, ...], seed: int) -> Stage:
    """The stage's module around a backbone; raises MstlError when the data cannot be classified."""
    if not isinstance(recipe.loss, SupervisedLoss):
        return SelfSupervisedStage(backbone, recipe, seed)
    if len(classes) < 2:
        raise MstlError(
            f"stage {spec.name}",
            why=f"its shard set has {len(classes)} class, and a classifier needs two",
            remedy="Make the shard set from data with at least two classes",
        )
    return SupervisedStage(backbone, recipe, classes)
