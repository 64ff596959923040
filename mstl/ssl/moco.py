"""SSTL-M: momentum contrast of two views, and the region branch beside it (paper §SSTL-M, eqs. 2 to 6).

With the region branch off this is MoCo (He et al. 2020), v1 or, with the wider head, v2.
"""

import copy
from typing import Literal

import torch
from torch import Tensor, nn

from mstl.distributed import check_equal_on_ranks, exchange, gather_cat, rank, world_size
from mstl.losses import contrastive_logits, positive_first_loss, region_loss
from mstl.models.batchnorm import Parts, even_sizes, part_batchnorms
from mstl.models.resnet import ResNet
from mstl.precision import no_autocast, widen
from mstl.ssl.heads import MocoHead, embed, moco_head
from mstl.ssl.method import Method
from mstl.ssl.queue import KeyQueue
from pipelines.batch import Batch

REGIONS = ("ru", "rm", "rl", "lu", "ll")  # views of the region branch; the place in this list is the class


class MomentumContrast(Method):
    """Query and key encoders, queue, region classifier; forward gives the losses of one batch.

    The backbone given becomes the query encoder (`backbone`); load its weights before, since the key encoder is
    copied from it here. Trainable: `backbone`, `projection`, `region_head` (None with region_mode "off"). The key
    encoder lives in the module, without gradients, so it travels in checkpoints and to every rank.

    In training every forward must be followed by `after_step()`, behind backward and optimizer step, or by
    `skip_step()` where the step was given up. In evaluation mode forward changes no state.

    dim, queue_size (ours), momentum, temperature, alpha1, alpha2: eqs. 2, 3, 6. temperature_on: "positive" leaves the
    negatives undivided, as eq. 2 is printed. bn_group: at most so many images share
    batch norm statistics; a rank that holds more parts them (a region forward parts its images alike: all five crops
    of an image stay together). So one GPU with 256 images and bn_group 32 trains as eight with 32 do. None: all of a
    rank's images. seed: the initial queue and the shuffling of batch norm; equal on all ranks.
    """

    step: Tensor

    def __init__(
        self,
        backbone: ResNet,
        *,
        dim: int = 128,
        head: MocoHead = "linear",
        queue_size: int = 256,
        momentum: float = 0.999,
        temperature: float = 0.07,
        temperature_on: Literal["all", "positive"] = "all",
        alpha1: float = 0.8,
        alpha2: float = 0.8,
        region_mode: Literal["normalised", "literal", "off"] = "normalised",
        bn_group: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(backbone)
        assert region_mode in ("normalised", "literal", "off"), region_mode
        assert temperature_on in ("all", "positive"), temperature_on
        self.momentum, self.temperature = momentum, temperature
        self.temperature_on = temperature_on
        self.alpha1, self.alpha2 = alpha1, alpha2
        self.region_mode = region_mode
        self.bn_group = bn_group
        self.seed = seed
        self.projection = moco_head(backbone.out_features, dim, head)
        self.region_head = None if region_mode == "off" else nn.Linear(backbone.out_features, len(REGIONS))
        self.key_backbone = copy.deepcopy(self.backbone).requires_grad_(False)
        self.key_projection = copy.deepcopy(self.projection).requires_grad_(False)
        self.parts = Parts()
        if bn_group is not None:
            part_batchnorms(self.backbone, self.parts)
            part_batchnorms(self.key_backbone, self.parts)
        self.queue = KeyQueue(queue_size, dim, seed)
        self.register_buffer("step", torch.zeros((), dtype=torch.long))
        self._pending: tuple[Tensor, Tensor] | None = None

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Scalars: `loss` (eq. 6), its parts `contrastive` and `region`, and, detached, `contrast_accuracy` (the
        share of queries nearer to their own key than to every negative) and `region_accuracy`.

        With region_mode "off" the region's entries are absent and the loss is alpha1 times the contrastive part.
        """
        if self.training:
            assert self._pending is None, "after_step() or skip_step() must follow each training forward"
            order = self._shuffled(len(batch))  # first of all: asking a GPU for `step` later would wait for its work
            self._update_key_encoder()
            keys = self._encode_keys(batch.views["k"], order)
            self._pending = (keys, gather_cat(batch.sample_ids))
            key = keys[rank() * len(batch) : (rank() + 1) * len(batch)]
        else:
            key = embed(self.key_backbone, self.key_projection, batch.views["k"])
        with self.parts.of(even_sizes(len(batch), self.bn_group)):
            query = embed(self.backbone, self.projection, batch.views["q"])

        logits = contrastive_logits(
            query,
            key,
            self.queue.keys,
            self.temperature,
            negatives_mask=self.queue.negatives_mask(batch.sample_ids),
        )
        nearest = logits[:, 0] > logits[:, 1:].amax(dim=1)
        if self.temperature_on == "positive":
            logits = torch.cat((logits[:, :1], logits[:, 1:] * self.temperature), dim=1)
        contrastive = positive_first_loss(logits)
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

    def skip_step(self) -> None:
        """Forget the keys of the last forward: its step was given up (a loss or gradient was not finite).

        The key encoder has moved in that forward already and stays there: it is still a mean of past queries, and the
        next step moves it towards the same one again.
        """
        self._pending = None

    def check_ranks(self) -> None:
        """Raise MstlError when the ranks' queues, or their places in the shuffling, have come to differ."""
        check_equal_on_ranks("queue of keys", (self.queue.keys, self.queue.sample_ids, self.queue.cursor, self.step))

    def _region(self, head: nn.Module, views: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        images, regions = len(views["q"]), len(REGIONS)
        sizes = even_sizes(images, self.bn_group)
        crops = zip(*(torch.split(views[name], sizes) for name in REGIONS), strict=True)
        part_sizes = [regions * size for size in sizes]
        # A forward of their own, apart from the query's: the branches must not share batch norm statistics.
        with self.parts.of(part_sizes):
            features = self.backbone(torch.cat([crop for part in crops for crop in part]))
        with no_autocast(features):
            by_part = torch.split(head(widen(features)), part_sizes)
        logits = torch.cat([part.view(regions, -1, regions) for part in by_part], dim=1).transpose(0, 1)  # [B, 5, 5]
        if self.region_mode == "literal":
            # Gradients are averaged over ranks, while eq. 6 sums over the images of the whole batch.
            loss = region_loss(logits, "literal") * world_size()
        else:
            loss = region_loss(logits, "normalised")
        right = logits.argmax(dim=2) == torch.arange(regions, device=logits.device)
        return loss, right.float().mean()

    @torch.no_grad()
    def _update_key_encoder(self) -> None:
        """Eq. 3, over parameters only: the key encoder's batch norms keep statistics of their own."""
        keys: list[Tensor] = [*self.key_backbone.parameters(), *self.key_projection.parameters()]
        queries: list[Tensor] = [*self.backbone.parameters(), *self.projection.parameters()]
        torch._foreach_lerp_(keys, queries, 1 - self.momentum)

    def _shuffled(self, images: int) -> Tensor | None:
        """The order [ranks * B], on the CPU, in which images of all ranks are encoded, equal on all ranks.

        None: as they are.
        """
        if world_size() == 1 and len(even_sizes(images, self.bn_group)) == 1:
            return None
        generator = torch.Generator().manual_seed(self.seed + int(self.step))
        return torch.randperm(world_size() * images, generator=generator)

    @torch.no_grad()
    def _encode_keys(self, images: Tensor, order: Tensor | None) -> Tensor:
        """[B, C, H, W] on each rank → the keys of all ranks in rank order, [ranks * B, dim].

        Where the whole batch does not share its statistics, each rank and part encodes images drawn from all of them
        (MoCo's shuffled batch norm), so that statistics do not tell which key belongs to which query.
        """
        if order is None:
            return embed(self.key_backbone, self.key_projection, images)
        # Position-major, since a batch in channels_last memory is contiguous that way and is not copied.
        mine = exchange(images.permute(0, 2, 3, 1), order).permute(0, 3, 1, 2)
        with self.parts.of(even_sizes(len(images), self.bn_group)):
            keys = embed(self.key_backbone, self.key_projection, mine)
        return gather_cat(keys)[order.argsort().to(keys.device)]
