"""What `mstl train` answers before it starts any process: names, paths, weights, batches."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from mstl.cli import train
from mstl.models.registry import build_backbone
from mstl.weights import save_weights
from shards.errors import MstlError

REPO = Path(__file__).parents[2]


class Malicious:
    def __reduce__(self) -> Any:
        return os._exit, (99,)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of weights: of another network, of code, and of the network itself with the attention left out."""
    folder = tmp_path_factory.mktemp("weights")
    save_weights(folder / "resnet26.safetensors", build_backbone("resnet26").state_dict())
    save_weights(folder / "resnet14.safetensors", build_backbone("resnet14").state_dict())
    torch.save({"weight": Malicious()}, folder / "code.pth")
    return folder


def invoke(sets: Path, out: Path, *more: str) -> Any:
    words = ["--stage", "finetune", "--model", "resnet14-attn1", "--shards", str(sets / "covid19-ct"),
             "--out", str(out), "--init-from", "none", "--set", "data.batch_size=8", "--ranks", "2", *more]  # fmt: skip
    return CliRunner().invoke(train.command, words, standalone_mode=False)


@pytest.fixture
def nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    class Started(AssertionError):
        pass

    def launcher(script: str) -> None:
        raise Started

    monkeypatch.setattr(train, "Launcher", launcher)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--model", "resnet9"), "network 'resnet9': there is no network of this name. Choose from resnet14"),
        (("--shards", "absent"), "Make it with: mstl shard --src covid19-ct --out absent"),
        (("--init-from", "absent"), "--init-from absent: there is no such run or file"),
        (("--init-from", "{weights}/resnet26.safetensors"), "as in resnet26: the weights do not fit resnet14-attn1"),
        (("--init-from", "{weights}/code.pth"), "it is a pickle of more than tensors"),
        (("--set", "data.batch_size=9"), "data.batch_size 9: it cannot be shared equally by 2 ranks"),
        (("--set", "data.batch_size=2"), "batch normalisation needs two"),
        (("--set", "optim.lr=fast"), "optim.lr takes a number above 0"),
        (("--resume", "must"), "there is no run there"),
    ],
)
@pytest.mark.usefixtures("nothing_starts")
def test_what_is_wrong_is_said_before_anything_starts(
    sample_sets: Path, weights: Path, tmp_path: Path, more: tuple[str, ...], says: str
) -> None:
    result = invoke(sample_sets, tmp_path / "run", *(word.format(weights=weights) for word in more))
    assert isinstance(result.exception, MstlError), result
    assert says in str(result.exception)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("origin", ["none", "{weights}/resnet14.safetensors"])
@pytest.mark.usefixtures("nothing_starts")
def test_what_is_right_is_started(sample_sets: Path, weights: Path, tmp_path: Path, origin: str) -> None:
    result = invoke(sample_sets, tmp_path / "run", "--init-from", origin.format(weights=weights))
    assert type(result.exception).__name__ == "Started"


def test_names_paths_and_batches_need_no_torch(sample_sets: Path, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from mstl.cli.beforehand import check_job\n"
        "job = check_job({'stage': 'finetune', 'init_from': 'none', 'out': Path(sys.argv[1]),\n"
        "                 'shards': Path(sys.argv[2]), 'overrides': ['data.batch_size=8']}, 2)\n"
        "print(job.finished, sorted({'torch', 'nvidia.dali', 'deepspeed', 'matplotlib'} & set(sys.modules)))\n"
    )
    words = [str(tmp_path / "run"), str(sample_sets / "covid19-ct")]
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=REPO, capture_output=True, text=True, check=True)
    assert done.stdout == "False []\n"
