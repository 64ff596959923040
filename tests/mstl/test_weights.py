"""Weights files: written whole, read from anywhere without running what is in them."""

from __future__ import annotations

import argparse
import io
import os
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from mstl.weights import load_weights, save_weights
from shards.errors import MstlError


def test_saved_weights_come_back_whatever_their_memory_format(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    tensor = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    tied = nn.Parameter(torch.randn(3))
    save_weights(path, {"a": tensor, "b": tied, "c": tied, "n": torch.tensor(7)})
    loaded = load_weights(path)
    assert loaded.keys() == {"a", "b", "c", "n"}
    assert torch.equal(loaded["a"], tensor)
    assert torch.equal(loaded["c"], tied)
    assert loaded["n"].item() == 7
    assert load_file(path).keys() == loaded.keys()
    assert [p.name for p in tmp_path.iterdir()] == ["weights.safetensors"]


def test_a_failed_save_leaves_the_good_file(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_weights(path, {"a": torch.ones(2)})
    with pytest.raises((TypeError, AttributeError)):
        save_weights(path, {"a": "no tensor"})
    assert torch.equal(load_weights(path)["a"], torch.ones(2))


@pytest.mark.parametrize("zipped", [True, False])
def test_the_tensors_of_a_training_checkpoint(tmp_path: Path, zipped: bool) -> None:
    weight, average = torch.ones(2), torch.zeros(2)
    body = {
        "epoch": 200,
        "arch": "resnet50",
        "args": argparse.Namespace(lr=0.03),
        "state_dict": {"module.a": weight, "blocks": [weight, average]},
        "optimizer": {"state": {0: {"momentum_buffer": torch.ones(9)}}, "param_groups": [{"lr": 0.03}]},
        "lr_schedulers": [{"base": torch.ones(1)}],
    }
    torch.save(body, tmp_path / "moco.pth.tar", _use_new_zipfile_serialization=zipped)
    loaded = load_weights(tmp_path / "moco.pth.tar")
    assert loaded.keys() == {"state_dict.module.a", "state_dict.blocks.0", "state_dict.blocks.1"}
    assert torch.equal(loaded["state_dict.module.a"], weight)
    assert torch.equal(loaded["state_dict.blocks.1"], average)


class Bomb:
    """Unpickled by the usual loader, it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.mark}",)


def _raw(path: Path, bomb: Bomb) -> None:
    path.write_bytes(pickle.dumps({"state_dict": bomb}))


def _zip(path: Path, bomb: Bomb) -> None:
    torch.save({"state_dict": {"a": torch.ones(1), "b": bomb}}, path)


def _legacy(path: Path, bomb: Bomb) -> None:
    torch.save({"a": bomb}, path, _use_new_zipfile_serialization=False)


def _tar(path: Path, bomb: Bomb) -> None:
    body = pickle.dumps(bomb)
    with tarfile.open(path, "w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            entry = tarfile.TarInfo(name)
            entry.size = len(body)
            archive.addfile(entry, io.BytesIO(body))


@pytest.mark.parametrize("make", [_raw, _zip, _legacy, _tar])
@pytest.mark.parametrize("name", ["w.pth", "w.pth.tar", "w.ckpt", "w.safetensors"])
def test_a_file_that_would_run_code_is_refused_unrun(
    tmp_path: Path, make: Callable[[Path, Bomb], None], name: str
) -> None:
    mark = tmp_path / "ran"
    make(tmp_path / name, Bomb(mark))
    with pytest.raises(MstlError) as caught:
        load_weights(tmp_path / name)
    assert not mark.exists()
    if name.endswith(".safetensors"):
        assert "cannot be read" in caught.value.why
    else:
        assert "Nothing was run" in caught.value.remedy
        assert "\n" not in str(caught.value)
    if make is _zip and name == "w.pth":
        assert "asks for posix.system" in caught.value.why
    with pytest.MonkeyPatch.context() as patch:  # the file is what it is taken for: the usual loader runs it
        patch.chdir(tmp_path)
        if make is _raw:
            pickle.loads((tmp_path / name).read_bytes())
            assert mark.exists()


def test_values_of_foreign_classes_are_refused_by_name(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1), "best": np.float64(3)}, tmp_path / "numpy.pth")
    with pytest.raises(MstlError, match="asks for numpy"):
        load_weights(tmp_path / "numpy.pth")
    torch.save(nn.Linear(2, 2), tmp_path / "module.pth")
    with pytest.raises(MstlError, match=r"asks for torch\.nn\.modules\.linear\.Linear"):
        load_weights(tmp_path / "module.pth")


def _safetensors(header: bytes, length: int | None = None, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


_HUGE = b'{"a":{"dtype":"F32","shape":[99999999999],"data_offsets":[0,8]}}'


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("missing.safetensors", None, "no such file"),
        ("empty.pth", b"", "the file is empty"),
        ("empty.safetensors", b"", "cannot be read"),
        ("length.safetensors", _safetensors(b"{}", 1 << 60), "cannot be read"),
        ("beyond.safetensors", _safetensors(b"{}", 90_000_000), "cannot be read"),
        ("garbage.safetensors", _safetensors(b"{" + b"x" * 60), "cannot be read"),
        ("shape.safetensors", _safetensors(_HUGE, data=b"0" * 8), "cannot be read"),
        ("text.pth", b"hello world, this is no pickle", "neither safetensors nor"),
        ("keras.h5", b"\x89HDF\r\n" + bytes(600), "neither safetensors nor"),
        ("garbage.pth", b"\x80\x02" + bytes(range(256)), "damaged"),
        ("short.pth", b"\x80\x02", "cannot be read"),
    ],
)
def test_unreadable_files_are_refused(tmp_path: Path, name: str, content: bytes | None, why: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(MstlError, match=why) as caught:
        load_weights(tmp_path / name)
    assert name in caught.value.what
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("kept", [60, 600, -600])
def test_a_file_cut_short_is_refused(tmp_path: Path, kind: str, kept: int) -> None:
    path = tmp_path / ("cut.safetensors" if kind == "safetensors" else "cut.pth")
    if kind == "safetensors":
        save_weights(path, {"a": torch.ones(500)})
    else:
        torch.save({"a": torch.ones(500)}, path, _use_new_zipfile_serialization=kind == "zip")
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(MstlError, match=r"cut\."):
        load_weights(path)


def test_traps_for_memory_and_stack_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "swollen.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10_000_000))
    with pytest.raises(MstlError, match="unpacks to 10,000,000 bytes"):
        load_weights(tmp_path / "swollen.pth")
    endless: dict[str, object] = {}
    endless["again"] = endless
    torch.save(endless, tmp_path / "endless.pth")
    with pytest.raises(MstlError, match="more than 8 deep"):
        load_weights(tmp_path / "endless.pth")
    torch.save({"a.b": torch.ones(1), "a": {"b": torch.zeros(1)}}, tmp_path / "twice.pth")
    with pytest.raises(MstlError, match=r"two weights named 'a\.b'"):
        load_weights(tmp_path / "twice.pth")
    torch.save({"epoch": 3}, tmp_path / "none.pth")
    with pytest.raises(MstlError, match="no tensors"):
        load_weights(tmp_path / "none.pth")
    torch.save({"a": torch.eye(2).to_sparse()}, tmp_path / "sparse.pth")
    with pytest.raises(MstlError, match="sparse"):
        load_weights(tmp_path / "sparse.pth")
