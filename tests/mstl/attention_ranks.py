"""A rank of those that settle on backends together; apart from the tests, so that it starts without DALI."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist

from mstl.models import choose
from mstl.models.attention import AttentionOptions
from mstl.models.registry import build_backbone
from mstl.models.resnet import ResNet
from shards.errors import MstlError


def fix(network: ResNet) -> dict[str, str]:
    return choose.fix_backends(network, device=torch.device("cpu"), dtype=torch.float32, image_size=224, batch=32)


def settle(index: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=index, world_size=2)
    # What this rank would take by itself differs from the other's.
    choose.choose_backend = lambda *_, **__: ("sdpa", "eager")[index]  # type: ignore[assignment]
    net = build_backbone("resnet14-attn1")
    found = fix(net)
    refused = ""
    try:
        fix(build_backbone("resnet14-attn1", AttentionOptions(backend="fused")))
    except MstlError as error:
        refused = str(error)
    applied = {name: layer.backend for name, layer in net.attention_layers()}
    torch.save({"found": found, "applied": applied, "refused": refused}, Path(folder) / f"{index}.pt")
    dist.destroy_process_group()
