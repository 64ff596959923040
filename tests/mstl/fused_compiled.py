"""Compile the fused kernels for GPUs that are not there; prints what each needs as a line of JSON."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mstl.models import attend_triton
from mstl.models.attend_fused import WHOLE, Tile, tiles

DTYPES = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}
# positions, width of keys and of values: res3, res4 and res5 at 224 pixels, and res5 at 512
SIZES = ((784, 256), (196, 512), (49, 1024), (256, 1024), (1024, 512))
POINTERS = {
    "out", "query", "key", "value", "slope", "query_slope", "key_slope", "value_slope",
}  # fmt: skip
FLOATS = {"peaks", "log_sums", "deltas"}
CONSTANTS = ("D_K", "D_V", "ROWS", "COLUMNS", "CHUNK", "SLAB", "SPLIT", "RESIDUAL")


def kernels(positions: int) -> tuple[str, ...]:
    forward = "forward_whole" if positions <= WHOLE else "forward_online"
    return forward, "output_slopes", "backward_keys", "backward_queries"


def compile_one(name: str, dtype: torch.dtype, width: int, tile: Tile, capability: int) -> tuple[int, int, int]:
    """Bytes of shared memory, registers a thread and bytes spilled a thread."""
    kernel = getattr(attend_triton, name)
    values = {
        "D_K": width, "D_V": width, "ROWS": tile.rows, "COLUMNS": tile.columns, "CHUNK": tile.chunk,
        "SLAB": tile.slab, "SPLIT": dtype == torch.bfloat16, "RESIDUAL": dtype != torch.float32,
    }  # fmt: skip
    signature: dict[str, str] = {}
    attributes = {}
    for place, argument in enumerate(kernel.arg_names):
        if argument in CONSTANTS:
            signature[argument] = "constexpr"
        elif argument == "residual":
            signature[argument] = "*bf16"
        elif argument in FLOATS:
            signature[argument] = "*fp32"
        elif argument in POINTERS:
            signature[argument] = DTYPES[dtype]
        elif argument in ("scale", "log2_scale"):
            signature[argument] = "fp32"
        else:
            signature[argument] = "i32"
        # What a launch would find: memory and strides that are multiples of 16.
        if signature[argument].startswith("*") or argument.endswith(("_row", "_batch")):
            attributes[(place,)] = [["tt.divisibility", 16]]
    constants = {argument: values[argument] for argument in kernel.arg_names if argument in CONSTANTS}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    target = GPUTarget("cuda", capability, 32)
    made = triton.compile(source, target=target, options={"num_warps": tile.warps, "num_stages": tile.stages})
    registers, spilled = usage(made.asm["cubin"])
    return made.metadata.shared, registers, spilled


def usage(cubin: bytes) -> tuple[int, int]:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(cubin)
        text = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True)
    words = text.stdout + text.stderr
    registers = max(int(number) for number in re.findall(r"REG:(\d+)", words))
    return registers, max(int(number) for number in re.findall(r"(?:LOCAL|STACK):(\d+)", words))


def cases() -> Iterator[tuple[str, torch.dtype, int, int, int]]:
    for capability in (90, 80):
        for dtype in DTYPES if capability == 90 else (torch.bfloat16,):
            for positions, width in SIZES if dtype == torch.bfloat16 else SIZES[:1]:
                for name in kernels(positions):
                    yield name, dtype, positions, width, capability


def main(every: bool) -> None:
    limits = {90: 232_448, 80: 166_912}
    for name, dtype, positions, width, capability in cases():
        choices = tiles(dtype, positions, positions, width, width, whole=name == "forward_whole")
        for place, tile in enumerate(choices):
            shared, registers, spilled = compile_one(name, dtype, width, tile, capability)
            line = {
                "kernel": name, "dtype": str(dtype), "positions": positions, "width": width, "capability": capability,
                "place": place, "choices": len(choices), "tile": str(tile), "shared_bytes": shared,
                "registers": registers, "spilled_bytes": spilled,
            }  # fmt: skip
            sys.stdout.write(json.dumps(line) + "\n")
            if not every and shared <= limits[capability]:
                break


if __name__ == "__main__":
    main(every="every" in sys.argv)
