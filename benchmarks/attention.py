"""Self-attention at the network's positions, by each backend, against the limits of the device.

Run with `mstl bench attention` or `python -m benchmarks.attention`; README.md says what the figures mean.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
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
    import torch

PACKAGES = ("mstl", "torch")
RESULTS = Path(__file__).parent / "results"
POSITIONS = ("res2", "res3", "res4", "res5")
BACKENDS = ("eager", "sdpa", "fused")
DEFAULTS = {"cpu": (2, "float32"), "cuda": (256, "bf16")}
"""Images and dtype where none are named."""


@click.command("attention", context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--position", "positions", multiple=True, type=click.Choice(POSITIONS), default=("res3", "res4", "res5"),
              help="Behind which stage the layer stands; repeatable.")  # fmt: skip
@click.option("--backend", "backends", multiple=True, type=click.Choice(BACKENDS), default=BACKENDS,
              help="What computes it; repeatable.")  # fmt: skip
@click.option("--dtype", "dtypes", multiple=True, type=click.Choice(["float32", "bf16", "fp16"]),
              help="Repeatable.  [default: float32 on a CPU, bf16 on a GPU]")  # fmt: skip
@click.option("--batch", type=click.IntRange(1), help="Images.  [default: 2 on a CPU, 256 on a GPU]")
@click.option("--image-size", type=click.IntRange(32, 1024), default=224, metavar="PIXELS", help="Side of an image.")
@click.option("--device", "device_name", type=click.Choice(["auto", "cpu", "cuda"]), default="auto",
              help="auto: the GPU if there is one.")  # fmt: skip
@click.option("--rounds", type=click.IntRange(1), default=9, help="Turns of each backend.")
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE",
              help="The JSON; a PNG beside it.  [default: benchmarks/results/attention-TIME.json]")  # fmt: skip
def command(
    positions: tuple[str, ...], backends: tuple[str, ...], dtypes: tuple[str, ...], batch: int | None, image_size: int,
    device_name: str, rounds: int, out: Path | None,
) -> None:  # fmt: skip
    """Measure self-attention by each backend against the device's own limits.

    Copies and matrix products are measured first: from them and the shapes comes the least time that each step could
    take. Backends take turns.

    \b
    Examples:
      mstl bench attention                                   res3, res4, res5 at 224 px
      mstl bench attention --image-size 96 --batch 8 --position res3
      mstl bench attention --dtype bf16 --dtype fp16         on a GPU
    """
    hush()
    from benchmarks import attention_cases, attention_chart, attention_show, roofline
    from mstl.cli.progress import rich_progress

    on = _device(device_name)
    date, hardware = datetime.now(UTC), machine.hardware()
    out = out or RESULTS / f"attention-{date:%Y%m%dT%H%M%SZ}.json"
    machine.require_writable(out)
    images, dtype = DEFAULTS[on.type]
    images, dtypes = batch or images, dtypes or (dtype,)
    body: dict[str, Any] = {
        "benchmark": "attention",
        "date": date.isoformat(timespec="seconds"),
        "hardware": hardware,
        "versions": machine.versions(PACKAGES),
        **_about(on),
        "settings": {"positions": positions, "backends": backends, "dtypes": dtypes, "batch": images,
                     "image_size": image_size, "rounds": rounds},
        "ceilings": {},
        "cases": [],
    }  # fmt: skip
    with roofline.enough_memory(), rich_progress() as progress:
        progress.start(len(dtypes) * (1 + len(positions)), "measuring")
        for name in dtypes:
            ceilings = roofline.measure_ceilings(on, roofline.DTYPES[name])
            body["ceilings"][name] = asdict(ceilings)
            progress.advance()
            for position in positions:
                case = attention_cases.Case(position=position, image_size=image_size, images=images, dtype=name)
                found: Mapping[str, Any] = attention_cases.measure(case, backends, on, ceilings, rounds)
                chosen = attention_cases.chosen(case, on)
                body["cases"].append({**asdict(case), "shape": asdict(case.shape), "chosen": chosen, **found})
                progress.advance()
    body["targets"] = attention_show.targets(body)
    write_atomic(out, (json.dumps(body, indent=1) + "\n").encode())
    attention_chart.draw(body, out.with_suffix(".png"))
    attention_show.show(body)
    click.echo(f"Wrote {out} and {out.with_suffix('.png').name}")


def _device(name: str) -> torch.device:
    import torch

    found = torch.cuda.is_available()
    if name == "cuda" and not found:
        raise MstlError("--device cuda", why="torch finds no GPU here", remedy="Leave it out, or name cpu")
    return torch.device("cpu" if name == "cpu" or not found else "cuda")


def _about(on: torch.device) -> dict[str, Any]:
    import torch

    name = torch.cuda.get_device_name(on) if on.type == "cuda" else f"CPU, threads: {torch.get_num_threads()}"
    return {"device": name, "device_type": on.type}


if __name__ == "__main__":
    exit_with(lambda: command.main(standalone_mode=False))
