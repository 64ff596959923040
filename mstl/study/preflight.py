"""Everything about a study that can be known before its first run: data, recipes, leakage, and each node's digest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from mstl.gate import Entry, check_leakage, finding_names, trace_lineage
from mstl.job import Job, Parent, Request, check_world
from mstl.job.parents import find_parent
from mstl.models.names import full_name
from mstl.recipes import Data, flatten, settle_recipe
from mstl.recipes.rules import FREE
from mstl.stage_specs import STAGES
from mstl.study.digests import Code, code_identity, digest
from mstl.study.graph import Graph, Node, expand
from mstl.study.planned import DataSet, Planned, StudyPlan, Training
from mstl.study.spec import NodeSpec, Study, StudyFile, as_words, flat, refusal
from mstl.study.state import same_work
from shards.cache import CacheOptions, local_set
from shards.errors import MstlError
from shards.plan import Plan
from shards.remote_store import is_url, location
from shards.schema import ALL, MANIFEST_NAME, load_manifest


def plan_study(file: StudyFile, out: Path, *, ranks: int = 1, any_code: bool = False) -> StudyPlan:
    """Check a study; raises one MstlError with all that is wrong: graph, shard sets, recipes, batches, leakage.

    ranks: processes of each training. any_code: take a node that other code has finished.
    """
    study = file.study
    graph, problems = expand(study)
    used = {node.spec.name: node.spec for node in graph.nodes.values()}
    data: dict[str, DataSet] = {}
    for name in dict.fromkeys(spec.data for spec in used.values() if spec.data in study.data):
        sources = [STAGES[spec.stage].source for spec in used.values() if spec.data == name and spec.stage]
        opened = _try(problems, partial(_open, name, study.data[name], sources))
        if opened is not None:
            data[name] = opened
    trainings: dict[str, Training] = {}
    for spec in used.values():
        if spec.data in data:
            problems += [f"node {spec.name!r}: {text}" for text in _split_problems(spec, study, data[spec.data])]
            if spec.stage is not None:
                found = _try(problems, partial(_training, spec, study, data[spec.data], out, ranks), spec)
                if found is not None:
                    trainings[spec.name] = found
    known = (*study.data, *(spec.name for spec in study.node))
    problems += [f"[substitutions]: {name!r} is neither data nor a node" for name in study.substitutions
                 if name not in known]  # fmt: skip
    if problems:
        raise refusal(file.path, problems)
    nodes: dict[str, Planned] = {}
    code = code_identity()
    for node in graph.nodes.values():
        if all(parent in nodes for parent in node.parents):
            plan = partial(_plan, node, study, graph, nodes, data, trainings, out, code, any_code)
            planned = _try(problems, plan, node.spec)
            if planned is not None:
                nodes[node.id] = planned
    if not problems:
        waived = {name for planned in nodes.values() for name in planned.waived}
        problems += [f"waive_leakage: no node has the finding {name!r}" for name in study.waive_leakage
                     if name not in waived]  # fmt: skip
    if problems:
        raise refusal(file.path, problems)
    return StudyPlan(file=file, out=out, code=code, any_code=any_code, graph=graph, nodes=nodes)


def _try(problems: list[str], action: Callable[[], Any], spec: NodeSpec | None = None) -> Any:
    """The action's result; None where it is refused, which is one more problem."""
    try:
        return action()
    except (MstlError, ValueError) as error:
        problems.append(str(error) if spec is None else f"node {spec.name!r}: {error}")
        return None


def _open(name: str, place: str, sources: Sequence[str]) -> DataSet:
    where = location(place)
    if not is_url(where) and not (Path(where) / MANIFEST_NAME).is_file():
        source = sources[0] if sources else "SOURCE"
        raise MstlError(
            f"[data] {name} = {place}",
            why="there is no shard set",
            remedy=f"Make it with mstl shard --src {source} --out {place}, or name another with --data {name}=DIR",
        )
    folder = local_set(where, cache=CacheOptions(), splits=(), tars=False)
    manifest = load_manifest(folder)
    if not is_url(where):
        for shard in manifest.shards(ALL):
            tar = folder / shard.path
            if not tar.is_file() or tar.stat().st_size != shard.bytes:
                raise MstlError(
                    f"[data] {name} = {place}",
                    why=f"{shard.path} is not there, or not whole",
                    remedy=f"Look with mstl verify {place}, and convert it again",
                )
    return DataSet(name=name, place=where, folder=folder, manifest=manifest)


def _split_problems(spec: NodeSpec, study: Study, data: DataSet) -> list[str]:
    needed = [("trains on", "train")] if spec.kind == "train" else [("measures on", spec.split)]
    needed += [("is evaluated on", split) for split in study.evaluated(spec)]
    have = ", ".join(data.splits)
    return [f"it {what} the {split} split of {data.name}, which has only {have}"
            for what, split in needed if split not in data.splits]  # fmt: skip


def _training(spec: NodeSpec, study: Study, data: DataSet, out: Path, ranks: int) -> Training:
    stage = str(spec.stage)
    words = as_words(study.recipe_fields(spec))
    settled = settle_recipe(stage, ssl=spec.ssl, flavour=study.flavour, overrides=words)
    if stage != "sstl_m" and len(data.manifest.classes) < 2:
        raise MstlError(
            f"[data] {data.name}", why="it has one class, and a classifier needs two", remedy="Name other data"
        )
    job = Job(
        spec=STAGES[stage],
        ssl=settled.ssl,
        model=study.networks_of(spec)[0],
        recipe=settled.recipe,
        flavour=study.flavour,
        shards=data.folder,
        url=None,
        tars=None,
        manifest=data.manifest,
        out=out,
        parent=None,
        seed=0,
        previous=None,
    )
    check_world(job, ranks)
    plan = Plan(
        samples=data.manifest.samples(job.train_split),
        world=ranks,
        batch=settled.recipe.data.batch_size,
        epochs=settled.recipe.optim.epochs,
        seed=0,
        shuffle=True,
        remainder=job.spec.remainder,
    )
    init = None
    if spec.init is not None:
        init = find_parent(Request(stage=stage, init_from=spec.init), job.spec, job.model, None)
        for network in study.networks_of(spec):
            _check_weights(replace(job, model=full_name(network)), init)
    fields = flatten(settled.recipe)
    return Training(
        settled=settled,
        words=words,
        used={field: value for field, value in fields.items() if field not in FREE},
        steps=plan.steps_per_epoch * plan.epochs,
        init=init,
    )


def _check_weights(job: Job, init: Parent | None) -> None:
    """Raise MstlError for weights from elsewhere that cannot be read or do not fit; takes torch, and its seconds."""
    from mstl.models.registry import build_backbone
    from mstl.parent_weights import take_over

    assert init is not None, "weights are named"
    take_over(job, init, build_backbone(job.model))


def _plan(
    node: Node,
    study: Study,
    graph: Graph,
    nodes: Mapping[str, Planned],
    data: Mapping[str, DataSet],
    trainings: Mapping[str, Training],
    out: Path,
    code: Code,
    any_code: bool,
) -> Planned:
    spec, own = node.spec, data[node.spec.data]
    training = trainings.get(spec.name)
    parents = [nodes[parent] for parent in node.parents]
    init = training.init if training is not None else None
    side = _image_size(study, training, parents)
    content = {
        "kind": spec.kind,
        "stage": spec.stage,
        "ssl": None if training is None else training.settled.ssl,
        "network": node.network,
        "seed": node.seed,
        "recipe": None if training is None else training.used,
        "split": spec.split if spec.kind == "leep" else None,
        "image_size": side,
        "data": own.digest,
        "init": None if init is None else init.digest,
    }
    work = digest({**content, "parents": [parent.work for parent in parents]})
    by_code = {"version": code.version, "sha256": code.sha256}
    found = digest({**content, "parents": [parent.digest for parent in parents], "code": by_code})
    if any_code:
        found = same_work(out, _place(node), work, found) or found
    lineage = _lineage(node, graph, nodes, out, init)
    names = finding_names(own.folder, own.digest, lineage)
    # Nothing is trained by a measurement, so nothing can be spoilt by it.
    waived = [name for name in names if name in study.waive_leakage or spec.kind == "leep"]
    gate = check_leakage(
        shards=own.folder, called=own.path, manifest=own.manifest, lineage=lineage, waive=waived, previous=None
    )
    return Planned(
        node=node,
        data=own,
        training=training,
        digest=found,
        work=work,
        path=f"{_place(node)}-{found[:8]}",
        leakage=f"{'found' if spec.kind == 'leep' else 'waived'}: {', '.join(waived)}"
        if waived
        else str(gate.record["state"]),
        waived=tuple(waived),
        substitution="; ".join(_substitutions(node, study, graph)) or None,
        image_size=side,
        evaluate=study.evaluated(spec),
    )


def _image_size(study: Study, training: Training | None, parents: Sequence[Planned]) -> int:
    """The side of a node's images; a measurement has its source's, an untrained network that which the study sets."""
    if training is not None:
        return training.settled.recipe.data.image_size
    if parents:
        return parents[0].image_size
    return int(flat(study.overrides).get("data.image_size", Data.model_fields["image_size"].default))


def _place(node: Node) -> str:
    """Where a node's folders lie below the study's, without the digest."""
    return f"{'runs' if node.spec.kind == 'train' else 'leep'}/{node.id}"


def _lineage(node: Node, graph: Graph, nodes: Mapping[str, Planned], out: Path, init: Parent | None) -> list[Entry]:
    """The shard sets behind a node's first weights, as the gate takes them; no run need be there yet."""
    lineage: list[Entry] = []
    for name in graph.ancestors(node.id):
        planned = nodes[name]
        assert planned.training is not None, "only trainings have descendants"
        recipe = planned.training.settled.recipe
        lineage.append(
            {
                "run": str(out / planned.path),
                "stage": planned.node.spec.stage,
                "source": planned.data.manifest.source,
                "shards": planned.data.path,
                "digest": planned.data.digest,
                "images": recipe.data.images,
            }
        )
        init = planned.training.init
    return lineage if init is None else [*lineage, *trace_lineage(init.weights, init.run)]


def _substitutions(node: Node, study: Study, graph: Graph) -> list[str]:
    """What stands for something else in a node and in all that it stands on."""
    chain = [graph.nodes[name].spec for name in reversed(graph.ancestors(node.id))] + [node.spec]
    names = [name for spec in chain for name in (spec.data, spec.name)]
    return list(dict.fromkeys(study.substitutions[name] for name in names if name in study.substitutions))
