"""Weights on disk: written as safetensors, read from anywhere as tensors only, never as code."""

from __future__ import annotations

import argparse
import io
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from shards.errors import MstlError
from shards.files import write_atomic

# What training programs save beside the weights, by the beginning of its name at the top of the file.
NOT_WEIGHTS = ("optim", "lr_sched", "scheduler", "scaler", "amp", "callbacks", "loops", "rng")
DEEPEST = 8  # dicts in dicts; one that holds itself has no end
SWOLLEN = 1.5  # torch stores tensors uncompressed: an archive that unpacks to more is no file of its


def save_weights(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Write weights as safetensors, atomically, in plain row-major order and whatever device they are on."""
    plain = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in weights.items()
    }
    write_atomic(path, safetensors.torch.save(plain))


def load_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file or of one that torch.save wrote, on the CPU, whatever the file is called.

    Dicts in dicts become one, names joined by dots (`state_dict.module.conv1.weight`); what is no tensor (an epoch,
    options) and the optimiser's state are left out. Raises MstlError where the file is missing, damaged, of another
    kind, without tensors, or a pickle of more than tensors and plain values: nothing in it is run.
    """
    if not path.is_file():
        raise MstlError(f"weights {path}", why="there is no such file", remedy="Check the path")
    with path.open("rb") as file:
        head = file.read(512)
    if path.suffix == ".safetensors" or head[8:9] == b"{":
        return _read_safetensors(path)
    if not head.startswith((b"PK\x03\x04", b"\x80")) and head[257:262] != b"ustar":
        raise MstlError(
            f"weights {path}",
            why="its content is neither safetensors nor what torch.save writes" if head else "the file is empty",
            remedy="Give a .safetensors file, or a network's state_dict() saved by torch.save",
        )
    loaded = _read_torch(path)
    found: dict[str, Tensor] = {}
    for name, tensor in _tensors(loaded, (), path):
        if name in found:
            raise _damaged(path, f"it has two weights named '{name}'")
        found[name] = tensor
    if not found:
        raise MstlError(
            f"weights {path}", why="there are no tensors in it", remedy="Save the network's state_dict(), and name that"
        )
    return found


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise _damaged(path, f"the file cannot be read ({_first_words(error)})") from error


def _read_torch(path: Path) -> object:
    _refuse_swollen(path)
    try:
        # Namespace: the options that many training scripts save beside the weights; it holds values and runs nothing.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of the pickle's protocol: what is refused is told below
            return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, KeyError, IndexError, AttributeError, TypeError, ValueError) as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        more = f"it asks for {named[1]}" if named else "it is damaged"
        raise MstlError(
            f"weights {path}",
            why=f"it is a pickle of more than tensors, which could run code when read: {more}",
            remedy="Nothing was run. Where you trust it, save its state_dict() as .safetensors with the program it "
            "came from",
        ) from error
    except (RuntimeError, EOFError) as error:
        if "weights_only" in str(error):  # TorchScript, and the tar format of 2017
            raise MstlError(
                f"weights {path}",
                why="it is of a kind that can only be read by running what is in it (TorchScript, or a tar of pickles)",
                remedy="Nothing was run. Where you trust it, save its state_dict() as .safetensors with the program "
                "it came from",
            ) from error
        raise _damaged(path, f"the file cannot be read ({_first_words(error)})") from error


def _refuse_swollen(path: Path) -> None:
    """A few kilobytes that unpack to all of memory are no weights."""
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, io.UnsupportedOperation):
        return  # not an archive, or a damaged one: torch says which
    if unpacked > SWOLLEN * path.stat().st_size:
        raise _damaged(path, f"it is a compressed archive that unpacks to {unpacked:,} bytes")


def _tensors(node: object, place: tuple[str, ...], path: Path) -> Iterator[tuple[str, Tensor]]:
    if len(place) > DEEPEST:
        raise _damaged(path, f"its dicts lie more than {DEEPEST} deep")
    if isinstance(node, Tensor):
        if node.layout != torch.strided or node.is_quantized:
            raise _damaged(path, f"'{'.'.join(place)}' is a sparse or quantised tensor")
        yield ".".join(place), node
    elif isinstance(node, Mapping):
        for key, value in node.items():
            if place or not str(key).lower().startswith(NOT_WEIGHTS):
                yield from _tensors(value, (*place, str(key)), path)
    elif isinstance(node, Sequence) and not isinstance(node, str | bytes):
        for index, value in enumerate(node):
            yield from _tensors(value, (*place, str(index)), path)


def _first_words(error: Exception) -> str:
    return str(error).partition("\n")[0].partition(". ")[0] or type(error).__name__


def _damaged(path: Path, why: str) -> MstlError:
    return MstlError(f"weights {path}", why=why, remedy="Copy or download it again, or name another file")
