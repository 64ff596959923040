"""From a study's nodes to its graph: every node once for each of its networks and seeds, with its parents."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import cached_property

from mstl.models.names import full_name
from mstl.study.spec import NodeSpec, Study
from shards.errors import MstlError


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """One training or measurement. id: NAME/NETWORK/sSEED. parents: ids of the nodes it needs finished."""

    id: str
    spec: NodeSpec
    network: str
    seed: int
    parents: tuple[str, ...]


@dataclass(frozen=True)
class Graph:
    """The nodes by id, every parent before its children."""

    nodes: Mapping[str, Node]

    @cached_property
    def children(self) -> Mapping[str, tuple[str, ...]]:
        """The ids of the nodes that need one, by its id."""
        found: dict[str, list[str]] = {name: [] for name in self.nodes}
        for node in self.nodes.values():
            for parent in node.parents:
                found[parent].append(node.id)
        return {name: tuple(ids) for name, ids in found.items()}

    def ancestors(self, name: str) -> list[str]:
        """All nodes that one stands on, nearest first."""
        found: list[str] = []
        waiting = list(self.nodes[name].parents)
        while waiting:
            parent = waiting.pop(0)
            if parent not in found:
                found.append(parent)
                waiting += self.nodes[parent].parents
        return found

    def descendants(self, name: str) -> set[str]:
        """All nodes that stand on one."""
        found: set[str] = set()
        waiting = [name]
        while waiting:
            for child in self.children[waiting.pop()]:
                if child not in found:
                    found.add(child)
                    waiting.append(child)
        return found

    def chosen(self, patterns: Sequence[str]) -> set[str]:
        """The nodes whose id or name fits one of the patterns (all without any), with all that they stand on."""
        if not patterns:
            return set(self.nodes)
        fitting = {node.id for node in self.nodes.values() if any(_fits(node, pattern) for pattern in patterns)}
        return fitting | {parent for name in fitting for parent in self.ancestors(name)}


def _fits(node: Node, pattern: str) -> bool:
    return fnmatchcase(node.id, pattern) or fnmatchcase(node.spec.name, pattern)


def expand(study: Study) -> tuple[Graph, list[str]]:
    """The graph of a study, and what is wrong with it; with problems the graph lacks the nodes that have them."""
    specs, problems = _ordered(study.node)
    if study.evaluate and not any(spec.stage == "finetune" for spec in study.node):
        problems.append("evaluate: it is for nodes of stage finetune, and there is none")
    if len(set(study.seeds)) < len(study.seeds):
        problems.append(f"seeds: one stands twice in {list(study.seeds)}")
    nodes: dict[str, Node] = {}
    for spec in specs:
        problems += _own_problems(spec, study)
        networks = _full_names(study.networks_of(spec), problems)
        seeds = study.seeds_of(spec)
        parents = _parents(spec, study, networks, seeds, problems)
        for network in networks:
            for seed in seeds:
                found = parents.get((network, seed))
                if found is not None:
                    name = _id(spec.name, network, seed)
                    nodes[name] = Node(id=name, spec=spec, network=network, seed=seed, parents=found)
    return Graph(nodes), problems


def _id(name: str, network: str, seed: int) -> str:
    return f"{name}/{network}/s{seed}"


def _own_problems(spec: NodeSpec, study: Study) -> Iterable[str]:
    called = f"node {spec.name!r}"
    if spec.data not in study.data:
        yield f"{called}: [data] has no {spec.data!r}; it has {', '.join(study.data)}"
    if spec.source is not None and spec.init is not None:
        yield f"{called}: it has both from and init, and first weights come from one place"
    if spec.seeds is not None and len(set(spec.seeds)) < len(spec.seeds):
        yield f"{called}: a seed stands twice in {list(spec.seeds)}"
    splits = study.evaluated(spec)
    if len(set(splits)) < len(splits):
        yield f"{called}: a split stands twice in {list(splits)}"
    if spec.kind == "leep":
        idle = {"stage": spec.stage, "ssl": spec.ssl, "set": spec.overrides or None, "evaluate": spec.evaluate,
                "explain": spec.explain or None, "init": spec.init}  # fmt: skip
        for key, value in idle.items():
            if value is not None:
                yield f"{called}: kind leep trains nothing and has no use for {key}"
        return
    if spec.stage is None:
        yield f"{called}: stage is missing"
    if spec.split != "train":
        yield f"{called}: split is for kind leep; a training uses the train split (evaluate names those to measure on)"
    if spec.stage != "sstl_m" and spec.ssl is not None:
        yield f"{called}: ssl is for stage sstl_m"
    if spec.stage == "sstl_m" and (splits or spec.explain):
        yield f"{called}: stage sstl_m has no classifier, so it cannot be evaluated or explained"
    if spec.explain and not splits and spec.stage != "sstl_m":
        yield f"{called}: explain shows images of a split of evaluate, and there is none"


def _ordered(specs: Sequence[NodeSpec]) -> tuple[list[NodeSpec], list[str]]:
    """The nodes with every parent before its children, otherwise as they stand; those in cycles left out."""
    problems = []
    by_name: dict[str, NodeSpec] = {}
    for spec in specs:
        if spec.name in by_name:
            problems.append(f"node {spec.name!r}: there are two of this name")
        by_name.setdefault(spec.name, spec)
    done: dict[str, NodeSpec] = {}
    circles: set[frozenset[str]] = set()
    for spec in by_name.values():
        trail: dict[str, NodeSpec] = {}
        at: NodeSpec | None = spec
        while at is not None and at.name not in done and at.name not in trail:
            trail[at.name] = at
            if at.source is None:
                break
            if at.source not in by_name:
                meant = get_close_matches(at.source, by_name, n=1)
                hint = f"; {meant[0]!r} is meant, perhaps" if meant else f"; there are {', '.join(by_name)}"
                problems.append(f"node {at.name!r}: from names {at.source!r}, and there is no such node{hint}")
            at = by_name.get(at.source)
        if at is None:
            continue
        if at.name in trail and at.source is not None:
            names = list(trail)[list(trail).index(at.name) :]
            if frozenset(names) not in circles:
                circles.add(frozenset(names))
                problems.append(f"nodes start from each other in a circle: {' from '.join([*names, at.name])}")
            continue
        done |= dict(reversed(trail.items()))
    return list(done.values()), problems


def _full_names(networks: Sequence[str], problems: list[str]) -> list[str]:
    found: list[str] = []
    for network in networks:
        try:
            name = full_name(network)
        except MstlError as error:
            problems.append(f"{error.what}: {error.why}. {error.remedy}")
            continue
        if name in found:
            problems.append(f"networks: {network!r} stands twice in {list(networks)}")
        found.append(name)
    return list(dict.fromkeys(found))


def _parents(
    spec: NodeSpec,
    study: Study,
    networks: Sequence[str],
    seeds: Sequence[int],
    problems: list[str],
) -> dict[tuple[str, int], tuple[str, ...]]:
    """The parents of each network and seed of a node; those that cannot be had are left out."""
    if spec.source is None:
        return {(network, seed): () for network in networks for seed in seeds}
    parent = next(one for one in study.node if one.name == spec.source)
    if parent.kind == "leep":
        problems.append(f"node {spec.name!r}: from names {parent.name!r}, which measures and has no weights")
        return {}
    if spec.kind == "leep" and parent.stage == "sstl_m":
        problems.append(f"node {spec.name!r}: LEEP needs a classifier, and {parent.name!r} is learned without labels")
        return {}
    theirs = _full_names(study.networks_of(parent), [])
    their_seeds = study.seeds_of(parent)
    found: dict[tuple[str, int], tuple[str, ...]] = {}
    for network in networks:
        if network not in theirs:
            problems.append(f"node {spec.name!r}: {parent.name!r}, which it starts from, is not trained for {network}")
            continue
        for seed in seeds:
            if seed in their_seeds or len(their_seeds) == 1:
                own = seed if seed in their_seeds else their_seeds[0]
                found[network, seed] = (_id(parent.name, network, own),)
            else:
                problems.append(
                    f"node {spec.name!r}: {parent.name!r}, which it starts from, has seeds {list(their_seeds)} and "
                    f"not {seed}; give it that one too, or a single seed for all"
                )
    return found
