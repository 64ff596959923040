"""The peer of the training benchmark: a training loop as tutorials have it.

torchvision's ResNet, attention of three convolutions and two `bmm`, torch DDP, `ImageFolder` in a `DataLoader`,
automatic mixed precision with a `GradScaler` on GPUs and float32 on CPUs, momentum contrast after its authors' code. It
imports nothing of what MSTL trains with.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from shards.errors import MstlError

LR = 1e-3
MOMENTUM, WEIGHT_DECAY = 0.9, 1e-4
Views = tuple[Tensor, Tensor]
"""Images and labels, or two views of the same images."""


class PlainAttention(nn.Module):
    """Unscaled self-attention with a residual connection, as one writes it down."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query = nn.Conv2d(channels, channels // 2, 1)
        self.key = nn.Conv2d(channels, channels // 2, 1)
        self.value = nn.Conv2d(channels, channels // 2, 1)
        self.project = nn.Conv2d(channels // 2, channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        query = self.query(x).flatten(2).transpose(1, 2)
        key = self.key(x).flatten(2)
        value = self.value(x).flatten(2)
        weights = torch.softmax(torch.bmm(query, key), dim=-1)
        out = torch.bmm(value, weights.transpose(1, 2)).view(b, -1, h, w)
        return x + self.norm(self.project(out))  # type: ignore[no-any-return]


def plain_network(blocks: list[int], attention: dict[str, int], outputs: int, *, hidden: bool = False) -> nn.Module:
    """torchvision's ResNet with a last layer of `outputs`; attention: stage ("res3" …) → blocks at its end.

    hidden: a layer as wide as the features stands before the last.
    """
    from torchvision.models.resnet import Bottleneck, ResNet  # type: ignore[import-untyped]

    network: nn.Module = ResNet(Bottleneck, blocks, num_classes=outputs)
    for stage, count in attention.items():
        name = f"layer{int(stage.removeprefix('res')) - 1}"
        layer: nn.Module = getattr(network, name)
        channels = layer[-1].conv3.out_channels  # type: ignore[index]
        setattr(network, name, nn.Sequential(layer, *(PlainAttention(channels) for _ in range(count))))
    if hidden:  # as MoCo v2 has it
        last = network.fc
        assert isinstance(last, nn.Linear)
        network.fc = nn.Sequential(nn.Linear(last.in_features, last.in_features), nn.ReLU(), last)
    return network


class PlainMoco(nn.Module):
    """Momentum contrast (He et al. 2020) with shuffled batch norm, one loop over the parameters, one queue."""

    def __init__(self, network: nn.Module, dim: int, size: int, momentum: float, temperature: float) -> None:
        super().__init__()
        self.size, self.momentum, self.temperature = size, momentum, temperature
        self.encoder_q = network
        self.encoder_k = copy.deepcopy(network).requires_grad_(False)
        self.register_buffer("queue", F.normalize(torch.randn(dim, size), dim=0))
        self.register_buffer("pointer", torch.zeros(1, dtype=torch.long))
        self.queue: Tensor
        self.pointer: Tensor

    def forward(self, im_q: Tensor, im_k: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, 1 + K] and their labels, all 0."""
        q = F.normalize(self.encoder_q(im_q), dim=1)
        with torch.no_grad():
            for param_q, param_k in zip(self.encoder_q.parameters(), self.encoder_k.parameters(), strict=True):
                param_k.data = param_k.data * self.momentum + param_q.data * (1.0 - self.momentum)
            k = self._keys(im_k)
        positive = torch.einsum("nc,nc->n", [q, k]).unsqueeze(-1)
        negative = torch.einsum("nc,ck->nk", [q, self.queue.clone().detach()])
        logits = torch.cat([positive, negative], dim=1) / self.temperature
        self._enqueue(k)
        return logits, torch.zeros(logits.shape[0], dtype=torch.long, device=logits.device)

    def _keys(self, im_k: Tensor) -> Tensor:
        if dist.get_world_size() == 1:
            return F.normalize(self.encoder_k(im_k), dim=1)
        everyone = _gather(im_k)
        order = torch.randperm(everyone.shape[0], device=everyone.device)
        dist.broadcast(order, src=0)
        back = torch.argsort(order)
        rank = dist.get_rank()
        k = F.normalize(self.encoder_k(everyone[order.view(dist.get_world_size(), -1)[rank]]), dim=1)
        return _gather(k)[back.view(dist.get_world_size(), -1)[rank]]

    @torch.no_grad()
    def _enqueue(self, keys: Tensor) -> None:
        keys = _gather(keys) if dist.get_world_size() > 1 else keys
        pointer = int(self.pointer)
        places = torch.arange(pointer, pointer + keys.shape[0], device=keys.device) % self.size
        self.queue[:, places] = keys.T.to(self.queue.dtype)
        self.pointer[0] = (pointer + keys.shape[0]) % self.size


def _gather(tensor: Tensor) -> Tensor:
    parts = [torch.ones_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts, dim=0)


class PlainTraining:
    """A model under DDP with its optimizer; `step` is one update on a pair of tensors, those of a `DataLoader`."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.device, self.amp = device, device.type == "cuda"
        self.model = model.to(device).train()
        self.parallel = DistributedDataParallel(self.model, device_ids=[device] if self.amp else None)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.SGD(trained, lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.amp)
        self.criterion = nn.CrossEntropyLoss()

    def step(self, pair: Views) -> Tensor:
        """The loss of an update."""
        first, second = (tensor.to(self.device, non_blocking=True) for tensor in pair)
        with torch.autocast(self.device.type, dtype=torch.float16, enabled=self.amp):
            if isinstance(self.model, PlainMoco):
                loss = self.criterion(*self.parallel(first, second))
            else:
                loss = self.criterion(self.parallel(first), second)
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.detach()  # type: ignore[no-any-return]


def batches(folder: Path, size: int, batch: int, workers: int, *, two_views: bool) -> Generator[Views]:
    """Batches of class folders without end: torchvision's transforms on Pillow images in worker processes."""
    from torch.utils.data import DataLoader
    from torch.utils.data.distributed import DistributedSampler
    from torchvision import transforms  # type: ignore[import-untyped]
    from torchvision.datasets import ImageFolder  # type: ignore[import-untyped]

    last = [transforms.RandomHorizontalFlip(), transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]  # fmt: skip
    if two_views:
        one = transforms.Compose(
            [transforms.RandomResizedCrop(size, scale=(0.2, 1.0)), transforms.RandomGrayscale(p=0.2),
             transforms.ColorJitter(0.4, 0.4, 0.4, 0.4), *last]
        )  # fmt: skip
        dataset = ImageFolder(str(folder), _Twice(one))
    else:
        dataset = ImageFolder(str(folder), transforms.Compose([transforms.RandomResizedCrop(size), *last]))
    sampler: Any = DistributedSampler(dataset, shuffle=True, drop_last=True)
    loader = DataLoader(
        dataset, batch_size=batch, sampler=sampler, num_workers=workers, pin_memory=torch.cuda.is_available(),
        drop_last=True, persistent_workers=workers > 0,
    )  # fmt: skip
    if not len(loader):
        raise MstlError(f"images {folder}", why="they do not fill one batch", remedy="Name a smaller --batch")
    epoch = 0
    while True:
        sampler.set_epoch(epoch)
        for images, labels in loader:
            yield (images[0], images[1]) if two_views else (images, labels)
        epoch += 1


class _Twice:
    """Two random crops of one image as the query and key."""

    def __init__(self, transform: Callable[[Any], Tensor]) -> None:
        self.transform = transform

    def __call__(self, image: Any) -> list[Tensor]:
        return [self.transform(image), self.transform(image)]
