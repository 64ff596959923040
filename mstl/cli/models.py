"""`mstl models`: the networks and what they cost."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from mstl.models.cost import Cost


@click.command("models")
@click.option("--image-size", type=click.IntRange(32, 1024), default=224, show_default=True, metavar="PIXELS",
              help="Side of the image.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print all of it as JSON, part by part.")
def command(image_size: int, as_json: bool) -> None:
    """List the networks: parameters, FLOPs of an image, attention's share of them, activations kept for backward.

    Without the classifier. A multiplication and an addition count two FLOPs; norms, softmax and pooling none. All of it
    is arithmetic on the shapes: nothing is run.

    \b
    Examples:
      mstl models
      mstl models --image-size 96 --json
    """
    from mstl.models.cost import network_cost
    from mstl.models.names import backbone_names, full_name

    names = dict.fromkeys(full_name(name) for name in backbone_names())
    costs = [network_cost(name, image_size) for name in names]
    if as_json:
        click.echo(json.dumps([_tree(cost) for cost in costs], indent=1))
    else:
        _show(costs, image_size)


def _tree(cost: Cost) -> dict[str, object]:
    return {
        **asdict(cost),
        "parameters": cost.parameters,
        "forward_flops": cost.forward_flops,
        "training_flops": cost.training_flops,
        "attention_share": cost.attention_share,
        "kept_bytes": cost.kept_bytes,
    }


def _show(costs: list[Cost], image_size: int) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f"Networks, for one image of {image_size} px",
        caption="attention: share of the forward GFLOP; kept: activations in float32, eager attention; "
        "resnet50 alone means resnet50-attn0",
    )
    for title in ("network", "parameters", "GFLOP", "GFLOP training", "attention", "MB kept"):
        table.add_column(title, justify="left" if title == "network" else "right")
    depth = ""
    for cost in costs:
        if depth and not cost.network.startswith(depth):
            table.add_section()
        depth = cost.network.partition("-")[0]
        table.add_row(
            cost.network, f"{cost.parameters / 1e6:,.2f} M", f"{cost.forward_flops / 1e9:,.2f}",
            f"{cost.training_flops / 1e9:,.2f}", f"{cost.attention_share:.1%}", f"{cost.kept_bytes / 1e6:,.1f}",
        )  # fmt: skip
    Console().print(table)
