"""Small models and batches for the tests of momentum contrast and SimCLR."""

from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mstl.distributed import world_size
from mstl.models.registry import build_backbone
from mstl.ssl.method import Method
from mstl.ssl.moco import REGIONS, MomentumContrast
from mstl.ssl.simclr import SimCLR
from pipelines.batch import Batch

AnyModule = TypeVar("AnyModule", bound=nn.Module)


class TinyBackbone(nn.Module):
    """What the methods ask of a ResNet, in a thousandth of its time."""

    def __init__(self) -> None:
        super().__init__()
        self.out_features = 24
        self.conv1 = nn.Conv2d(3, 8, 3, stride=2, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 24, 3, stride=2, bias=False)
        self.bn2 = nn.BatchNorm2d(24)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())).relu().mean((2, 3))


def make_model(name: str | None = None, **options: float | str) -> MomentumContrast:
    """Around a tiny backbone, or the named one."""
    torch.manual_seed(3)
    settings: dict[str, object] = {"dim": 16, "queue_size": 6, "temperature": 0.2, "alpha1": 0.7, "alpha2": 0.3}
    return MomentumContrast(TinyBackbone() if name is None else build_backbone(name), **{**settings, **options})


def make_simclr() -> SimCLR:
    torch.manual_seed(3)
    return SimCLR(TinyBackbone(), dim=16, temperature=0.2)


def make_batch(ids: list[int], seed: int) -> Batch:
    """Images that depend on the seed and their place; regions differ so that they can be told apart."""
    generator = torch.Generator().manual_seed(seed)
    views = {name: torch.randn(len(ids), 3, 32, 32, generator=generator) for name in ("q", "k", *REGIONS)}
    return Batch(views=views, labels=torch.zeros(len(ids), dtype=torch.long), sample_ids=torch.tensor(ids))


def part_of(batch: Batch, start: int, stop: int) -> Batch:
    views = {name: view[start:stop] for name, view in batch.views.items()}
    return Batch(views=views, labels=batch.labels[start:stop], sample_ids=batch.sample_ids[start:stop])


def double_batch(batch: Batch) -> Batch:
    views = {name: view.double() for name, view in batch.views.items()}
    return Batch(views=views, labels=batch.labels, sample_ids=batch.sample_ids)


def freeze_norms(model: AnyModule) -> AnyModule:
    """Training, but every batch norm on its running statistics: then images do not influence each other."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    return model


def train_step(model: Method, batch: Batch, lr: float = 0.05) -> dict[str, Tensor]:
    """Plain SGD with gradients averaged over ranks, as the engine does."""
    scalars = model(batch)
    model.zero_grad()
    scalars["loss"].backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                if world_size() > 1:
                    dist.all_reduce(parameter.grad)
                    parameter.grad /= world_size()
                parameter -= lr * parameter.grad
    model.after_step()
    return {name: scalar.detach() for name, scalar in scalars.items()}
