"""The sides of the training benchmark: our engine in several ways, and the plain loop; each with what feeds it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.roofline import held_bytes
from benchmarks.train_plain import LR, PlainMoco, PlainTraining, Views, batches, plain_network
from launch.engine import DeepSpeedEngine
from mstl.build import settle_attention
from mstl.distributed import rank, world_size
from mstl.inputs import for_set, train_inputs
from mstl.models.names import DEPTHS, PLACEMENTS, full_name
from mstl.models.registry import attention_options, build_backbone
from mstl.recipes import ContrastiveLoss, Recipe, Ssl, build_recipe
from mstl.stages import STAGES, build_stage
from pipelines.batch import Batch
from pipelines.loader import Loader
from pipelines.recipe import Inputs
from shards.schema import Manifest, load_manifest

OURS, PLAIN = "mstl", "plain"
SIDES = (OURS, "compiled", "nchw", "compiled-nchw", PLAIN)
SYNTHETIC, REAL = "synthetic", "shards"
CLASSES = tuple(f"class {number}" for number in range(1000))
LEAD_STEPS = 5
"""Steps on real images that are not timed: queues that a loader filled while nobody drew from it run empty."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What is trained, on what: `batch` images a rank; `images`: class folders with those of `shards`, for the peer."""

    models: tuple[str, ...]
    stage: str
    ssl: Ssl | None
    sides: tuple[str, ...]
    size: int
    batch: int
    workers: int
    turns: int
    steps: int
    shards: str | None
    images: str | None
    overrides: tuple[str, ...]

    @property
    def feeds(self) -> tuple[str, ...]:
        return (SYNTHETIC,) if self.shards is None else (SYNTHETIC, REAL)


@dataclass(frozen=True, kw_only=True, slots=True)
class Side:
    """One way to train one network. feeds: "synthetic" and "shards" → batches without end for `step`.

    held: bytes of all tensors that live from step to step. engine, and backends of attention layers: of our own sides.
    """

    step: Callable[[Any], Tensor]
    feeds: dict[str, Callable[[], Generator[Any]]]
    held: Callable[[], int]
    engine: DeepSpeedEngine | None = None
    backends: dict[str, str] | None = None


def settle(settings: Settings, world: int, *, compiled: bool = False) -> Recipe:
    """The stage's recipe on so many ranks; raises MstlError for an override that does not fit."""
    supervised = () if settings.ssl else ("model.dropout=0", "data.random_resized_crop=true")
    return build_recipe(
        settings.stage,
        ssl=settings.ssl,
        overrides=[
            f"data.batch_size={settings.batch * world}", f"data.image_size={settings.size}",
            f"data.workers={settings.workers}", f"engine.compile={str(compiled).lower()}", *supervised,
            *settings.overrides,
        ],
    )  # fmt: skip


def no_peer(settings: Settings) -> str | None:
    """Why the plain side cannot do this training, None where it can."""
    return "nobody else trains region branches" if settings.ssl == "ours" else None


def build_side(name: str, model: str, settings: Settings, on: torch.device) -> Side:
    """A side with weights of seed 0."""
    torch.manual_seed(0)
    recipe = settle(settings, world_size(), compiled="compiled" in name)
    manifest = None if settings.shards is None else load_manifest(Path(settings.shards))
    classes = CLASSES if manifest is None else manifest.classes
    inputs = _inputs(settings, recipe, manifest)
    if name == PLAIN:
        return _plain(model, settings, recipe, inputs, len(classes), on)
    return _ours(name, model, settings, recipe, inputs, classes, on)


def _inputs(settings: Settings, recipe: Recipe, manifest: Manifest | None) -> Inputs:
    inputs = train_inputs(settings.stage, settings.ssl, recipe)
    if manifest is None:
        return inputs
    return for_set(inputs, recipe.data, modality=manifest.modality, deep=manifest.deep > 0)


def _ours(
    name: str, model: str, settings: Settings, recipe: Recipe, inputs: Inputs, classes: tuple[str, ...],
    on: torch.device,
) -> Side:  # fmt: skip
    backbone = build_backbone(model, attention_options(recipe.model))
    stage = build_stage(STAGES[settings.stage], backbone, recipe, classes, seed=0)
    backends = settle_attention(stage.module, recipe, on)
    # The engine has one memory format, the faster one; "nchw" is for comparison.
    memory = torch.contiguous_format if "nchw" in name else torch.channels_last
    engine = DeepSpeedEngine(stage.module, recipe, on, memory_format=memory)
    engine.module.train()

    def step(batch: Batch) -> Tensor:
        result = engine.update(batch, LR)
        if result.applied:
            stage.after_step()
        else:
            stage.skip_step()
        return result.losses["loss"]

    def held() -> int:
        return held_bytes([*_tensors(engine.module), *_state(engine.optimizer)])

    feeds: dict[str, Callable[[], Generator[Any]]] = {
        SYNTHETIC: partial(_synthetic, inputs.view_names, settings, len(classes), on, memory)
    }
    if settings.shards is not None:
        feeds[REAL] = partial(_from_shards, inputs, settings, on, memory)
    return Side(step=step, feeds=feeds, held=held, engine=engine, backends=backends)


def _plain(
    model: str, settings: Settings, recipe: Recipe, inputs: Inputs, classes: int, on: torch.device
) -> Side:  # fmt: skip
    depth, _, attention = full_name(model).partition("-")
    blocks, placed = list(DEPTHS[depth]), PLACEMENTS[attention]
    loss = recipe.loss
    network: nn.Module
    if isinstance(loss, ContrastiveLoss):
        encoder = plain_network(blocks, placed, loss.dim, hidden=loss.head == "mlp")
        network = PlainMoco(encoder, loss.dim, loss.queue_size, loss.momentum, loss.temperature)
    else:
        network = plain_network(blocks, placed, classes)
    training = PlainTraining(network, on)
    two = len(inputs.view_names) > 1
    generator = torch.Generator().manual_seed(rank())
    first = torch.randn(settings.batch, 3, settings.size, settings.size, generator=generator).to(on)
    second = (
        first.flip(3).contiguous() if two else torch.randint(classes, (settings.batch,), generator=generator).to(on)
    )
    feeds: dict[str, Callable[[], Generator[Any]]] = {SYNTHETIC: partial(_again, (first, second))}
    if settings.images is not None:
        feeds[REAL] = partial(batches, Path(settings.images), settings.size, settings.batch, settings.workers,
                              two_views=two)  # fmt: skip
    return Side(
        step=training.step,
        feeds=feeds,
        held=lambda: held_bytes([*_tensors(training.model), *_state(training.optimizer)]),
    )


def _again(pair: Views) -> Generator[Views]:
    while True:
        yield pair


def _synthetic(
    names: tuple[str, ...], settings: Settings, classes: int, on: torch.device, memory: torch.memory_format
) -> Generator[Batch]:
    """One batch of noise again and again, of other images each time where a queue remembers which they were."""
    generator = torch.Generator().manual_seed(rank())
    shape = (settings.batch, 3, settings.size, settings.size)
    batch = Batch(
        views={name: torch.randn(shape, generator=generator).to(on).contiguous(memory_format=memory) for name in names},
        labels=torch.randint(classes, (settings.batch,), generator=generator).to(on),
        sample_ids=torch.arange(settings.batch, device=on) + rank() * settings.batch,
    )
    for number in count():
        yield replace(batch, sample_ids=batch.sample_ids + number * settings.batch * world_size())


def _from_shards(inputs: Inputs, settings: Settings, on: torch.device, memory: torch.memory_format) -> Generator[Batch]:
    assert settings.shards is not None
    loader = Loader(
        inputs, Path(settings.shards), "train", rank=rank(), world=world_size(), batch=settings.batch * world_size(),
        epochs=sys.maxsize, device="gpu" if on.type == "cuda" else "cpu", device_id=on.index or 0, seed=0, shuffle=True,
        remainder="drop", threads=settings.workers,
    )  # fmt: skip
    try:
        while True:
            for batch in loader:
                if memory == torch.channels_last:
                    yield batch
                else:
                    yield replace(batch, views={name: x.contiguous() for name, x in batch.views.items()})
    finally:
        loader.close()


def _tensors(module: nn.Module) -> list[Tensor]:
    parameters = list(module.parameters())
    return [*parameters, *module.buffers(), *(p.grad for p in parameters if p.grad is not None)]


def _state(optimizer: Any) -> list[Tensor]:
    return [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
