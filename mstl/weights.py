"""Weights on disk, and the exact account of what one stage carries over to the next."""

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from shards.errors import MstlError
from shards.files import write_atomic

NEW_PREFIXES = ("attention.",)  # the only weights a backbone may start afresh
COUNTERS = ".num_batches_tracked"  # absent from weights saved long ago; nothing that matters depends on them
HEAD_PREFIXES = ("fc.",)  # only backbones cross stages; a source's head is left behind


@dataclass(frozen=True, kw_only=True, slots=True)
class CarryReport:
    """Names of weights, sorted: taken from the source, left as the target had them, left out of the source."""

    carried: tuple[str, ...]
    new: tuple[str, ...]
    dropped: tuple[str, ...]


def save_weights(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Write weights as safetensors, atomically, in plain row-major order and whatever device they are on."""
    plain = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in weights.items()
    }
    write_atomic(path, safetensors.torch.save(plain))


def load_weights(path: Path) -> dict[str, Tensor]:
    """Read `.safetensors`, or a `.pth`/`.pt` file that holds a plain dict of tensors, onto the CPU.

    MstlError where the file is missing, damaged, of another kind, or a pickle that would run code.
    """
    if not path.is_file():
        raise MstlError(f"weights {path}", why="there is no such file", remedy="Check the path")
    if path.suffix == ".safetensors":
        return _load_safetensors(path)
    if path.suffix in {".pth", ".pt"}:
        return _load_torch(path)
    raise MstlError(
        f"weights {path}",
        why=f"the ending '{path.suffix}' names no known kind of weights file",
        remedy="Give a .safetensors, .pth or .pt file",
    )


def carry_over(source: Mapping[str, Tensor], target: nn.Module) -> CarryReport:
    """Copy a source's weights into a backbone, all or nothing, and account for every name.

    Only attention weights may be new in the target and only head weights may be dropped from the source; any other
    difference in names or shapes raises MstlError and leaves the target as it was.
    """
    state = target.state_dict()
    carried = sorted(source.keys() & state.keys())
    new = sorted(state.keys() - source.keys())
    dropped = sorted(source.keys() - state.keys())
    _refuse(
        [name for name in new if not name.startswith(NEW_PREFIXES) and not name.endswith(COUNTERS)], "the source lacks"
    )
    _refuse([name for name in dropped if not name.startswith(HEAD_PREFIXES)], "the network has no place for")
    for name in carried:
        if source[name].shape != state[name].shape:
            raise MstlError(
                f"weight '{name}'",
                why=f"it is {_shape(source[name])} in the source and {_shape(state[name])} in the network",
                remedy="Give the weights of the same network: these are a checkpoint of another network",
            )
    with torch.no_grad():
        for name in carried:
            state[name].copy_(source[name])
    return CarryReport(carried=tuple(carried), new=tuple(new), dropped=tuple(dropped))


def _refuse(names: Sequence[str], why: str) -> None:
    if names:
        others = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise MstlError(
            "weights do not fit the network",
            why=f"{why} '{names[0]}'{others}",
            remedy="Give the weights of the same network, or name the network they belong to",
        )


def _shape(tensor: Tensor) -> str:
    return "x".join(str(side) for side in tensor.shape) or "a scalar"


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise _unreadable(path, error) from error


def _load_torch(path: Path) -> dict[str, Tensor]:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, KeyError, IndexError, AttributeError, ValueError) as error:
        raise MstlError(
            f"weights {path}",
            why="it is a pickle of more than tensors, which could run code when read, or it is damaged",
            remedy="Convert it to .safetensors with the program it came from",
        ) from error
    except (RuntimeError, EOFError) as error:
        raise _unreadable(path, error) from error
    if not isinstance(loaded, dict) or not all(isinstance(tensor, Tensor) for tensor in loaded.values()):
        raise MstlError(
            f"weights {path}",
            why="it does not hold a plain dict of name to tensor",
            remedy="Save the network's state_dict() alone, best as .safetensors",
        )
    return loaded


def _unreadable(path: Path, error: Exception) -> MstlError:
    cause = str(error).partition("\n")[0].partition(". ")[0] or type(error).__name__
    return MstlError(f"weights {path}", why=f"the file cannot be read ({cause})", remedy="Copy or download it again")
