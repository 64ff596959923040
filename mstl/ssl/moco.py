"""SSTL-M: momentum contrast of two views, and the region branch beside it (paper §SSTL-M, eqs. 2 to 6)."""

import copy
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mstl.distributed import gather_cat, rank, world_size
from mstl.losses import contrastive_logits, positive_first_loss, region_loss
from mstl.models.resnet import ResNet
from mstl.precision import no_autocast, widen
from mstl.ssl.queue import KeyQueue
from pipelines.batch import Batch

REGIONS = ("ru", "rm", "rl", "lu", "ll")  # views of the region branch; the place in this list is the class


class MomentumContrast(nn.Module):
    """Query and key encoders, queue, region classifier; forward gives the losses of one batch.

    The backbone given becomes the query encoder (`backbone`); load its weights before, since the key encoder is
    copied from it here. Trainable: `backbone`, `projection`, `region_head` (None with region_mode "off"). The key
    encoder lives in the module, without gradients, so it travels in checkpoints and to every rank.

    In training every forward must be followed by `after_step()`, behind backward and optimizer step, or by
    `drop_pending()` where the step was given up. In evaluation mode forward changes no state.

    dim, queue_size (ours), momentum, temperature, alpha1, alpha2: eqs. 2, 3, 6. seed: the initial queue and the
    shuffling of batch norm; equal on all ranks.
    """

    step: Tensor

    def __init__(
        self,
        backbone: ResNet,
        *,
        dim: int = 128,
        queue_size: int = 256,
        momentum: float = 0.999,
        temperature: float = 0.07,
        alpha1: float = 0.8,
        alpha2: float = 0.8,
        region_mode: Literal["normalised", "literal", "off"] = "normalised",
        seed: int = 0,
    ) -> None:
        super().__init__()
        assert region_mode in ("normalised", "literal", "off"), region_mode
        self.momentum, self.temperature = momentum, temperature
        self.alpha1, self.alpha2 = alpha1, alpha2
        self.region_mode = region_mode
        self.seed = seed
        self.backbone = backbone
        self.projection = nn.Linear(backbone.out_features, dim)
        self.region_head = None if region_mode == "off" else nn.Linear(backbone.out_features, len(REGIONS))
        self.key_backbone = copy.deepcopy(self.backbone).requires_grad_(False)
        self.key_projection = copy.deepcopy(self.projection).requires_grad_(False)
        self.queue = KeyQueue(queue_size, dim, seed)
        self.register_buffer("step", torch.zeros((), dtype=torch.long))
        self._pending: tuple[Tensor, Tensor] | None = None

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Scalars: `loss` (eq. 6), its parts `contrastive` and `region`, and, detached, `contrast_accuracy` (the
        share of queries nearer to their own key than to every negative) and `region_accuracy`.

        With region_mode "off" the region's entries are absent and the loss is alpha1 times the contrastive part.
        """
        query = _embed(self.backbone, self.projection, batch.views["q"])
        if self.training:
            assert self._pending is None, "after_step() or drop_pending() must follow each training forward"
            self._update_key_encoder()
        keys = self._encode_keys(batch.views["k"])
        if self.training:
            self._pending = (keys, gather_cat(batch.sample_ids))

        logits = contrastive_logits(
            query,
            keys[rank() * len(batch) : (rank() + 1) * len(batch)],
            self.queue.keys,
            self.temperature,
            negatives_mask=self.queue.negatives_mask(batch.sample_ids),
        )
        contrastive = positive_first_loss(logits)
        nearest = logits[:, 0] > logits[:, 1:].amax(dim=1)
        scalars = {"contrastive": contrastive, "contrast_accuracy": nearest.float().mean()}
        loss = self.alpha1 * contrastive
        if self.region_head is not None:
            region, scalars["region_accuracy"] = self._region(self.region_head, batch.views)
            scalars["region"] = region
            loss = loss + self.alpha2 * region
        return {"loss": loss, **scalars}

    @torch.no_grad()
    def after_step(self) -> None:
        """Put the keys of the last forward, of all ranks in rank order, into the queue."""
        assert self._pending is not None, "no training forward since the last after_step()"
        self.queue.push(*self._pending)
        self.step += 1
        self._pending = None

    def drop_pending(self) -> None:
        """Forget the keys of the last forward: its step was given up (a loss or gradient was not finite)."""
        self._pending = None

    def _region(self, head: nn.Module, views: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        # A forward of their own, apart from the query's: the branches must not share batch norm statistics.
        features = self.backbone(torch.cat([views[name] for name in REGIONS]))
        with no_autocast(features):
            by_region: Tensor = head(widen(features))
        logits = by_region.view(len(REGIONS), -1, len(REGIONS)).transpose(0, 1)  # [B, 5, 5]
        if self.region_mode == "literal":
            # Gradients are averaged over ranks, while eq. 6 sums over the images of the whole batch.
            loss = region_loss(logits, "literal") * world_size()
        else:
            loss = region_loss(logits, "normalised")
        right = logits.argmax(dim=2) == torch.arange(len(REGIONS), device=logits.device)
        return loss, right.float().mean()

    @torch.no_grad()
    def _update_key_encoder(self) -> None:
        """Eq. 3, over parameters only: the key encoder's batch norms keep statistics of their own."""
        keys: list[Tensor] = [*self.key_backbone.parameters(), *self.key_projection.parameters()]
        queries: list[Tensor] = [*self.backbone.parameters(), *self.projection.parameters()]
        torch._foreach_lerp_(keys, queries, 1 - self.momentum)

    @torch.no_grad()
    def _encode_keys(self, images: Tensor) -> Tensor:
        """[B, C, H, W] on each rank → the keys of all ranks in rank order, [ranks * B, dim].

        With several ranks each encodes images drawn from all of them (MoCo's shuffled batch norm), so that the
        statistics of a batch do not tell which key belongs to which query.
        """
        if world_size() == 1:
            return _embed(self.key_backbone, self.key_projection, images)
        # Position-major, since a batch in channels_last memory is contiguous that way and is not copied.
        everyone = gather_cat(images.permute(0, 2, 3, 1))
        generator = torch.Generator().manual_seed(self.seed + int(self.step))  # the same order on all ranks
        order = torch.randperm(len(everyone), generator=generator).to(images.device)
        mine = order[rank() * len(images) : (rank() + 1) * len(images)]
        keys = _embed(self.key_backbone, self.key_projection, everyone[mine].permute(0, 3, 1, 2))
        return gather_cat(keys)[order.argsort()]


def _embed(backbone: nn.Module, projection: nn.Module, images: Tensor) -> Tensor:
    """Images → unit vectors [B, dim], the head in float32 or wider even under autocast."""
    features = backbone(images)
    with no_autocast(features):
        return F.normalize(projection(widen(features)), dim=1)
