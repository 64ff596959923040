"""The options of `mstl train` for many nodes, in the words of the deepspeed launcher."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import click

from mstl.cli.store_options import Command, with_options
from mstl.hostfile import read_hostfile
from shards.errors import MstlError

PORT = 29600  # every node must name the same one, so it cannot be one that was found free

_OPTIONS = (
    click.option("--hostfile", type=click.Path(path_type=Path), metavar="FILE",
                 help="Train on these nodes: a line `NODE slots=PROCESSES` for each."),
    click.option("--node-rank", type=click.IntRange(0), metavar="N",
                 help="This node's line in the hostfile, from 0: start the command on every node.  "
                 "[default: start the nodes from here, through pdsh]"),
    click.option("--master-addr", metavar="HOST",
                 help="Where the nodes meet.  [default: the first of the hostfile]"),
    click.option("--master-port", type=click.IntRange(1, 65535), help=f"The port of that.  [default: {PORT}]"),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Nodes:
    """What the options say; `hostfile` None is this machine alone, `node_rank` None starts all nodes from here."""

    hostfile: Path | None = None
    node_rank: int | None = None
    master_addr: str | None = None
    master_port: int | None = None


def node_options(command: Command) -> Command:
    """Add the options to a click command; they arrive as the fields of Nodes."""
    return with_options(command, _OPTIONS)


def launcher_words(nodes: Nodes, ranks: int | None) -> list[str]:
    """The launcher's options for a job on many nodes; raises MstlError where it would misunderstand them."""
    if nodes.hostfile is None:
        raise click.UsageError("--node-rank, --master-addr and --master-port belong to --hostfile.")
    if ranks is not None:
        raise click.UsageError("--ranks is for this machine alone; slots= in the hostfile says it for every node.")
    hosts = read_hostfile(nodes.hostfile)
    words = ["--hostfile", str(nodes.hostfile), "--master_addr", nodes.master_addr or hosts[0].name]
    words += ["--master_port", str(nodes.master_port or PORT)]
    if nodes.node_rank is not None:
        if nodes.node_rank >= len(hosts):
            raise MstlError(
                f"--node-rank {nodes.node_rank}",
                why=f"{nodes.hostfile} names {len(hosts)} nodes",
                remedy=f"Number the nodes from 0 to {len(hosts) - 1}, in its order",
            )
        return [*words, "--no_ssh", "--node_rank", str(nodes.node_rank)]
    if shutil.which("pdsh") is None:
        raise MstlError(
            f"--hostfile {nodes.hostfile}",
            why="pdsh, which starts the nodes from here, is not installed",
            remedy="Install it, or run this command on every node with --node-rank 0, 1, ...",
        )
    # Its check asks the first node alone and answers with a traceback; pdsh names every node that it cannot reach.
    return [*words, "--no_ssh_check", "--force_multi"]
