"""The files that a network can be written as: how each is made, and how a reader runs it."""

from __future__ import annotations

import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor

from mstl.models.attention import AttentionOptions
from mstl.models.classifier import Classifier
from mstl.models.registry import attention_options, build_backbone
from mstl.recipes import Model
from mstl.use.network import Network
from shards.errors import MstlError

INPUT, OUTPUT = "image", "logits"
ONNX_LIBRARIES = ("onnx", "onnxruntime", "onnxscript")
Values = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """A network in a format. write: the file's bytes with these facts. open: runs that file as a reader would.

    holds_metadata: whether the facts stand in the file; else they need one of their own.
    """

    write: Callable[[Values], bytes]
    open: Callable[[Values], Callable[[Tensor], NDArray[np.float32]]]
    holds_metadata: bool


def need_onnx() -> None:
    """Raise MstlError unless the libraries of the extra `export` are installed."""
    missing = [name for name in ONNX_LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        raise MstlError(
            "--format onnx",
            why=f"it needs {' and '.join(missing)}, which this installation lacks",
            remedy="Install with: pip install 'mstl[export]'",
        )


def as_onnx(network: Network, example: Tensor) -> Made:
    """By torch's exporter (torch.export, then onnxscript), any number of images at a time; facts as metadata_props."""
    import onnx

    with _quiet():
        program = torch.onnx.export(
            network.classifier,
            (example,),
            dynamo=True,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            verbose=False,
        )
    assert program is not None
    model = program.model_proto

    def write(facts: Values) -> bytes:
        del model.metadata_props[:]
        onnx.helper.set_model_props(model, _texts(facts))
        onnx.checker.check_model(model)
        return bytes(model.SerializeToString())

    def open_(facts: Values) -> Callable[[Tensor], NDArray[np.float32]]:
        import onnxruntime

        session = onnxruntime.InferenceSession(write(facts), providers=["CPUExecutionProvider"])
        return lambda x: np.asarray(session.run([OUTPUT], {INPUT: x.numpy()})[0])

    return Made(write=write, open=open_, holds_metadata=True)


def as_torchscript(network: Network, example: Tensor) -> Made:
    """Traced; torch calls TorchScript outdated, and still reads it everywhere."""
    with _quiet(), torch.no_grad():
        traced = torch.jit.trace(network.classifier, (example,), check_trace=False)  # type: ignore[no-untyped-call]
        file = io.BytesIO()
        torch.jit.save(traced, file)

    def open_(facts: Values) -> Callable[[Tensor], NDArray[np.float32]]:  # noqa: ARG001 - it needs none
        with _quiet():
            loaded = torch.jit.load(io.BytesIO(file.getvalue()), map_location="cpu")  # type: ignore[no-untyped-call]

        def run(x: Tensor) -> NDArray[np.float32]:
            with torch.inference_mode():
                return np.asarray(loaded(x).numpy())

        return run

    return Made(write=lambda facts: file.getvalue(), open=open_, holds_metadata=False)  # noqa: ARG005


def as_safetensors(network: Network, example: Tensor) -> Made:  # noqa: ARG001 - tensors have no input
    """Weights alone, by the names of the run's own (torchvision's, `attention.*`, `fc.*`); a reader builds the rest."""
    weights = {**network.classifier.backbone.state_dict(), **network.classifier.fc.state_dict(prefix="fc.")}
    plain = {name: value.detach().clone(memory_format=torch.contiguous_format) for name, value in weights.items()}

    def write(facts: Values) -> bytes:
        return safetensors.torch.save(plain, metadata=_texts(facts))

    def open_(facts: Values) -> Callable[[Tensor], NDArray[np.float32]]:
        classifier = rebuilt(safetensors.torch.load(write(facts)), facts)

        def run(x: Tensor) -> NDArray[np.float32]:
            with torch.inference_mode():
                return np.asarray(classifier(x).numpy())

        return run

    return Made(write=write, open=open_, holds_metadata=True)


def rebuilt(weights: Mapping[str, Tensor], facts: Values) -> Classifier:
    """The network of exported safetensors and the facts in their metadata, in evaluation mode."""
    options: AttentionOptions = attention_options(
        Model.model_validate({**facts["attention"], "attention_backend": "eager"})
    )
    classifier = Classifier(build_backbone(facts["model"], options), len(facts["classes"]))
    fc = {name.removeprefix("fc."): value for name, value in weights.items() if name.startswith("fc.")}
    classifier.fc.load_state_dict(fc)
    classifier.backbone.load_state_dict({name: v for name, v in weights.items() if not name.startswith("fc.")})
    return classifier.eval()


def _texts(facts: Values) -> dict[str, str]:
    """Metadata of ONNX and safetensors are texts: what is no text becomes JSON."""
    return {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for name, value in facts.items()
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's warnings that a way of exporting is outdated or new, of which a user can mend nothing."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
