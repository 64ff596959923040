"""The networks whose transferability LEEP estimates: runs, weights files of any origin, and untrained ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from mstl.carry import carry_over
from mstl.gate import trace_lineage
from mstl.models.classifier import Classifier
from mstl.models.registry import backbone_names, build_backbone, full_name
from mstl.runs import RunRecord, load_classifier, open_run
from mstl.weights import load_weights
from mstl.weights_names import COPIES, find_backbone, guess_network
from shards.errors import MstlError
from shards.files import sha256_file

UNTRAINED_CLASSES = 1000  # of a random head, as many as ImageNet has (ours; the paper does not say)
NO_TRANSFER = "no transfer"
CLASSIFIERS = frozenset({"fc", "classifier", "head", "last_linear"})
AVERAGES = frozenset({"ema", "model_ema", "ema_model", "state_dict_ema"})  # of supervised training too
PRETEXT = (COPIES - AVERAGES) | {
    "queue", "projector", "projection", "projection_head", "projection_mlp", "predictor", "predictor_mlp", "prototypes",
    "contrastive_head",
}  # fmt: skip
UNSUPERVISED = "it was trained without labels: LEEP needs a classifier of source classes (paper section 6.7)"

Kind = Literal["run", "weights", "untrained"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A network to be scored. name: as the user called it. chain: what it was trained on, first to last.

    image_size: what a run was trained at, None where nothing says so. digest: SHA-256 of its weights. shards_digest:
    of the set a run was trained on. seed: of an untrained network. build: makes the classifier, on the CPU in
    evaluation mode; None where LEEP is not defined, and `undefined` then says why.
    """

    name: str
    kind: Kind
    model: str | None
    chain: tuple[str, ...]
    image_size: int | None = None
    digest: str | None = None
    shards_digest: str | None = None
    build: Callable[[], Classifier] | None = None
    undefined: str = ""
    seed: int | None = None


def open_sources(paths: Sequence[Path], *, untrained: Sequence[str], seed: int) -> list[Source]:
    """All sources, the untrained ones first; no network is built yet.

    Raises MstlError for a path that is neither a run with weights nor a weights file, for weights of no network that
    we have, for an unknown name of a network, and when LEEP is defined for none of them.
    """
    sources = [_untrained(name, seed) for name in untrained]
    sources += [_run(path) if path.is_dir() else _file(path) for path in paths]
    if not sources:
        raise MstlError(
            "mstl leep", why="no source is named", remedy="Name runs or weights files, or --untrained MODEL"
        )
    if all(source.build is None for source in sources):
        first = sources[0]
        raise MstlError(f"source {first.name}", why=first.undefined, remedy="Name a supervised run or its weights")
    return sources


def _untrained(model: str, seed: int) -> Source:
    name = full_name(model)
    return Source(
        name=f"untrained {model}",
        kind="untrained",
        model=name,
        chain=(NO_TRANSFER,),
        build=partial(_random, name, seed),
        seed=seed,
    )


def _random(model: str, seed: int) -> Classifier:
    """A network of random weights with a random head; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Classifier(build_backbone(model), UNTRAINED_CLASSES).eval()


def _run(path: Path) -> Source:
    record = open_run(path)
    if not record.weights.is_file():
        raise MstlError(
            f"run {path}",
            why=f"it has no weights yet (status: {record.status})",
            remedy=f"Finish it: mstl train --stage {record.stage} --out {path} with its own options",
        )
    supervised = record.body.get("ssl") is None and record.stage != "sstl_m"
    return Source(
        name=str(path),
        kind="run",
        model=full_name(record.model),
        chain=(*_ancestors(record), record.title),
        image_size=record.image_size,
        digest=sha256_file(record.weights),
        shards_digest=record.shards_digest,
        build=partial(load_classifier, record) if supervised else None,
        undefined="" if supervised else UNSUPERVISED,
    )


def _ancestors(record: RunRecord) -> tuple[str, ...]:
    """The stages behind a run, first to last; weights from elsewhere by the name of their file."""
    parent = record.body["parent"]
    if parent is None:
        return ()
    run = Path(parent["path"]) if parent["path"] != parent["weights"] else None
    lineage = trace_lineage(Path(parent["weights"]), run)
    return tuple(entry["stage"] or Path(entry["run"]).name for entry in reversed(lineage))


def _file(path: Path) -> Source:
    if not path.is_file():
        raise MstlError(str(path), why="there is no such run or file", remedy="Name a run folder or a weights file")
    weights = load_weights(path)
    head, undefined = find_head(weights)
    model = network_of(weights)
    return Source(
        name=str(path),
        kind="weights",
        model=model,
        chain=(path.name,),
        digest=sha256_file(path),
        build=None if head is None else partial(_from_file, path, model, head),
        undefined=undefined,
    )


def find_head(weights: Mapping[str, Tensor]) -> tuple[str | None, str]:
    """The name of a file's classifier without `.weight`, or None and why it has none.

    Files of self-supervised training (MoCo's `encoder_q.fc`, projectors, queues) have heads of the same names that
    classify nothing: none of theirs is taken.
    """
    if any(PRETEXT & set(name.split(".")) for name in weights):
        return None, UNSUPERVISED
    width = 2048  # of every backbone here
    heads = [
        name.removesuffix(".weight")
        for name, tensor in weights.items()
        if name.endswith(".weight")
        and CLASSIFIERS & set(name.split("."))
        and not AVERAGES & set(name.split("."))
        and tensor.ndim == 2
        and tensor.shape[1] == width
        and f"{name.removesuffix('.weight')}.bias" in weights
    ]
    if len(heads) == 1:
        return heads[0], ""
    if heads:
        return None, f"it has several classifiers ({', '.join(sorted(heads)[:3])})"
    return None, "it has no classifier of source classes, only a backbone"


def network_of(weights: Mapping[str, Tensor]) -> str:
    """The name of the network whose weights these are, attention spelt out; raises MstlError when we have none such."""
    found = {name for name in find_backbone(weights).names if not name.endswith(".num_batches_tracked")}
    for name in dict.fromkeys(map(full_name, backbone_names())):
        if found == _weight_names(name):
            return name
    raise MstlError(
        "weights of another network",
        why=f"their names are those of no network here{guess_network(found)}",
        remedy=f"Name weights of one of {', '.join(backbone_names())}",
    )


@cache
def _weight_names(model: str) -> frozenset[str]:
    with torch.device("meta"):
        names = build_backbone(model).state_dict().keys()
    return frozenset(name for name in names if not name.endswith(".num_batches_tracked"))


def _from_file(path: Path, model: str, head: str) -> Classifier:
    weights = load_weights(path)
    backbone = build_backbone(model)
    carry_over(weights, backbone)
    weight, bias = weights[f"{head}.weight"].float(), weights[f"{head}.bias"].float()
    classifier = Classifier(backbone, len(weight))
    classifier.fc.load_state_dict({"weight": weight, "bias": bias})
    return classifier.eval()
