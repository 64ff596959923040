"""Small models and batches for the tests of momentum contrast."""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mstl.distributed import world_size
from mstl.models.registry import build_backbone
from mstl.ssl.moco import REGIONS, MomentumContrast
from pipelines.batch import Batch


def make_model(name: str = "resnet14", **options: float | str) -> MomentumContrast:
    torch.manual_seed(3)
    settings: dict[str, object] = {"dim": 16, "queue_size": 6, "temperature": 0.2, "alpha1": 0.7, "alpha2": 0.3}
    return MomentumContrast(build_backbone(name), **{**settings, **options})


def make_batch(ids: list[int], seed: int) -> Batch:
    """Images that depend on the seed and their place; regions differ so that they can be told apart."""
    generator = torch.Generator().manual_seed(seed)
    views = {name: torch.randn(len(ids), 3, 32, 32, generator=generator) for name in ("q", "k", *REGIONS)}
    return Batch(views=views, labels=torch.zeros(len(ids), dtype=torch.long), sample_ids=torch.tensor(ids))


def part_of(batch: Batch, start: int, stop: int) -> Batch:
    views = {name: view[start:stop] for name, view in batch.views.items()}
    return Batch(views=views, labels=batch.labels[start:stop], sample_ids=batch.sample_ids[start:stop])


def freeze_norms(model: nn.Module) -> MomentumContrast:
    """Training, but every batch norm on its running statistics: then images do not influence each other."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    assert isinstance(model, MomentumContrast)
    return model


def train_step(model: MomentumContrast, batch: Batch, lr: float = 0.05) -> dict[str, Tensor]:
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
