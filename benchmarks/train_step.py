"""A training step of our networks under our engine, against the same training as tutorials write it.

Run with `mstl bench train` or `python -m benchmarks.train_step`, the latter under torchrun or deepspeed too; README.md
says what the figures mean. All sides live in the same processes and take turns.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from benchmarks import machine
from benchmarks.hush import hush
from mstl.cli.boundary import exit_with
from shards.errors import MstlError
from shards.files import write_atomic

if TYPE_CHECKING:
    from benchmarks.train_sides import Settings

PACKAGES = ("mstl", "torch", "torchvision", "deepspeed", "nvidia-dali-cuda130")
RESULTS = Path(__file__).parent / "results"
SIDES = ("mstl", "compiled", "nchw", "compiled-nchw", "plain")
MOST_EXPORTED = 20_000
LEAST_BATCH = 2  # of a rank: batch norms need more than one image
_DEFAULTS = {"cpu": {"batch": 8, "size": 96, "steps": 2}, "cuda": {"batch": 256, "size": 224, "steps": 20}}


@click.command("train", context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--model", "models", multiple=True, default=("resnet50-attn0", "resnet50-attn5"), metavar="NAME",
              help="A network; repeatable.")  # fmt: skip
@click.option("--stage", type=click.Choice(["stl_n", "sstl_m"]), default="stl_n",
              help="Supervised, or momentum contrast of two views.")  # fmt: skip
@click.option("--ssl", type=click.Choice(["moco", "moco_v2", "ours"]), help="The method of sstl_m.  [default: moco]")
@click.option("--side", "sides", multiple=True, type=click.Choice(SIDES), default=("mstl", "plain"),
              help="What to measure; repeatable.")  # fmt: skip
@click.option("--ranks", "worlds", multiple=True, type=click.IntRange(1), default=(1,),
              help="Processes on this machine; repeatable. A launcher's ranks are taken as they are.")  # fmt: skip
@click.option("--strong", is_flag=True, help="Also share --batch among the ranks, where there are several.")
@click.option("--batch", type=click.IntRange(LEAST_BATCH), help="Images a rank.  [default: 8 on a CPU, 256 on a GPU]")
@click.option("--size", type=click.IntRange(32), help="Side of an image.  [default: 96 on a CPU, 224 on a GPU]")
@click.option("--shards", type=click.Path(path_type=Path), metavar="DIR",
              help="Train on the images of this set too, not on noise alone.")  # fmt: skip
@click.option("--images", type=click.Path(path_type=Path), metavar="DIR",
              help="The same images in class folders, for the plain side.  [default: from the shards]")  # fmt: skip
@click.option("--workers", type=click.IntRange(1), default=2, help="DALI threads a rank; worker processes of the peer.")
@click.option("--turns", type=click.IntRange(1), default=7, help="Of every side.")
@click.option("--steps", type=click.IntRange(1), help="In a turn.  [default: 2 on a CPU, 20 on a GPU]")
@click.option("--set", "overrides", multiple=True, metavar="SECTION.FIELD=VALUE", help="Change the recipe; repeatable.")
@click.option("--profile", is_flag=True, help="Show where our step goes; a trace for each network beside --out.")
@click.option("--beside", multiple=True, type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="FILE",
              help="An earlier result on another number of ranks, for the scaling table; repeatable.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE",
              help="The JSON to write.  [default: benchmarks/results/train-TIME.json]")  # fmt: skip
def command(
    models: tuple[str, ...], stage: str, ssl: str | None, sides: tuple[str, ...], worlds: tuple[int, ...], strong: bool,
    batch: int | None, size: int | None, shards: Path | None, images: Path | None, workers: int, turns: int,
    steps: int | None, overrides: tuple[str, ...], profile: bool, beside: tuple[Path, ...], out: Path | None,
) -> None:  # fmt: skip
    """Measure a training step: our engine in its variants, and a plain loop of DDP, DataLoader and AMP.

    \b
    Examples:
      mstl bench train                                       resnet50 without and with attention, on noise
      mstl bench train --shards data/shards/imagenet --profile
      mstl bench train --stage sstl_m --set loss.queue_size=65536
      mstl bench train --ranks 1 --ranks 2 --strong          scaling on one machine
      torchrun --nproc-per-node 8 -m benchmarks.train_step   ranks of a launcher, on any number of nodes
    """
    hush()
    from benchmarks import train_ranks, train_show
    from mstl.recipes import SELF_SUPERVISED, settle_ssl

    device, kind = _device()
    given = _DEFAULTS[kind]
    method = settle_ssl(stage, ssl or ("moco" if stage == SELF_SUPERVISED else None))
    settings = _settings(
        models=models, stage=stage, ssl=method, sides=sides, size=size or given["size"],
        batch=batch or given["batch"], workers=workers, turns=turns, steps=steps or given["steps"], shards=shards,
        images=images, overrides=overrides,
    )  # fmt: skip
    launched = train_ranks.launched()
    first = not launched or os.environ["RANK"] == "0"
    date, hardware = datetime.now(UTC), machine.hardware()
    out = out or RESULTS / f"train-{date:%Y%m%dT%H%M%SZ}.json"
    if first:
        machine.require_writable(out)
    counts = (int(os.environ["WORLD_SIZE"]),) if launched else tuple(sorted(set(worlds)))
    earlier = [_earlier(path, settings, device) for path in beside]
    notes: list[str] = []
    with ExitStack() as stack:
        settings = stack.enter_context(_checked(settings, counts, strong, launched, notes))
        found = _worlds(settings, counts, strong, launched, out.parent if profile else None)
    if not first:
        return
    body: dict[str, Any] = {
        "benchmark": "train",
        "date": date.isoformat(timespec="seconds"),
        "hardware": hardware,
        "versions": machine.versions(PACKAGES),
        "settings": {**asdict(settings), "shards": None if shards is None else shards.name, "images": None},
        "notes": notes,
        "worlds": found,
    }
    body["scaling"] = train_show.scaling([*(world for other in earlier for world in other["worlds"]), *found])
    body["targets"] = train_show.targets(body)
    write_atomic(out, (json.dumps(body, indent=1) + "\n").encode())
    train_show.show(body)
    click.echo(f"Wrote {out}")


def _worlds(
    settings: Settings, counts: Sequence[int], strong: bool, launched: bool, traces: Path | None
) -> list[dict[str, Any]]:
    """Every number of ranks with the same images a rank, then the larger ones with the same images in all."""
    from benchmarks import train_ranks
    from benchmarks.ranks import on_ranks
    from mstl.cli.progress import rich_progress

    shared = [replace(settings, batch=settings.batch // ranks) for ranks in counts if strong and ranks > 1]
    if launched:
        found = train_ranks.measure_here([settings, *shared], traces)
    else:
        alike = [(ranks, settings, traces if ranks == counts[0] else None) for ranks in counts]
        more = [(ranks, each, None) for ranks, each in zip([n for n in counts if n > 1], shared, strict=False)]
        found = []
        with rich_progress() as progress:
            progress.start(len(alike) + len(more), "measuring")
            for ranks, each, wanted in (*alike, *more):
                found.append(on_ranks(ranks, train_ranks.measure, each, wanted)[0])
                progress.advance()
    alike_count = len(found) - len(shared)
    return [{"scaling": "weak" if number < alike_count else "strong", **world} for number, world in enumerate(found)]


def _device() -> tuple[str, str]:
    """Name and type of what is trained on."""
    import torch

    return (torch.cuda.get_device_name(), "cuda") if torch.cuda.is_available() else ("CPU", "cpu")


def _settings(**values: Any) -> Settings:
    from benchmarks.train_sides import Settings
    from mstl.models.names import full_name

    named = {name: None if values[name] is None else str(values[name]) for name in ("shards", "images")}
    models = tuple(dict.fromkeys(full_name(name) for name in values["models"]))
    return Settings(**{**values, **named, "models": models, "sides": tuple(dict.fromkeys(values["sides"]))})


@contextmanager
def _checked(
    settings: Settings, counts: Sequence[int], strong: bool, launched: bool, notes: list[str]
) -> Iterator[Settings]:
    """What can be found wrong before ranks are started is; images are taken out of the shards where that is needed."""
    from torch import nn

    from benchmarks import loader_data
    from benchmarks.train_sides import PLAIN, no_peer, settle
    from launch.compiling import compile_networks
    from shards.schema import load_manifest

    if any("compiled" in side for side in settings.sides):
        compile_networks(nn.Module())  # whether there is a compiler
    reason = no_peer(settings)
    if PLAIN in settings.sides and reason is not None:
        notes.append(f"no plain side: {reason}")
        settings = replace(settings, sides=tuple(side for side in settings.sides if side != PLAIN))
        if not settings.sides:
            raise MstlError("--side plain", why=reason, remedy="Measure --side mstl")
    settle(settings, max(counts))
    if strong and settings.batch // max(counts) < LEAST_BATCH:
        raise MstlError(
            f"--batch {settings.batch} --strong",
            why=f"shared among {max(counts)} ranks it leaves less than {LEAST_BATCH} images for each",
            remedy="Name a larger batch, or leave --strong out",
        )
    if settings.shards is None:
        if settings.images is not None:
            raise MstlError("--images", why="it goes with --shards", remedy="Name the shard set of these images too")
        yield settings
        return
    samples = load_manifest(Path(settings.shards)).samples("train")
    if samples < settings.batch * max(counts):
        raise MstlError(f"--shards {settings.shards}", why=f"{samples} images do not fill a batch of all ranks",
                        remedy="Name a larger set, or a smaller --batch")  # fmt: skip
    if settings.images is not None or PLAIN not in settings.sides:
        yield settings
        return
    if launched or samples > MOST_EXPORTED:
        notes.append("the plain side has no real images: name their class folders with --images")
        yield settings
        return
    with tempfile.TemporaryDirectory(prefix="mstl-bench-") as folder:
        loader_data.export_images(Path(settings.shards), Path(folder))
        yield replace(settings, images=folder)


def _earlier(path: Path, settings: Settings, device: str) -> dict[str, Any]:
    """An earlier result of the same training; raises MstlError where it is of another."""
    try:
        body: dict[str, Any] = json.loads(path.read_text())
        same = body["benchmark"] == "train" and all(
            body["settings"][name] == getattr(settings, name) for name in ("stage", "ssl", "size", "batch")
        )
        same = same and all(body["settings"][name] == list(getattr(settings, name)) for name in ("models", "overrides"))
        fits = same and body["worlds"][0]["device"] == device
    except (OSError, ValueError, LookupError, TypeError):
        fits = False
    if not fits:
        raise MstlError(
            f"--beside {path}",
            why="it is no result of this training with these networks, --size, --batch and --set on such a device",
            remedy="Name a JSON that the same command wrote on another number of ranks",
        )
    return body


if __name__ == "__main__":
    exit_with(lambda: command.main(standalone_mode=False))
