"""Checks a GPU graph on a machine without a GPU: has every node a kernel for the device it was placed on?"""

from __future__ import annotations

from collections import Counter

from nvidia.dali.pipeline import Pipeline


def missing_kernels(pipeline: Pipeline) -> tuple[list[str], Counter[tuple[str, str]]]:
    """What cannot run, in words, and how often each (operator, device) is in the graph.

    Reads DALI's private list of nodes and each operator's schema, since `serialize` does not look for kernels. The
    mixed decoder is left out: its schema asks for its input on "mixed", which no edge ever is.
    """
    if not pipeline._py_graph_built:
        pipeline._build_graph()
    wrong = []
    nodes: Counter[tuple[str, str]] = Counter()
    for node in pipeline._ops:
        schema, device = node._op.schema, node._op.device
        name = schema.Name()
        nodes[name, device] += 1
        kernels = [backend.lower() for backend in schema.GetSupportedBackends()]
        if kernels and device not in kernels:
            wrong.append(f"{name} is on {device}, has kernels for {kernels}")
        if device == "mixed":
            continue
        inputs = node.inputs if isinstance(node.inputs, list | tuple) else []
        for i, edge in enumerate(inputs[: schema.MaxNumInput()]):
            wanted = schema.GetInputDevice(i, edge.device, device)
            if wanted and wanted != edge.device:
                wrong.append(f"input {i} of {name} is on {edge.device}, it wants {wanted}")
    return wrong, nodes


def operators(nodes: Counter[tuple[str, str]]) -> dict[str, int]:
    """How often each operator is in a graph, on any device, but for copies; what resize.py lets torch do on the CPU
    counts as the `Resize` of the GPU's graph."""
    counts: Counter[str] = Counter()
    for (operator, device), count in nodes.items():
        on_cpu = operator == "DLTensorPythonFunctionImpl" and device == "cpu"
        counts["Resize" if on_cpu else operator] += count
    return {
        name: n for name, n in counts.items() if not name.startswith("_") and name not in ("Copy", "MakeContiguous")
    }
