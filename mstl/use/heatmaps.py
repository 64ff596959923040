"""Where the network looks, as one PNG for each image."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mstl.evaluation.explain_grid import HeatColumn, Shown, heatmap_grid, plain_images
from mstl.evaluation.explain_maps import attention_map, grad_cam, has_attention
from mstl.evaluation.explain_measure import ATTENTION, CAM
from mstl.use.images import Sound
from mstl.use.network import Network


@dataclass(frozen=True, slots=True)
class Maps:
    """An image as the network saw it, [3, H, W], and its heatmaps [h, w] by name for one class."""

    x: Tensor
    explained: int
    heats: dict[str, Tensor]


def draw_maps(network: Network, x: Tensor, probabilities: Tensor) -> tuple[dict[str, Tensor], list[int]]:
    """Every map [B, h, w] that the network has, for the positive of two classes, else for the most probable one."""
    classes = probabilities.argmax(1) if network.positive is None else torch.full((len(x),), network.positive)
    x = x.contiguous()
    heats = {CAM: grad_cam(network.classifier, x, classes.to(x.device))}
    if has_attention(network.classifier):
        heats[ATTENTION] = attention_map(network.classifier, x)
    return heats, classes.tolist()


def picture(network: Network, image: Sound, probabilities: tuple[float, ...], maps: Maps) -> bytes:
    """The image, and each map by itself and laid over it, as PNG."""
    name = network.record.classes[maps.explained]
    row = Shown(
        name=f"P({_short(name, 12)})\n= {probabilities[maps.explained]:.3f}", image=plain_images(maps.x[None])[0]
    )
    columns = [HeatColumn(name=kind, maps=heat[None]) for kind, heat in maps.heats.items()]
    title = f"{_short(Path(image.named.name).name, 40)}: what speaks for {name} ({network.record.model})"
    return heatmap_grid([row], columns, title=title)


def heatmap_files(folder: Path | None, images: Sequence[Sound]) -> list[Path | None]:
    """Where each heatmap goes; images of one name in several folders get numbers."""
    if folder is None:
        return [None] * len(images)
    taken: set[str] = set()
    files: list[Path | None] = []
    for image in images:
        path = image.named.path
        frame = re.search(r", frame (\d+)$", image.named.name)
        stem = path.stem + (f"-frame-{int(frame[1]):04d}" if frame else "")
        name, number = stem, 1
        while name in taken:
            number += 1
            name = f"{stem}-{number}"
        taken.add(name)
        files.append(folder / f"{name}-heatmap.png")
    return files


def _short(name: str, longest: int) -> str:
    return name if len(name) <= longest else name[: longest - 1] + "…"
