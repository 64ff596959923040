"""SimCLR (Chen et al. 2020): each view against every other view of the batch, over all ranks."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mstl.losses import nt_xent_logits
from mstl.models.batchnorm import join_batchnorms
from mstl.models.resnet import ResNet
from mstl.ssl.heads import embed, simclr_head
from mstl.ssl.method import Method
from pipelines.batch import Batch


class SimCLR(Method):
    """One encoder for both views, and a projection head; forward gives the loss of one batch.

    Batch norms take their statistics over all ranks, as in the paper: a rank's own would tell which views came
    together. So what is learned does not depend on the number of ranks. dim, temperature: of NT-Xent.
    """

    def __init__(self, backbone: ResNet, *, dim: int = 128, temperature: float = 0.1) -> None:
        super().__init__(backbone)
        self.temperature = temperature
        self.projection = simclr_head(backbone.out_features, dim)
        join_batchnorms(self.backbone)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Scalars: `loss`, and, detached, `contrast_accuracy`, the share of views whose nearest is their other one."""
        images = len(batch)
        # Both views in one forward, as published: they share their batch norm statistics.
        views = embed(self.backbone, self.projection, torch.cat((batch.views["q"], batch.views["k"])))
        logits, positives = nt_xent_logits(views[:images], views[images:], batch.sample_ids, self.temperature)
        nearest = logits.detach().argmax(dim=1) == positives
        return {"loss": F.cross_entropy(logits, positives), "contrast_accuracy": nearest.float().mean()}
