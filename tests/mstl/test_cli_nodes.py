"""The options of `mstl train` for many nodes: what the launcher is told, and what is refused before it starts."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from deepspeed.launcher import runner

from mstl.cli.nodes import PORT, Nodes, launcher_words
from mstl.cli.train import launcher_command
from shards.errors import MstlError


@pytest.fixture
def hostfile(tmp_path: Path) -> Path:
    file = tmp_path / "hostfile"
    file.write_text("node0 slots=8\nnode1 slots=4\n")
    return file


def test_a_node_is_told_its_place_in_words_that_deepspeed_knows(hostfile: Path) -> None:
    words = launcher_command({"stage": "stl_n"}, None, Nodes(hostfile=hostfile, node_rank=1))
    parsed = runner.parse_args(words[words.index("deepspeed.launcher.runner") + 1 :])
    assert (parsed.hostfile, parsed.node_rank, parsed.no_ssh) == (str(hostfile), 1, True)
    assert (parsed.master_addr, parsed.master_port) == ("node0", PORT)
    assert parsed.user_script.endswith("launch/train.py") and parsed.user_args == ["--stage", "stl_n"]
    assert runner.fetch_hostfile(parsed.hostfile) == {"node0": 8, "node1": 4}


def test_the_meeting_place_can_be_named(hostfile: Path) -> None:
    words = launcher_words(Nodes(hostfile=hostfile, node_rank=0, master_addr="10.0.0.1", master_port=4000), None)
    parsed = runner.parse_args([*words, "script"])
    assert (parsed.master_addr, parsed.master_port, parsed.node_rank) == ("10.0.0.1", 4000, 0)


def test_without_a_rank_the_nodes_are_started_from_here(hostfile: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:  # fmt: skip  # noqa: E501
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MstlError, match=r"pdsh.* is not installed\. Install it, or run this command on every node"):
        launcher_words(Nodes(hostfile=hostfile), None)
    (tmp_path / "pdsh").touch(mode=0o755)
    parsed = runner.parse_args([*launcher_words(Nodes(hostfile=hostfile), None), "script"])
    assert not parsed.no_ssh and parsed.no_ssh_check and parsed.launcher == "pdsh"


def test_a_rank_beyond_the_hostfile(hostfile: Path) -> None:
    with pytest.raises(MstlError, match=r"names 2 nodes\. Number the nodes from 0 to 1"):
        launcher_words(Nodes(hostfile=hostfile, node_rank=2), None)


@pytest.mark.parametrize(
    ("nodes", "ranks", "says"),
    [
        (Nodes(node_rank=0), None, "belong to --hostfile"),
        (Nodes(master_port=1), None, "belong to --hostfile"),
        (Nodes(hostfile=Path("hostfile")), 4, "--ranks is for this machine alone"),
    ],
)
def test_options_that_contradict_each_other(nodes: Nodes, ranks: int | None, says: str) -> None:
    with pytest.raises(click.UsageError, match=says):
        launcher_words(nodes, ranks)


def test_a_hostfile_that_is_missing_does_not_train_on_this_machine_alone(tmp_path: Path) -> None:
    with pytest.raises(MstlError, match="cannot be read"):
        launcher_words(Nodes(hostfile=tmp_path / "missing", node_rank=0), None)
