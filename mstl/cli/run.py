"""`mstl run`: a study, all of its runs, in the right order and on all devices."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from mstl.study.planned import StudyPlan
    from mstl.study.state import StudyState

LEAST_LINE_SECONDS = 1.0
WIDE = 200  # characters a line where nobody looks on


def _places(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    places = {}
    for value in values:
        name, sign, place = value.partition("=")
        if not (name and sign and place):
            raise click.BadParameter(f"{value!r} is not of the form NAME=DIR", context, parameter)
        places[name] = place
    return places


@click.command("run", context_settings={"show_default": True})
@click.argument("study", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the study.  [default: runs/NAME]")
@click.option("--data", multiple=True, metavar="NAME=DIR|URL", callback=_places, help="Another shard set for a name.")
@click.option(
    "--only", multiple=True, metavar="PATTERN", help="Nodes by name or id, `*` as in a shell, and what they need."
)
@click.option(
    "--dry-run", is_flag=True, help="Check everything, show the graph and the time it will take; run nothing."
)
@click.option(
    "--per-node",
    type=click.Choice(["one", "all"]),
    default="one",
    help="A GPU for each node, nodes beside each other; or all GPUs for one node at a time.",
)
@click.option("--jobs", type=click.IntRange(1), help="Nodes at a time on the CPU, which share its cores.  [default: 1]")
@click.option("--any-code", is_flag=True, help="Take nodes as finished that another version of the code has finished.")
@click.option(
    "--log-seconds",
    type=click.FloatRange(LEAST_LINE_SECONDS, 1e6),
    default=30.0,
    metavar="SECONDS",
    help="Between progress lines where stderr is no terminal.",
)
def command(
    study: Path,
    out: Path | None,
    data: dict[str, str],
    only: tuple[str, ...],
    dry_run: bool,
    per_node: str,
    jobs: int | None,
    any_code: bool,
    log_seconds: float,
) -> None:
    """Train, evaluate and measure all that STUDY (a TOML file) describes: networks x sources x methods x seeds.

    \b
    mstl run studies/paper.toml --dry-run           the graph, what is done, how long the rest takes
    mstl run studies/local.toml --jobs 2            two nodes at a time
    mstl run studies/local.toml --only 'finetune_*'
    mstl report runs/local

    Every node is known by what it is made of: recipe, data, first weights, seed and code. What is finished is skipped;
    what was killed continues; where something changed, the node and all that stands on it run anew beside the old
    ones. A node that fails is reported at the end and tried again by the next `mstl run`; only what stands on it waits.
    To do a node once more, remove its folder. Ctrl-C and SIGTERM: running trainings save; the same command continues.

    \b
    OUT/study.json                          how everything stands
    OUT/runs/NODE/NETWORK/sSEED-DIGEST/     ordinary runs; .log beside it is their output
    OUT/leep/NODE/NETWORK/sSEED-DIGEST/     LEEP measurements

    Exit code 0: all finished; 1: a node failed; 130, 143: stopped.
    """
    from mstl.study.devices import make_slots
    from mstl.study.preflight import plan_study
    from mstl.study.runner import run_study
    from mstl.study.screen import StudyScreen
    from mstl.study.spec import read_study
    from mstl.study.state import StudyState
    from mstl.watching.stream import Stream

    file = read_study(study, data)
    slots = make_slots("all" if per_node == "all" else "one", jobs)
    plan = plan_study(file, out or Path("runs") / file.study.name, ranks=slots[0].ranks, any_code=any_code)
    state = StudyState.open(plan)
    chosen = _chosen(plan, only)
    if dry_run:
        _show(plan, state, chosen, len(slots))
        return
    screen = StudyScreen(plan, state, chosen, slots=len(slots), every_seconds=log_seconds, stream=Stream())
    try:
        code = run_study(plan, state, slots, chosen, screen)
    finally:
        screen.close()
    _summarise(plan, state, chosen)
    sys.exit(code)


def _chosen(plan: StudyPlan, only: tuple[str, ...]) -> set[str]:
    from shards.errors import MstlError

    for pattern in only:
        if not plan.graph.chosen([pattern]):
            names = ", ".join(dict.fromkeys(planned.node.spec.name for planned in plan.nodes.values()))
            raise MstlError(
                f"--only {pattern}", why="no node fits it", remedy=f"Nodes are NAME/NETWORK/sSEED of {names}"
            )
    return plan.graph.chosen(only)


def _show(plan: StudyPlan, state: StudyState, chosen: set[str], slots: int) -> None:
    from collections import Counter

    from rich.console import Console
    from rich.text import Text

    from mstl.study.estimate import step_seconds
    from mstl.study.screen import counts_text, graph_tree, left_text

    console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDE)
    console.print(graph_tree(plan, state, chosen))
    counts = Counter(state.states[name].state for name in chosen)
    console.print(Text.assemble(f"{len(chosen)} nodes: ", counts_text(counts)))
    at_once = "one node at a time" if slots == 1 else f"{slots} nodes at a time"
    console.print(f"{left_text(plan, state, chosen, slots, step_seconds(plan.out))}, {at_once}", markup=False)


def _summarise(plan: StudyPlan, state: StudyState, chosen: set[str]) -> None:
    """Where it stands, and each failure with its log."""
    from collections import Counter

    from mstl.study.screen import counts_text

    counts = Counter(state.states[name].state for name in chosen)
    click.echo(f"{plan.study.name}: {counts_text(counts).plain} -> {plan.out}", err=True)
    for name in plan.nodes:
        error = state.states[name].error
        if state.states[name].state == "failed" and error is not None:
            click.echo(f"Error: {error.what}: {error.why}. Log: {plan.out / error.log}", err=True)
